package sluice

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
)

// A SQLResult is the answer to a query in SQL.
type SQLResult struct {
	Columns []SQLColumn `json:"columns"`
	// Rows has a list for each row, with the JSON of a value for each column. Numbers have
	// all their digits; NULL, NaN and infinities are null, and times are RFC 3339 in UTC.
	Rows [][]json.RawMessage `json:"rows"`
}

// A SQLColumn is a column of a [SQLResult].
type SQLColumn struct {
	Name string `json:"name"`
	// Type is ClickHouse's name of the type, such as UInt64 or Nullable(String).
	Type string `json:"type"`
}

// A SQLFormat is a format of an answer to a query in SQL.
type SQLFormat string

// The values of a [SQLFormat].
const (
	// CSV has the names of the columns in its first line. NULL is \N.
	CSV     SQLFormat = "csv"
	Parquet SQLFormat = "parquet"
)

// SQL runs a SELECT in ClickHouse's SQL on the live views, which docs/sql.md describes. It
// holds the whole answer in memory, which the server bounds; [Client.WriteSQL] does not.
// The errors are those of [Client.Event]. An [*APIError] with the code invalid_query says
// what is wrong with the query; sql_not_set_up means that the server has no user for SQL.
func (c *Client) SQL(ctx context.Context, query string, opts ...ReadOption) (*SQLResult, error) {
	result := new(SQLResult)
	if err := c.read(ctx, sqlQuestion(query), result, opts); err != nil {
		return nil, err
	}
	return result, nil
}

// WriteSQL runs a query as [Client.SQL] does, and writes the answer to w while it comes.
// It is retried until the answer begins. An error after that leaves a part of the answer
// in w: the answer broke off, nothing came for [Options].RequestTimeout, or w failed.
func (c *Client) WriteSQL(ctx context.Context, w io.Writer, format SQLFormat, query string, opts ...ReadOption) error {
	q := sqlQuestion(query)
	q.values.Set("format", string(format))
	q.accept = map[SQLFormat]string{CSV: "text/csv", Parquet: "application/vnd.apache.parquet"}[format]
	if q.accept == "" {
		return &FieldError{Field: "format", Reason: "must be csv or parquet"}
	}
	body, err := c.open(ctx, q, opts)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }() // it is only read
	_, err = io.Copy(w, body)
	return err
}

func sqlQuestion(query string) question {
	return question{method: http.MethodPost, path: "/sql", values: make(url.Values), body: []byte(query), contentType: "text/plain; charset=utf-8"}
}
