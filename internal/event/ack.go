package event

import "errors"

// ErrUnavailable is what the log wraps when it did not acknowledge a write in
// time. Whether the write is in the log is then unknown; sending it again is
// harmless where the caller gave its id.
var ErrUnavailable = errors.New("the log is unavailable")

// ErrWritesStopped is what the log wraps when this process takes no writes any
// more, for good, because another log has taken its place. Other processes may
// take the write. Whether it is in the log is unknown, as with [ErrUnavailable].
var ErrWritesStopped = errors.New("this process takes no more writes")

// Errors that the database wraps where it answers, and not as this process
// needs it. All end without a restart.
var (
	// ErrSchemaMissing: the database has no tables, or does not exist.
	ErrSchemaMissing = errors.New(`the database has no tables; "sluice migrate" or a consumer makes them`)
	// ErrSchemaOld: the tables are those of an earlier version.
	ErrSchemaOld = errors.New(`the tables are older than this process; "sluice migrate" or a consumer brings them up to date`)
	// ErrDatabaseOld: the database itself is of a version that lacks something that
	// this process needs.
	ErrDatabaseOld = errors.New("the database is older than the oldest version that works")
)

// Ack is the log's answer to one write: its receipt, or why there is none. Err
// wraps [ErrUnavailable] or [ErrWritesStopped], or is an [*Error].
type Ack struct {
	Receipt Receipt
	Err     error
}
