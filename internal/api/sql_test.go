package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// fakeSQL answers queries in SQL. It counts the answers that are not closed.
type fakeSQL struct {
	asked  query.SQL
	answer func(ctx context.Context) (io.Reader, error)
	open   atomic.Int64
}

func (f *fakeSQL) Query(ctx context.Context, q query.SQL) (io.ReadCloser, error) {
	f.asked = q
	r, err := f.answer(ctx)
	if err != nil {
		return nil, err
	}
	f.open.Add(1)
	return &fakeAnswer{r, f}, nil
}

type fakeAnswer struct {
	io.Reader
	f *fakeSQL
}

func (a *fakeAnswer) Close() error { a.f.open.Add(-1); return nil }

func sqlText(lines string) func(context.Context) (io.Reader, error) {
	return func(context.Context) (io.Reader, error) { return strings.NewReader(lines), nil }
}

func newSQLHarness(t *testing.T, configure ...func(*api.Config)) (*harness, *fakeSQL) {
	t.Helper()
	sql := &fakeSQL{}
	h := newHarnessSQL(t, sql, configure...)
	t.Cleanup(func() {
		if n := sql.open.Load(); n != 0 {
			t.Errorf("%d answers are not closed", n)
		}
	})
	return h, sql
}

func TestSQL(t *testing.T) {
	h, sql := newSQLHarness(t)
	for _, tt := range []struct{ lines, want string }{
		{`["a", "b\"c"]` + "\n" + `["UInt64", "String"]` + "\n" + `[18446744073709551615, "x"]` + "\n" + `[2, "y\n"]` + "\n", `{"columns":[{"name":"a","type":"UInt64"},{"name":"b\"c","type":"String"}],"rows":[[18446744073709551615, "x"],[2, "y\n"]]}`},
		{"[\"a\"]\n[\"Nothing\"]\n", `{"columns":[{"name":"a","type":"Nothing"}],"rows":[]}`},
		{"[]\n[]\n[]\n[]", `{"columns":[],"rows":[[],[]]}`},
	} {
		sql.answer = sqlText(tt.lines)
		h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").expect(t, 200, tt.want)
	}
	if diff := cmp.Diff(query.SQL{Text: "SELECT 1"}, sql.asked); diff != "" {
		t.Error(diff)
	}
	// Rows that are longer than a piece, and more rows than fit into one.
	long := `["` + strings.Repeat("x", 100_000) + `"]`
	sql.answer = sqlText("[\"a\"]\n[\"String\"]\n" + strings.Repeat(long+"\n", 3))
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain; charset=UTF-8").expect(t, 200, `{"columns":[{"name":"a","type":"String"}],"rows":[`+long+","+long+","+long+"]}")
	if n := counted(t, h, "sluice_api_answers_cut_total"); n != 0 {
		t.Errorf("%v answers were cut", n)
	}

	big := strings.Repeat("1,2\n", 50_000)
	sql.answer = sqlText(big)
	a := h.do(t, "POST", "/sql?format=csv", "SELECT 1", "Content-Type", "text/plain")
	if a.expect(t, 200, ""); a.body != big || !strings.HasPrefix(a.header.Get("Content-Type"), "text/csv") || sql.asked.Format != query.SQLCSV {
		t.Errorf("%d bytes of %s, asked as %d", len(a.body), a.header.Get("Content-Type"), sql.asked.Format)
	}
	sql.answer = sqlText("PAR1\x00\xffPAR1")
	a = serve(h, request("POST", "/sql?format=parquet", "SELECT 1"))
	if a.expect(t, 200, "PAR1\x00\xffPAR1"); a.header.Get("Content-Type") != "application/vnd.apache.parquet" || sql.asked.Format != query.SQLParquet {
		t.Errorf("%s, asked as %d", a.header.Get("Content-Type"), sql.asked.Format)
	}
	sql.answer = sqlText("[]\n[]\n")
	h.do(t, "POST", "/sql?after=1.2.3", "SELECT 1", "Content-Type", "text/plain", "Prefer", "wait=1").expect(t, 200, "")
	if diff := cmp.Diff([]event.Receipt{{Generation: 1, Partition: 2, Offset: 3}}, h.last(t)); diff != "" {
		t.Error(diff)
	}
}

func TestSQLRefuses(t *testing.T) {
	h, sql := newSQLHarness(t, func(c *api.Config) { c.SQLBytesMax = 100 })
	sql.answer = sqlText("[]\n[]\n")
	for _, tt := range []struct {
		target, body, contentType string
		status                    int
		code                      event.Code
		field                     string
	}{
		{"/sql", "", "text/plain", 400, "invalid_query", "query"},
		{"/sql", " \n", "text/plain", 400, "invalid_query", "query"},
		{"/sql", strings.Repeat("x", 101), "text/plain", 413, "too_large", ""},
		{"/sql", "SELECT 1", "application/json", 415, "unsupported_media_type", ""},
		{"/sql", "SELECT 1", "text/plain; charset=latin1", 415, "unsupported_media_type", ""},
		{"/sql?format=xml", "SELECT 1", "text/plain", 422, "invalid_value", "format"},
		{"/sql?query=x", "SELECT 1", "text/plain", 400, "unknown_field", "query"},
		{"/sql?after=x", "SELECT 1", "text/plain", 422, "invalid_value", "after"},
	} {
		h.do(t, "POST", tt.target, tt.body, "Content-Type", tt.contentType).problem(t, tt.status, tt.code, tt.field)
	}
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain", "Content-Encoding", "gzip").problem(t, 415, "unsupported_encoding", "")
	serve(h, request("GET", "/sql", "")).problem(t, 405, "method_not_allowed", "")
	for _, tt := range []struct {
		err    error
		status int
		code   event.Code
		field  string
		logged bool
	}{
		{&query.SQLError{Message: "no column x"}, 400, "invalid_query", "query", false},
		{&query.SQLError{Message: "only the views", NotAllowed: true}, 400, "query_not_allowed", "query", false},
		{fmt.Errorf("query: %w", event.ErrQueryTooLarge), 422, "query_too_large", "", false},
		{fmt.Errorf("query: %w", event.ErrQueryTimeout), 422, "query_timeout", "", false},
		{fmt.Errorf("query: %w", query.ErrSQLBusy), 429, "too_many_queries", "", false},
		{fmt.Errorf("query: %w: may insert", query.ErrSQLRole), 501, "sql_not_set_up", "", true},
		{errors.New("connection refused"), 503, "unavailable", "", true},
		{context.DeadlineExceeded, 503, "unavailable", "", true},
	} {
		h.log.Reset()
		sql.answer = func(context.Context) (io.Reader, error) { return nil, tt.err }
		h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").problem(t, tt.status, tt.code, tt.field)
		if logged := h.log.Len() > 0; logged != tt.logged {
			t.Errorf("%v: logged %t: %s", tt.err, logged, h.log)
		}
	}
	// An answer that breaks off before anything of it is sent is a problem; too many columns too.
	sql.answer = func(context.Context) (io.Reader, error) {
		return io.MultiReader(strings.NewReader("[\"a\"]\n[\"UInt8\"]\n[1]\n"), failing{}), nil
	}
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").problem(t, 503, "unavailable", "")
	sql.answer = sqlText(`["` + strings.Repeat("x", 65<<10) + "\"]\n[\"UInt8\"]\n")
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").problem(t, 422, "query_too_large", "")

	unset := newHarness(t)
	a := unset.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain")
	a.problem(t, 501, "sql_not_set_up", "")
	if !strings.Contains(a.body, "docs/sql.md") || !strings.Contains(a.body, "--clickhouse-sql-url") {
		t.Errorf("it does not say how to set SQL up: %s", a.body)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// An answer that breaks off later breaks the connection, so that nobody takes what was
// sent for all of it.
func TestSQLBreaksOff(t *testing.T) {
	h, sql := newSQLHarness(t)
	server := httptest.NewServer(h.server.Handler())
	defer server.Close()
	for format, begin := range map[string]string{"json": "[\"a\"]\n[\"String\"]\n", "csv": "a\n"} {
		sql.answer = func(context.Context) (io.Reader, error) {
			return io.MultiReader(strings.NewReader(begin+strings.Repeat("[\"xxxxxxxxxx\"]\n", 100_000)), failing{}), nil
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/sql?format="+format, strings.NewReader("SELECT 1"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil || len(got) < 1_000_000 {
			t.Errorf("%s: %d bytes, error %v; want an error", format, len(got), err)
		}
	}
}

// Those who read slowly hold a place, and a bounded time.
func TestSQLPlaces(t *testing.T) {
	h, sql := newSQLHarness(t, func(c *api.Config) {
		c.SQLAnswersMax, c.AnswerWait = 1, 50*time.Millisecond
	})
	entered, leave := make(chan struct{}), make(chan struct{})
	sql.answer = func(context.Context) (io.Reader, error) {
		close(entered)
		<-leave
		return strings.NewReader("[]\n[]\n"), nil
	}
	first := make(chan answer, 1)
	go func() { first <- serve(h, request("POST", "/sql", "SELECT 1")) }()
	<-entered
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").problem(t, 429, "too_many_queries", "")
	close(leave)
	if a := <-first; a.status != 200 {
		t.Errorf("the first: %d %s", a.status, a.body)
	}
	sql.answer = sqlText("[]\n[]\n")
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").expect(t, 200, "")

	h, sql = newSQLHarness(t, func(c *api.Config) { c.QueryTimeout, c.SQLAnswerTimeout = time.Millisecond, 20*time.Millisecond })
	sql.answer = func(ctx context.Context) (io.Reader, error) {
		return io.MultiReader(strings.NewReader("[\"a\"]\n[\"UInt8\"]\n"), until{ctx}), nil
	}
	h.do(t, "POST", "/sql", "SELECT 1", "Content-Type", "text/plain").problem(t, 503, "unavailable", "")
}

// until is an answer of which nothing more comes until its time is over.
type until struct{ ctx context.Context }

func (u until) Read([]byte) (int, error) { <-u.ctx.Done(); return 0, u.ctx.Err() }

// counted is the sum of a counter.
func counted(t *testing.T, h *harness, name string) (sum float64) {
	t.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
