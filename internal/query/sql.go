package query

import "errors"

// SQLFormat is the form of an answer to a query in SQL.
type SQLFormat uint8

// The formats.
const (
	// SQLJSONLines is a JSON array a line: the names of the columns, their types, then
	// each row.
	SQLJSONLines SQLFormat = iota
	// SQLCSV is CSV (RFC 4180) with the names of the columns in the first line.
	SQLCSV
	// SQLParquet is an Apache Parquet file.
	SQLParquet
)

// SQL is a query in SQL that a reader wrote.
type SQL struct {
	Text   string
	Format SQLFormat
}

// SQLError says that a query in SQL cannot be answered because of the query itself.
type SQLError struct {
	// Message says what is wrong, in words for the caller. It has no value of an event
	// that the caller may not see.
	Message string
	// NotAllowed says that the query asks for more than the live views.
	NotAllowed bool
}

func (e *SQLError) Error() string { return e.Message }

// Errors of queries in SQL.
var (
	// ErrSQLRole: the user that queries run as may do more than it should, or lacks
	// a bound, so that no query is run.
	ErrSQLRole = errors.New("the user for SQL is not set up as docs/sql.md says")
	// ErrSQLBusy: the database works on as many queries of the user as it may.
	ErrSQLBusy = errors.New("the database works on as many queries in SQL as it may")
)
