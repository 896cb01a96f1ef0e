package clickhouse

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// notAllowedMessage is the same whether something is not there or not allowed, so that
// nobody learns what there is.
const notAllowedMessage = "SQL can only read the views live_events, live_event_contents and live_event_embeddings; " +
	"the query names something else, or does something else, or sets a setting"

// forbidden are the two words that no query may have, each with what ClickHouse reads of
// it and what the caller is told.
//
// They stand for the two things that ClickHouse's rights do not refuse:
//
//   - The function file reads files of the server. The embedded ClickHouse takes itself
//     for a program of its user and reads any; older servers read those of
//     user_files_path. The name is case-sensitive and has no alias. A quoted name may
//     have letters as escapes, \x66, and \N, which is nothing, among them.
//   - The clause SETTINGS of a subquery is not held against the user's constraints, as
//     that of the whole query is. additional_table_filters, for one, would have the views
//     run an expression on the tables' rows before they are filtered. A keyword is never
//     quoted.
//
// This is no parser. A text that has the word in any spelling is refused, wherever it
// stands, so that no other reading of the text can bring it back.
var forbidden = []struct { //nolint:gochecknoglobals // a constant table
	spelled *regexp.Regexp
	message string
}{
	{
		regexp.MustCompile(`(?:^|[^0-9A-Za-z_])file(?:[^0-9A-Za-z_]|$)|\\Nfile|file\\N|` +
			`(?:f|\\x66)(?:\\N)*(?:i|\\x69)(?:\\N)*(?:l|\\x6[cC])(?:\\N)*(?:e|\\x65)`),
		"the query has the word file, which is a function of ClickHouse that reads the server's files; " +
			"write a text that has the word as 'fil' || 'e'",
	},
	{
		regexp.MustCompile(`(?i)(?:^|[^0-9A-Za-z_])settings(?:[^0-9A-Za-z_]|$)`),
		"the query has the word SETTINGS, and a query cannot change settings; write a text that has the word as 'setting' || 's'",
	},
}

// checkWords returns a [*query.SQLError] if the query has a forbidden word.
func checkWords(text string) error {
	for i := range forbidden {
		for _, at := range forbidden[i].spelled.FindAllStringIndex(text, -1) {
			// The last spelling of file is that of a part of "profile" too, where nothing is
			// escaped.
			if text[at[0]:at[1]] != "file" || !inWord(text, at[0], at[1]) {
				return &query.SQLError{NotAllowed: true, Message: forbidden[i].message}
			}
		}
	}
	return nil
}

// inWord reports whether the bytes are a part of a longer plain word.
func inWord(text string, begin, end int) bool {
	letter := func(i int) bool {
		if i < 0 || i >= len(text) {
			return false
		}
		c := text[i]
		return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_'
	}
	return letter(begin-1) || letter(end)
}

// Exceptions of the server, by what they say about a query in SQL.
const (
	sqlUnknown     = iota
	sqlShown       // wrong, and the message is about the text of the query alone
	sqlNotAllowed  // not a SELECT from the views
	sqlTooLarge    // reached a bound of memory, rows, bytes or depth
	sqlTimeout     // reached its time
	sqlBusy        // too many at once
	sqlUnavailable // a condition of the server
)

func sqlClass(code int) int {
	switch code {
	case 62, // SYNTAX_ERROR
		1,   // UNSUPPORTED_METHOD
		10,  // NOT_FOUND_COLUMN_IN_BLOCK
		34,  // TOO_MANY_ARGUMENTS_FOR_FUNCTION
		35,  // TOO_FEW_ARGUMENTS_FOR_FUNCTION
		42,  // NUMBER_OF_ARGUMENTS_DOESNT_MATCH
		43,  // ILLEGAL_TYPE_OF_ARGUMENT
		44,  // ILLEGAL_COLUMN
		46,  // UNKNOWN_FUNCTION
		47,  // UNKNOWN_IDENTIFIER
		48,  // NOT_IMPLEMENTED
		50,  // UNKNOWN_TYPE
		53,  // TYPE_MISMATCH
		63,  // UNKNOWN_AGGREGATE_FUNCTION
		133, // AGGREGATE_FUNCTION_DOESNT_ALLOW_PARAMETERS
		179, // MULTIPLE_EXPRESSIONS_FOR_ALIAS
		184, // ILLEGAL_AGGREGATION
		207, // AMBIGUOUS_IDENTIFIER
		215, // NOT_AN_AGGREGATE
		258, // UNION_ALL_RESULT_STRUCTURES_MISMATCH
		352, // AMBIGUOUS_COLUMN_NAME
		386, // NO_COMMON_TYPE
		403, // INVALID_JOIN_ON_EXPRESSION
		456: // UNKNOWN_QUERY_PARAMETER
		return sqlShown
	case 60, // UNKNOWN_TABLE
		81,  // UNKNOWN_DATABASE
		115, // UNKNOWN_SETTING
		164, // READONLY
		291, // DATABASE_ACCESS_DENIED
		344, // SUPPORT_IS_DISABLED
		358, // INTO_OUTFILE_NOT_ALLOWED
		392, // QUERY_IS_PROHIBITED
		446, // FUNCTION_NOT_ALLOWED
		452, // SETTING_CONSTRAINT_VIOLATION
		477, // INVALID_USAGE_OF_INPUT
		497, // ACCESS_DENIED
		636, // CANNOT_EXTRACT_TABLE_STRUCTURE
		701: // CLUSTER_DOESNT_EXIST
		return sqlNotAllowed
	case 128, // TOO_LARGE_ARRAY_SIZE
		131, // TOO_LARGE_STRING_SIZE
		158, // TOO_MANY_ROWS
		161, // TOO_MANY_COLUMNS
		162, // TOO_DEEP_SUBQUERIES
		167, // TOO_DEEP_AST
		168, // TOO_BIG_AST
		191, // SET_SIZE_LIMIT_EXCEEDED
		290, // LIMIT_EXCEEDED
		306, // TOO_DEEP_RECURSION
		307, // TOO_MANY_BYTES
		396: // TOO_MANY_ROWS_OR_BYTES
		return sqlTooLarge
	case 159, // TIMEOUT_EXCEEDED
		160: // TOO_SLOW
		return sqlTimeout
	case 202, // TOO_MANY_SIMULTANEOUS_QUERIES
		700: // USER_SESSION_LIMIT_EXCEEDED
		return sqlBusy
	case 49, // LOGICAL_ERROR
		192, // UNKNOWN_USER
		193, // WRONG_PASSWORD
		194, // REQUIRED_PASSWORD
		209, // SOCKET_TIMEOUT
		210, // NETWORK_ERROR
		236, // ABORTED
		241, // MEMORY_LIMIT_EXCEEDED of others
		243, // NOT_ENOUGH_SPACE
		279, // ALL_CONNECTION_TRIES_FAILED
		394, // QUERY_WAS_CANCELLED
		425, // SYSTEM_ERROR
		516, // AUTHENTICATION_FAILED
		669, // NAMED_COLLECTION_DOESNT_EXIST
		999: // KEEPER_EXCEPTION
		return sqlUnavailable
	}
	return sqlUnknown
}

// sqlError says what an exception of the server means for the caller.
func sqlError(code int, message string) error {
	name := "ClickHouse error " + strconv.Itoa(code)
	if m := exceptionEnd.FindStringSubmatch(message); m != nil {
		name = m[1]
	}
	switch sqlClass(code) {
	case sqlShown:
		return &query.SQLError{Message: plainException(message)}
	case sqlNotAllowed:
		return &query.SQLError{Message: notAllowedMessage, NotAllowed: true}
	case sqlTooLarge:
		return fmt.Errorf("query sql: %w (%s)", event.ErrQueryTooLarge, name)
	case sqlTimeout:
		return fmt.Errorf("query sql: %w (%s)", event.ErrQueryTimeout, name)
	case sqlBusy:
		return fmt.Errorf("query sql: %w (%s)", query.ErrSQLBusy, name)
	case sqlUnavailable:
		// The memory of one query is its own bound, that of the server is not: see
		// conn's readError.
		if code == 241 && (strings.Contains(message, "Query memory limit exceeded") || strings.Contains(message, "Memory limit (for query) exceeded")) {
			return fmt.Errorf("query sql: %w (%s)", event.ErrQueryTooLarge, name)
		}
		return fmt.Errorf("query sql: %s", name)
	}
	// The message may quote a value that a filter met in an event which the caller may
	// not see: filters can run before the views' own conditions.
	return &query.SQLError{Message: "ClickHouse cannot compute the query: " + name}
}

var (
	exceptionEnd = regexp.MustCompile(`\(([A-Z][A-Z0-9_]+)\)(?: \(version [^)]*\))?\s*$`)
	whereFrom    = regexp.MustCompile(`^(?s:.*)DB::\w*Exception: `)
)

// messageBytesMax bounds what is shown of an exception.
const messageBytesMax = 1000

// plainException is the message of an exception without its code, its version, and the
// hosts that it came through.
func plainException(message string) string {
	message = exceptionEnd.ReplaceAllString(message, "")
	if at := whereFrom.FindStringIndex(message); at != nil {
		message = message[at[1]:]
	}
	message = strings.TrimSpace(message)
	if len(message) > messageBytesMax {
		message = message[:messageBytesMax]
		for !utf8.ValidString(message) && message != "" {
			message = message[:len(message)-1]
		}
		message += "…"
	}
	return message
}
