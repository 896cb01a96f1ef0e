package app

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sqlServer answers every query with the body, and remembers the last request.
func sqlServer(t *testing.T, status int, body string) (client SQLClient, last func() (r *http.Request, query string)) {
	t.Helper()
	var (
		request *http.Request
		text    []byte
	)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request = r
		text, _ = io.ReadAll(r.Body)
		w.WriteHeader(status)
		if _, err := io.WriteString(w, strings.TrimSuffix(body, "BROKEN")); err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(body, "BROKEN") {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	return SQLClient{Client{URL: server.URL, Key: "secret"}}, func() (*http.Request, string) { return request, string(text) }
}

const sqlAnswer = `{"columns":[{"name":"name","type":"LowCardinality(String)"},{"name":"n","type":"Nullable(UInt64)"},{"name":"x","type":"Array(Interval)"}],` +
	`"rows":[["event_a",18446744073709551615,[1,2]],["b\u001b[31mred\u202e\n\t\"é",null,{"a":"\u0007"}],["",-1.5,true]]}` + "\n"

func TestSQLTable(t *testing.T) {
	client, last := sqlServer(t, http.StatusOK, sqlAnswer)
	var out bytes.Buffer
	if err := client.Run(t.Context(), "SELECT 1", SQLTable, &out); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		` name                     |                    n | x`,
		`--------------------------+----------------------+----------------`,
		` event_a                  | 18446744073709551615 | [1,2]`,
		` b\x1b[31mred\u202e\n\t"é |                 NULL | {"a":"\u0007"}`,
		`                          |                 -1.5 | true`,
		"(3 rows)\n",
	}, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	r, query := last()
	if r.URL.String() != "/sql?format=json" || r.Header.Get("Authorization") != "Bearer secret" || query != "SELECT 1" {
		t.Errorf("asked %s with %q: %q", r.URL, r.Header.Get("Authorization"), query)
	}
	out.Reset()
	if err := client.Run(t.Context(), "SELECT 1", SQLJSON, &out); err != nil || out.String() != sqlAnswer {
		t.Errorf("%q, %v", out.String(), err)
	}
	// The widths are those of the first rows; long texts are cut off.
	client, _ = sqlServer(t, http.StatusOK, `{"columns":[{"name":"a","type":"String"}],"rows":[["`+strings.Repeat("x", 1000)+`"]`+strings.Repeat(`,["y"]`, 1500)+`,["zz"]]}`)
	out.Reset()
	if err := client.Run(t.Context(), "SELECT 1", SQLTable, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 1506 || lines[2] != " "+strings.Repeat("x", 119)+"…" || lines[1503] != " zz" || lines[1504] != "(1502 rows)" {
		t.Errorf("%d lines, %q, %q, %q", len(lines), lines[2], lines[1503], lines[1504])
	}
	client, _ = sqlServer(t, http.StatusOK, `{"columns":[],"rows":[[]]}`)
	out.Reset()
	if err := client.Run(t.Context(), "SELECT 1", SQLTable, &out); err != nil || !strings.HasSuffix(out.String(), "(1 row)\n") {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestSQLClientErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"a problem", 400, `{"code":"invalid_query","detail":"at \u001b[2J 1"}`, `invalid_query: at \x1b[2J 1`},
		{"another server", 404, "not found", "404 Not Found is no answer of Sluice"},
		{"broken off", 200, sqlAnswer[:200] + "BROKEN", "read the answer"},
		{"no answer", 200, "{}", "read the answer"},
		{"not JSON", 200, "<html>", "read the answer"},
	} {
		client, _ := sqlServer(t, tt.status, tt.body)
		err := client.Run(t.Context(), "SELECT 1", SQLTable, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	client, _ := sqlServer(t, 200, "PAR1BROKEN")
	if err := client.Run(t.Context(), "SELECT 1", SQLParquet, io.Discard); err == nil {
		t.Error("a broken Parquet file is no error")
	}
	for _, url := range []string{"", "127.0.0.1:8080", "ftp://x", "http://"} {
		if err := (SQLClient{Client{URL: url}}).Run(t.Context(), "SELECT 1", SQLJSON, io.Discard); err == nil || !strings.Contains(err.Error(), "is not a URL") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// console is a terminal on which somebody has typed.
type console struct {
	io.Reader
	bytes.Buffer
}

func (c *console) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func TestSQLPrompt(t *testing.T) {
	client, last := sqlServer(t, http.StatusOK, `{"columns":[{"name":"one","type":"UInt8"}],"rows":[[1]]}`)
	pauses := 0
	pause := func() func() { pauses++; return func() { pauses += 10 } }
	for _, tt := range []struct {
		typed, asked string
		pauses       int
	}{
		{"SELECT 1;\r", "SELECT 1;", 11},
		{"\r  \rSELECT\r 1\r;\r", "SELECT\n 1\n;", 11},
		{"SELECT 1;\rSELECT 2; \rexit\rSELECT 3;\r", "SELECT 2; ", 22},
		{"SELECT 1\x7f2;\r\x04", "SELECT 2;", 11},
		{"SELECT 4;\r\x1b[A\r", "SELECT 4;", 22}, // the arrow up
		{"quit;\rSELECT 5;\r", "SELECT 4;", 0},
		{"SELECT 6", "SELECT 4;", 0},
	} {
		pauses = 0
		c := &console{Reader: strings.NewReader(tt.typed)}
		if err := client.Prompt(t.Context(), c, pause, 80); err != nil {
			t.Errorf("%q: %v", tt.typed, err)
		}
		if _, query := last(); query != tt.asked || pauses != tt.pauses {
			t.Errorf("%q: asked %q with %d pauses, want %q with %d", tt.typed, query, pauses, tt.asked, tt.pauses)
		}
		if got := c.String(); tt.pauses > 0 && !strings.Contains(got, " one\r\n-----\r\n   1\r\n(1 row)\r\n") {
			t.Errorf("%q: printed %q", tt.typed, got)
		}
	}
	client, _ = sqlServer(t, http.StatusBadRequest, `{"code":"invalid_query","detail":"no"}`)
	c := &console{Reader: strings.NewReader("SELECT 1;\r")}
	if err := client.Prompt(t.Context(), c, pause, 0); err != nil || !strings.Contains(c.String(), "invalid_query: no") {
		t.Errorf("%v, printed %q", err, c.String())
	}
}
