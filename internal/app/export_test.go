package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// answering answers each request with the next of the answers, and after the last one with it
// again. BROKEN ends an answer that breaks off.
func answering(t *testing.T, answers ...string) (client Client, asked func() []string) {
	t.Helper()
	var requests []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[min(len(requests), len(answers)-1)]
		requests = append(requests, r.URL.RawQuery)
		if status, problem, ok := strings.Cut(answer, " problem "); ok {
			w.Header().Set("Content-Type", "application/problem+json")
			var code int
			if _, err := fmt.Sscan(status, &code); err != nil {
				t.Error(err)
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, problem)
			return
		}
		text, broken := strings.CutSuffix(answer, "BROKEN")
		_, _ = io.WriteString(w, text)
		if broken {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(server.Close)
	return Client{URL: server.URL}, func() []string { return requests }
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestExportGoesOn(t *testing.T) {
	client, asked := answering(t,
		`503 problem {"code":"overloaded","detail":"later"}`,
		"{\"id\":\"a\\u0041 &\",\"n\":1}\n{\"id\":\"bBROKEN",
		"BROKEN",
		"{\"id\":\"b\",\"n\":2}\n")
	var out bytes.Buffer
	n, err := ExportClient{Client: client, Query: url.Values{"limit": {"5"}, "event_name": {"x", "y"}}, Log: quiet()}.NDJSON(t.Context(), &out)
	if err != nil || n != 2 || out.String() != "{\"id\":\"a\\u0041 &\",\"n\":1}\n{\"id\":\"b\",\"n\":2}\n" {
		t.Errorf("%d events, error %v: %s", n, err, out.String())
	}
	first, rest := "event_name=x&event_name=y&limit=5", "cursor=aA+%26&event_name=x&event_name=y&limit=4"
	if diff := cmp.Diff([]string{first, first, rest, rest}, asked()); diff != "" {
		t.Error(diff)
	}
}

func TestExportEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		answers []string
		err     string
		asked   int
	}{
		"a refusal":          {[]string{`422 problem {"code":"invalid_value","detail":"is bad","field":"since"}`}, "invalid_value: since is bad", 1},
		"no Sluice":          {[]string{"404 problem <html>"}, "404 Not Found is no answer of Sluice", 1},
		"no event":           {[]string{"[1]\nBROKEN"}, "does not begin with the id", 1},
		"a line without end": {[]string{strings.Repeat("x", exportLineBytesMax+1)}, "an event takes more than 67108864 bytes", 1},
	} {
		t.Run(name, func(t *testing.T) {
			client, asked := answering(t, tt.answers...)
			_, err := ExportClient{Client: client, Log: quiet()}.NDJSON(t.Context(), io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.err) || len(asked()) != tt.asked {
				t.Errorf("asked %d times, error %v", len(asked()), err)
			}
		})
	}
	// What breaks off after the last event is whole.
	client, asked := answering(t, "{\"id\":\"a\"}\n{\"id\":\"b\"}\nBROKEN")
	if n, err := (ExportClient{Client: client, Query: url.Values{"limit": {"2"}}, Log: quiet()}).NDJSON(t.Context(), io.Discard); n != 2 || err != nil || len(asked()) != 1 {
		t.Errorf("%d events, asked %d times, error %v", n, len(asked()), err)
	}
	// A full disk is no reason to ask again.
	client, asked = answering(t, "{\"id\":\"a\"}\n")
	full := errors.New("no space left")
	if _, err := (ExportClient{Client: client, Log: quiet()}).NDJSON(t.Context(), failing{full}); !errors.Is(err, full) || len(asked()) != 1 {
		t.Errorf("asked %d times, error %v", len(asked()), err)
	}
	// Nothing listens there.
	begun := time.Now()
	if _, err := (ExportClient{Client: Client{URL: "http://127.0.0.1:1"}, Log: quiet()}).NDJSON(t.Context(), io.Discard); err == nil || time.Since(begun) > clientPauseMax {
		t.Errorf("took %s, error %v", time.Since(begun), err)
	}
	// The caller leaves during a pause.
	client, _ = answering(t, `503 problem {"code":"overloaded","detail":"later"}`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := (ExportClient{Client: client, Log: quiet()}).NDJSON(ctx, io.Discard); err == nil {
		t.Error("no error")
	}
}

// TestClientIdle: a server that takes a connection and says nothing more ends a request, before an answer
// and in it.
func TestClientIdle(t *testing.T) {
	clientIdle = 50 * time.Millisecond
	defer func() { clientIdle = 6 * time.Minute }()
	silent := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/some/export" {
			_, _ = io.WriteString(w, "PAR1")
			_ = http.NewResponseController(w).Flush()
		}
		<-silent
	}))
	defer server.Close()
	defer close(silent)
	for _, path := range []string{"", "/some"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		resp, err := Client{URL: server.URL + path}.do(ctx, http.MethodGet, "export", nil, nil, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if !errors.Is(err, errIdle) {
			t.Errorf("%q: got %v, want %v", path, err, errIdle)
		}
		cancel()
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestExportParquetFile(t *testing.T) {
	client, asked := answering(t, `503 problem {"code":"overloaded","detail":"later"}`, "PAR1 and so on PAR1")
	var out bytes.Buffer
	if next, err := (ExportClient{Client: client, Log: quiet()}).Parquet(t.Context(), &out); err != nil || next != "" || out.String() != "PAR1 and so on PAR1" {
		t.Errorf("next %q, error %v: %q", next, err, out.String())
	}
	if diff := cmp.Diff([]string{"format=parquet", "format=parquet"}, asked()); diff != "" {
		t.Error(diff)
	}
	client, _ = answering(t, "PAR1BROKEN")
	if _, err := (ExportClient{Client: client, Log: quiet()}).Parquet(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "not whole") {
		t.Errorf("error %v", err)
	}
}

func TestResume(t *testing.T) {
	long := `{"id":"long","input":"` + strings.Repeat("x", 200<<10) + `"}`
	for _, tt := range []struct{ text, left, cursor, err string }{
		{"", "", "", ""},
		{`{"id":"a`, "", "", ""},
		{"{\"id\":\"a\"}\n", "{\"id\":\"a\"}\n", "a", ""},
		{"{\"id\":\"a\"}\n{\"id\":\"b \\u00e9\"}\n{\"id", "{\"id\":\"a\"}\n{\"id\":\"b \\u00e9\"}\n", "b é", ""},
		{"{\"id\":\"a\"}\n" + long + "\n", "{\"id\":\"a\"}\n" + long + "\n", "long", ""},
		{"{\"id\":\"a\"}\n" + long, "{\"id\":\"a\"}\n", "a", ""},
		{long + "\n" + long, long + "\n", "long", ""},
		{"something else\n", "something else\n", "", "does not begin with the id"},
	} {
		name := filepath.Join(t.TempDir(), "part")
		if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		cursor, err := Resume(file)
		if cursor != tt.cursor || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%.40q: cursor %q, error %v", tt.text, cursor, err)
		}
		if err == nil {
			if _, err := io.WriteString(file, "next"); err != nil {
				t.Fatal(err)
			}
			tt.left += "next"
		}
		_ = file.Close()
		left, err := os.ReadFile(name)
		if err != nil || string(left) != tt.left {
			t.Errorf("%.40q: %.60q is left, error %v", tt.text, left, err)
		}
	}
}
