package conn

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

// InsertError wraps [event.ErrRejected] around an exception that is about the
// values of the rows themselves. Only inserts use it: a lookup that meets a
// broken part raises some of the same codes.
func InsertError(err error) error {
	if exception, ok := ch.AsException(err); ok && isDataError(exception.Code) {
		return fmt.Errorf("%w: ClickHouse error %s", event.ErrRejected, exception.Code.String())
	}
	return WithoutValues(err)
}

// schemaError wraps [event.ErrSchemaMissing] or [event.ErrSchemaOld] around an
// exception that says that a query's tables or columns are not there.
func schemaError(err error) error {
	switch {
	case ch.IsErr(err, 60, 81): // UNKNOWN_TABLE, UNKNOWN_DATABASE
		return fmt.Errorf("%w (%w)", event.ErrSchemaMissing, WithoutValues(err))
	case ch.IsErr(err, 16, 47): // NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER
		return fmt.Errorf("%w (%w)", event.ErrSchemaOld, WithoutValues(err))
	}
	return WithoutValues(err)
}

// WithoutValues removes the message of an exception that may quote values of rows or
// parameters, because errors end up in logs.
func WithoutValues(err error) error {
	exception, ok := ch.AsException(err)
	if !ok {
		return err
	}
	switch int(exception.Code) {
	case 16, // NO_SUCH_COLUMN_IN_TABLE
		60,  // UNKNOWN_TABLE
		81,  // UNKNOWN_DATABASE
		159, // TIMEOUT_EXCEEDED
		164, // READONLY
		192, // UNKNOWN_USER
		202, // TOO_MANY_SIMULTANEOUS_QUERIES
		209, // SOCKET_TIMEOUT, of a shard
		210, // NETWORK_ERROR, of a shard
		225, // NO_ZOOKEEPER
		241, // MEMORY_LIMIT_EXCEEDED
		242, // TABLE_IS_READ_ONLY
		243, // NOT_ENOUGH_SPACE
		252, // TOO_MANY_PARTS
		279, // ALL_CONNECTION_TRIES_FAILED, of a shard
		285, // TOO_FEW_LIVE_REPLICAS
		286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
		319, // UNKNOWN_STATUS_OF_INSERT
		497, // ACCESS_DENIED
		516, // AUTHENTICATION_FAILED
		517, // CANNOT_ASSIGN_ALTER
		700, // USER_SESSION_LIMIT_EXCEEDED
		701, // CLUSTER_DOESNT_EXIST
		774, // the table is read-only
		999: // KEEPER_EXCEPTION
		return err
	}
	return &serverError{code: exception.Code}
}

// serverError is an exception of the server without its message.
type serverError struct{ code proto.Error }

func (e *serverError) Error() string { return "ClickHouse error " + e.code.String() }

// IsTooExpensive reports whether an exception says that a query took more time,
// memory or rows than the server allows.
func IsTooExpensive(err error) bool {
	code := proto.Error(0)
	var plain *serverError
	if exception, ok := ch.AsException(err); ok {
		code = exception.Code
	} else if errors.As(err, &plain) {
		code = plain.code
	}
	switch int(code) {
	case 158, // TOO_MANY_ROWS
		159, // TIMEOUT_EXCEEDED
		160, // TOO_SLOW
		241, // MEMORY_LIMIT_EXCEEDED
		307, // TOO_MANY_BYTES
		396: // TOO_MANY_ROWS_OR_BYTES
		return true
	}
	return false
}

// readError wraps [event.ErrQueryTooLarge] or [event.ErrQueryTimeout] around an
// exception that says that a query of a reader has reached its own bound.
func readError(err error) error {
	exception, ok := ch.AsException(err)
	if !ok {
		return schemaError(err)
	}
	switch int(exception.Code) {
	case 158, // TOO_MANY_ROWS
		307, // TOO_MANY_BYTES
		396: // TOO_MANY_ROWS_OR_BYTES
		return fmt.Errorf("%w (%w)", event.ErrQueryTooLarge, WithoutValues(err))
	case 159, // TIMEOUT_EXCEEDED
		160: // TOO_SLOW
		return fmt.Errorf("%w (%w)", event.ErrQueryTimeout, WithoutValues(err))
	case 241: // MEMORY_LIMIT_EXCEEDED
		// The code is the same where all queries of the server, or of the user, take
		// too much together, of which this one may take the least. Only the message
		// says whose limit it was: "Query memory limit exceeded: would use 4.00 GiB",
		// in older versions "Memory limit (for query) exceeded: …".
		if strings.Contains(exception.Message, "Query memory limit exceeded") ||
			strings.Contains(exception.Message, "Memory limit (for query) exceeded") {
			return fmt.Errorf("%w (%w)", event.ErrQueryTooLarge, WithoutValues(err))
		}
	}
	return schemaError(err)
}

// isDataError reports whether an exception is about values of rows. The list is short
// on purpose. A code that is missing here stalls the consumer, with log lines, and
// loses nothing; a code too many would refuse good records. Deliberately not here:
// type mismatches (53, 70), unknown columns (16) and tables (60). They say that the
// schema is wrong, and would refuse every record.
func isDataError(code proto.Error) bool {
	switch int(code) {
	case 6, // CANNOT_PARSE_TEXT
		27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
		38,  // CANNOT_PARSE_DATE
		41,  // CANNOT_PARSE_DATETIME
		69,  // ARGUMENT_OUT_OF_BOUND
		72,  // CANNOT_PARSE_NUMBER
		117, // INCORRECT_DATA
		128, // TOO_LARGE_ARRAY_SIZE
		131, // TOO_LARGE_STRING_SIZE
		321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
		349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
		376, // CANNOT_PARSE_UUID
		395, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
		469, // VIOLATED_CONSTRAINT
		691: // UNKNOWN_ELEMENT_OF_ENUM
		return true
	}
	return false
}

// HasCode reports whether err is an exception of the server with the code, with
// its message or without.
func HasCode(err error, code int) bool {
	var plain *serverError
	return ch.IsErr(err, proto.Error(code)) || errors.As(err, &plain) && int(plain.code) == code
}
