package event

import (
	"errors"
	"fmt"
	"strconv"
)

// Code says what kind of mistake an [Error] reports. The values are part of
// the HTTP contract and of the dead-letter headers: never rename one.
type Code string

// Codes of refused input and refused writes.
const (
	// CodeInvalidJSON: the body is not one valid JSON value (syntax, UTF-8, trailing data).
	CodeInvalidJSON Code = "invalid_json"
	// CodeTooDeep: the body nests deeper than [DepthMax].
	CodeTooDeep Code = "too_deep"
	// CodeDuplicateField: an object names one member twice.
	CodeDuplicateField Code = "duplicate_field"
	// CodeUnknownField: an object has a member that the contract does not know.
	CodeUnknownField Code = "unknown_field"
	// CodeInvalidType: a member has a JSON type that its field does not take.
	CodeInvalidType Code = "invalid_type"
	// CodeRequired: a required field is absent or null.
	CodeRequired Code = "required"
	// CodeInvalidValue: a value is outside of what its field takes.
	CodeInvalidValue Code = "invalid_value"
	// CodeTooLarge: a value or body is longer than its limit.
	CodeTooLarge Code = "too_large"
	// CodeImmutable: an update names a field that never changes.
	CodeImmutable Code = "immutable"
	// CodeIDMismatch: a minted id does not match its event's conversation or timestamp.
	CodeIDMismatch Code = "id_mismatch"
	// CodeUnknownEvent: an update of an event that was not created before it in the log.
	CodeUnknownEvent Code = "unknown_event"
	// CodeIDTaken: a create of an id that an earlier create has.
	CodeIDTaken Code = "id_taken"
	// CodeEventDeleted: a create or update of an event that was deleted before it.
	CodeEventDeleted Code = "event_deleted"
	// CodeEventExpired: a create of an event that is older than the retention, so
	// that no reader sees it.
	CodeEventExpired Code = "event_expired"
	// CodeBadRecord: a record of the topic that is no valid write.
	CodeBadRecord Code = "bad_record"
	// CodeUnsupportedVersion: a record whose version header this build does not know.
	CodeUnsupportedVersion Code = "unsupported_version"
	// CodeUnreadableBatch: a batch of the log that is damaged, or too large to be
	// inflated. The dead letter stands for all of its offsets.
	CodeUnreadableBatch Code = "unreadable_batch"
	// CodeRejectedByStore: the database refused a row for what is in it.
	CodeRejectedByStore Code = "rejected_by_store"
)

// Error is a mistake in the input. It names the field and never carries the
// value, so that it is safe in answers, logs and dead-letter headers.
type Error struct {
	Code Code
	// Field is the path of the field, such as "latency" or "input_embeddings[7]";
	// empty where the whole value is meant.
	Field string
	// Message says what is wrong, in words for the caller.
	Message string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + ": " + e.Message
}

// Errorf returns an [*Error] whose message is formatted as by [fmt.Sprintf].
func Errorf(code Code, field, format string, args ...any) *Error {
	return &Error{Code: code, Field: field, Message: fmt.Sprintf(format, args...)}
}

// LargeError says that an event takes more memory than its reader has allowed.
// Nothing of the event is in memory then.
type LargeError struct {
	// Bytes is the memory that the event takes. It may be more when the event is
	// read again, because an update came in between.
	Bytes int
}

func (e *LargeError) Error() string { return fmt.Sprintf("the event takes %d bytes", e.Bytes) }

// The errors that the parser of requests and [Write.Validate] have in common.

// ErrNoFields is the error of an update that names no field.
func ErrNoFields() *Error {
	return Errorf(CodeRequired, "", "has no field to update; name at least one, with null to clear it")
}

// ErrOtherConversation is the error of an id that belongs to another conversation.
func ErrOtherConversation() *Error {
	return Errorf(CodeIDMismatch, "id", "was minted for another conversation_id")
}

// ErrMetadataNumber is the error of metadata with a number that no filter could
// read: such a number would hide the whole object from every filter.
func ErrMetadataNumber() *Error {
	return Errorf(CodeInvalidValue, "conversation_metadata", "has a number beyond the range of a double")
}

// ErrMetadataTooLarge is the error of metadata beyond [MetadataBytesMax].
func ErrMetadataTooLarge() *Error {
	return Errorf(CodeTooLarge, "conversation_metadata", "is longer than %d bytes of compact JSON", MetadataBytesMax)
}

// ErrTooDeep is the error of a field that nests deeper than [DepthMax].
func ErrTooDeep(field string) *Error {
	return Errorf(CodeTooDeep, field, "nests deeper than %d levels, the body being the first", DepthMax)
}

// ErrDimensions is the error of an embedding beyond [EmbeddingDimensionsMax].
func ErrDimensions(f Field) *Error {
	return Errorf(CodeTooLarge, f.String(), "has more than %d dimensions", EmbeddingDimensionsMax)
}

// ErrNotFinite is the error of an embedding whose dimension i is no finite number.
func ErrNotFinite(f Field, i int) *Error {
	return Errorf(CodeInvalidValue, f.String()+"["+strconv.Itoa(i)+"]", "must be a finite float32")
}

// Errors that the log wraps. Whether the write is in the log is unknown with both.
var (
	// ErrUnavailable: the log did not acknowledge a write in time. Sending the write
	// again is harmless where the caller gave its id.
	ErrUnavailable = errors.New("the log is unavailable")
	// ErrWritesStopped: this process takes no more writes, for good, because another
	// log has taken the place of its log. Other processes may take the write.
	ErrWritesStopped = errors.New("this process takes no more writes")
)

// Errors that the database wraps when it answers but does not fit this process. All
// of them end without a restart.
var (
	// ErrSchemaMissing: the database has no tables, or does not exist.
	ErrSchemaMissing = errors.New(`the database has no tables; "sluice migrate" or a consumer makes them`)
	// ErrSchemaOld: the tables are those of an earlier version.
	ErrSchemaOld = errors.New(`the tables are older than this process; "sluice migrate" or a consumer brings them up to date`)
	// ErrDatabaseOld: the database itself is of a version that lacks something that
	// this process needs.
	ErrDatabaseOld = errors.New("the database is older than the oldest version that works")
)

// Errors that the database wraps.
var (
	// ErrRejected: the database refuses a row for the data in it, so that another try
	// cannot help. The consumer retries all other errors of an insert.
	ErrRejected = errors.New("rejected by the storage")
	// ErrTooExpensive: a question took more time or memory than its answer is worth.
	// Nothing is wrong with the database, and another try should end the same way.
	ErrTooExpensive = errors.New("the question takes too much of the storage")
	// ErrQueryTooLarge: a query of a reader took more memory or rows than one query
	// may, and another try should end the same way. A lack of memory that others
	// caused is another error.
	ErrQueryTooLarge = errors.New("the query takes more memory or rows than one query may")
	// ErrQueryTimeout: a query of a reader took longer than one query may, and another
	// try should end the same way. A database that does not answer is another error.
	ErrQueryTimeout = errors.New("the query takes longer than one query may")
)
