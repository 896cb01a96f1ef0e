// Package record defines the records of the events topic: the Protobuf form of a
// write (write.proto), the versions of that form, and what a record, a chunk of
// records and a dead letter are. It knows no Kafka client.
package record

import (
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// FormatVersion is the version of the record format that this build writes. The
// version header of every record has it, but for records with a merge patch.
const FormatVersion = 1

// FormatVersionPatch is the version of records with a merge patch of the
// metadata. Builds that know only [FormatVersion] would overlook the patch, so
// that they must refuse the record.
const FormatVersionPatch = 2

// FormatVersionOf is the version that the record of the write must have.
func FormatVersionOf(w *event.Write) int {
	if w.MergeMetadata {
		return FormatVersionPatch
	}
	return FormatVersion
}

// Record is one record of the events topic.
type Record struct {
	Generation int
	Partition  int32
	Offset     int64
	Key        []byte
	Value      []byte
	// Version is the value of the record's version header, 0 where it has none.
	Version int
	// AppendTime is when the broker appended the record.
	AppendTime time.Time
	// ReplayOf is the receipt of the refused write that the record repeats; zero
	// where it repeats none.
	ReplayOf event.Receipt
}

// Position is the record's place in the log of its event.
func (r *Record) Position() event.Position { return event.MakePosition(r.Generation, r.Offset) }

// Receipt names the record's place.
func (r *Record) Receipt() event.Receipt {
	return event.Receipt{Generation: r.Generation, Partition: r.Partition, Offset: r.Offset}
}

// Chunk is a run of records of one partition, in the order of their offsets, or
// one batch of the log that could not be read.
type Chunk struct {
	Partition int32
	// Epoch numbers the assignment of the partition under which the records were
	// fetched; it grows with each assignment.
	Epoch   int64
	Records []Record
	// Next is the offset after the chunk. The offsets between the last record and
	// Next have no records. 0 says that there are no such offsets.
	Next int64
	// Unreadable is set where the chunk is a batch that could not be read; Records
	// is empty then.
	Unreadable *Unreadable
}

// Unreadable is a batch of the log whose records cannot be read: it is damaged,
// or takes more memory than the consumer has for one batch.
type Unreadable struct {
	Generation int
	Partition  int32
	// First and Last are the batch's first and last offset.
	First, Last int64
	// Detail says what is wrong, and where, without any of the payload.
	Detail string
	// Data is the batch as it is in the log, compressed.
	Data []byte
}

// DeadLetter is a record that was refused, and why.
type DeadLetter struct {
	Record Record
	// Reason is the code of the refusal.
	Reason event.Code
	// Detail is a sentence about it, without any of the payload.
	Detail string
	// LastOffset is set where the letter stands for a batch that could not be
	// read: the offset of the last record in the batch.
	LastOffset int64
}
