package event

import "errors"

// ErrUnavailable is what the log wraps when it did not acknowledge a write in
// time. Whether the write is in the log is then unknown; sending it again is
// harmless where the caller gave its id.
var ErrUnavailable = errors.New("the log is unavailable")

// Ack is the log's answer to one write: its receipt, or why there is none. Err
// wraps [ErrUnavailable] or is an [*Error].
type Ack struct {
	Receipt Receipt
	Err     error
}

// Chunk is a run of records of one partition, in offset order.
type Chunk struct {
	Partition int32
	// Epoch numbers the assignment of the partition that the records were
	// fetched under; it grows with each one.
	Epoch   int64
	Records []Record
}
