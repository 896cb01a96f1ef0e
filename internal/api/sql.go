package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// sqlReadBytes is how much of an answer in SQL is read from the database at once.
	sqlReadBytes = 16 << 10
	// sqlLineBytesMax bounds the names of the columns, and their types.
	sqlLineBytesMax = 64 << 10
	// sqlBytes is the memory of an answer in SQL: what is read, what is sent, and the
	// columns as lines, as lists and as JSON.
	sqlBytes = sqlReadBytes + sendBytes + 6*sqlLineBytesMax
)

// Header values of answers to POST /sql; net/http only reads them.
//
//nolint:gochecknoglobals // never written
var (
	headerCSV     = []string{"text/csv; charset=utf-8; header=present"}
	headerParquet = []string{"application/vnd.apache.parquet"}
)

// SQL runs queries that callers wrote, and keeps them from everything but the views.
type SQL interface {
	// Query returns the answer once the query has ended, in the query's format. An
	// error about the query is a [*query.SQLError]. The caller closes the answer.
	Query(ctx context.Context, q query.SQL) (io.ReadCloser, error)
}

// runSQL serves POST /sql.
func (s *Server) runSQL(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	formats := [...]query.SQLFormat{query.SQLJSONLines, query.SQLCSV, query.SQLParquet}
	format := formats[p.choice("format", "json", "csv", "parquet")]
	after := s.after(p)
	if err := errors.Join(p.finish(), checkSQLType(x.r)); err != nil {
		return err
	}
	if s.ports.SQL == nil {
		return &problem{
			status: http.StatusNotImplemented, code: CodeSQLNotSetUp,
			detail: "there is no user of ClickHouse for SQL: docs/sql.md says how to make one, and --clickhouse-sql-url names it",
		}
	}
	text, err := s.sqlText(x)
	if err != nil {
		return err
	}
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	leave, err := s.enterSQL(x)
	if err != nil {
		return err
	}
	defer leave()
	// A reader cannot have the answer for longer, whatever the rate.
	ctx, cancel := context.WithTimeout(x.r.Context(), s.cfg.QueryTimeout+s.cfg.SQLAnswerTimeout)
	defer cancel()
	answer, err := s.askSQL(ctx, query.SQL{Text: text, Format: format})
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }() // it is only read
	switch format {
	case query.SQLCSV:
		x.contentType = headerCSV
	case query.SQLParquet:
		x.contentType = headerParquet
	case query.SQLJSONLines:
		return x.sendSQLRows(bufio.NewReaderSize(answer, sqlReadBytes))
	}
	return x.sendSQL(answer)
}

// checkSQLType refuses bodies that say they are something else than plain text.
func checkSQLType(r *http.Request) error {
	values := r.Header.Values("Content-Type")
	if len(values) == 0 {
		return nil
	}
	mediaType, parameters, err := mime.ParseMediaType(values[0])
	charset := strings.ToLower(parameters["charset"])
	if err != nil || len(values) > 1 || mediaType != "text/plain" || charset != "" && charset != "utf-8" && charset != "utf8" {
		return &problem{
			status: http.StatusUnsupportedMediaType, code: CodeUnsupportedMediaType,
			detail: "Content-Type must be text/plain, with no charset but utf-8; the body is the query",
		}
	}
	if values := r.Header.Values("Content-Encoding"); len(values) > 0 && values[0] != "identity" {
		return &problem{
			status: http.StatusUnsupportedMediaType, code: CodeUnsupportedEncoding, detail: "a query cannot be compressed",
		}
	}
	return nil
}

// sqlText reads the query.
func (s *Server) sqlText(x *exchange) (string, error) {
	if x.r.ContentLength > int64(s.cfg.SQLBytesMax) {
		return "", tooLarge(s.cfg.SQLBytesMax)
	}
	var err error
	if x.body, err = s.bodies.Read(requestBody{x}, x.r.ContentLength, s.cfg.SQLBytesMax); err != nil {
		return "", bodyProblem(err, s.cfg.SQLBytesMax)
	}
	text := string(x.body.Bytes())
	x.releaseBody()
	if strings.TrimSpace(text) == "" {
		return "", &problem{status: http.StatusBadRequest, code: CodeInvalidQuery, field: "query", detail: "the body has no query"}
	}
	return text, nil
}

// enterSQL waits for one of the places of queries in SQL, and for the memory of its
// answer. leave gives the place back.
func (s *Server) enterSQL(x *exchange) (leave func(), err error) {
	begun := time.Now()
	timer := time.NewTimer(s.cfg.AnswerWait)
	defer timer.Stop()
	select {
	case s.sqlAnswers <- struct{}{}:
	case <-timer.C:
		return nil, tooManyQueries("as many queries in SQL are being answered as may be; ask again later")
	case <-x.r.Context().Done(): // there is nobody to answer
		return nil, tooManyQueries("the caller has gone")
	}
	leave = func() { <-s.sqlAnswers }
	if err := x.waitAtMost(body.ForRows, sqlBytes, s.cfg.AnswerWait-time.Since(begun)); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// askSQL runs the query when it is its turn among all questions about many events. The
// turn ends with the query. To send the answer costs the database little.
func (s *Server) askSQL(ctx context.Context, q query.SQL) (io.ReadCloser, error) {
	leave, err := s.analytics.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	answer, err := s.ports.SQL.Query(ctx, q)
	if err != nil {
		return nil, sqlProblem(err)
	}
	return answer, nil
}

// sqlProblem says how an error of a query in SQL is answered.
func sqlProblem(err error) error {
	var own *query.SQLError
	switch {
	case errors.As(err, &own):
		p := &problem{status: http.StatusBadRequest, code: CodeInvalidQuery, field: "query", detail: own.Message}
		if own.NotAllowed {
			p.code = CodeQueryNotAllowed
		}
		return p
	case errors.Is(err, query.ErrSQLRole):
		return &problem{
			status: http.StatusNotImplemented, code: CodeSQLNotSetUp, cause: err,
			detail: "the user of ClickHouse for SQL is not set up as docs/sql.md says; the log of this process says what is wrong",
		}
	case errors.Is(err, query.ErrSQLBusy):
		return tooManyQueries("the database works on as many queries in SQL as it may; ask again later")
	}
	return questionProblem(err)
}

// sendSQL passes an answer on as it is.
func (x *exchange) sendSQL(answer io.Reader) error {
	for {
		at := len(x.out)
		x.out = append(x.out, make([]byte, sqlReadBytes)...)
		n, err := answer.Read(x.out[at:])
		x.out = x.out[:at+n]
		if errors.Is(err, io.EOF) {
			return x.end()
		}
		if err != nil {
			return sqlBroken(err)
		}
		if err := x.full(); err != nil {
			return err
		}
	}
}

// sqlBroken is the error of an answer that the database breaks off.
func sqlBroken(err error) error {
	return storageProblem(fmt.Errorf("read the answer to a query in SQL: %w", err))
}

// sendSQLRows makes the JSON of an answer out of the database's lines.
func (x *exchange) sendSQLRows(lines *bufio.Reader) error {
	names, err := sqlColumns(lines)
	if err != nil {
		return err
	}
	types, err := sqlColumns(lines)
	if err != nil {
		return err
	}
	if len(types) != len(names) {
		return sqlBroken(fmt.Errorf("it has %d columns and %d types", len(names), len(types)))
	}
	x.out = append(x.out, `{"columns":[`...)
	for i, name := range names {
		x.out = appendMember(x.out, '{', "name")
		x.out = appendString(x.out, name)
		x.out = appendMember(x.out, ',', "type")
		x.out = append(appendString(x.out, types[i]), '}', ',')
	}
	x.out = append(bytes.TrimSuffix(x.out, []byte(",")), `],"rows":[`...)
	begins := true // a line
	for rows := 0; ; {
		piece, err := lines.ReadSlice('\n')
		if len(piece) > 0 && begins {
			if rows++; rows > 1 {
				x.out = append(x.out, ',')
			}
		}
		line := bytes.TrimSuffix(piece, []byte("\n"))
		begins = len(line) < len(piece)
		x.out = append(x.out, line...)
		switch {
		case errors.Is(err, io.EOF):
			x.out = append(x.out, "]}\n"...)
			return x.end()
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return sqlBroken(err)
		}
		if err := x.full(); err != nil {
			return err
		}
	}
}

// sqlColumns reads a line of the columns' names or types.
func sqlColumns(lines *bufio.Reader) ([]string, error) {
	var line []byte
	for {
		piece, err := lines.ReadSlice('\n')
		line = append(line, piece...)
		if len(line) > sqlLineBytesMax {
			return nil, &problem{
				status: http.StatusUnprocessableEntity, code: CodeQueryTooLarge,
				detail: fmt.Sprintf("the names or types of the columns take more than %d bytes; name fewer columns", sqlLineBytesMax),
			}
		}
		switch {
		case err == nil:
			var texts []string
			if err := json.Unmarshal(line, &texts); err != nil {
				return nil, sqlBroken(err)
			}
			return texts, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, sqlBroken(err)
		}
	}
}
