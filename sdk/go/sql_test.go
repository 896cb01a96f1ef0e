package sluice_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func TestSQL(t *testing.T) {
	api := &fakeAPI{answer: func(int, request) answer {
		return answer{status: 200, body: `{"columns":[{"name":"n","type":"UInt256"},{"name":"s","type":"Nullable(String)"}],"rows":[[115792089237316195423570985008687907853269984665640564039457584007913129639935,"a"],[1.50,null]]}`}
	}}
	client := serve(t, api, sluice.Options{})
	result, err := client.SQL(context.Background(), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, row := range result.Rows {
		for _, value := range row {
			got = append(got, string(value))
		}
	}
	want := []string{"115792089237316195423570985008687907853269984665640564039457584007913129639935", `"a"`, "1.50", "null"}
	if !slices.Equal(got, want) || !slices.Equal(result.Columns, []sluice.SQLColumn{{Name: "n", Type: "UInt256"}, {Name: "s", Type: "Nullable(String)"}}) {
		t.Errorf("got %v of %v, want %v", got, result.Columns, want)
	}
	if r := api.got()[0]; r.method != http.MethodPost || r.text != "SELECT 1" || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") {
		t.Errorf("sent %+v", r)
	}
}

// Reads by POST are retried and wait for the client's writes like all others.
func TestReadsByPOST(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{}
		api.answer = func(n int, r request) answer {
			switch {
			case r.path == "/events":
				return answer{status: 202}
			case n%3 != 0:
				return answer{status: 503, body: `{"status":503,"code":"overloaded"}`, header: map[string]string{"Retry-After": "1"}}
			}
			contentType := "application/json"
			if strings.Contains(r.query, "parquet") {
				contentType = "application/vnd.apache.parquet"
			}
			return answer{status: 200, header: map[string]string{"Content-Type": contentType}, body: `{"results":[],"next_cursor":null,"columns":[],"rows":[]}`}
		}
		client := open(t, api, sluice.Options{})
		mustTrack(t, client, event("c1"))
		ctx := context.Background()
		for name, read := range map[string]func() error{
			"search": func() error {
				_, err := client.Search(ctx, sluice.SearchQuery{Text: "a"}, sluice.Wait(2*time.Second))
				return err
			},
			"sql": func() error { _, err := client.SQL(ctx, "SELECT 1", sluice.Wait(2*time.Second)); return err },
			"write sql": func() error {
				return client.WriteSQL(ctx, io.Discard, sluice.Parquet, "SELECT 1", sluice.Wait(2*time.Second))
			},
		} {
			before := max(1, len(api.got())) // the first read flushes the event
			if err := read(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			requests := api.got()[before:]
			if len(requests) != 3 {
				t.Errorf("%s: %d requests, want 3", name, len(requests))
			}
			for _, r := range requests {
				if r.method != http.MethodPost || r.header.Get("Prefer") != "wait=2" || !strings.Contains(r.query, "after=1.0.7") || r.text != requests[0].text || r.text == "" {
					t.Errorf("%s: sent %+v", name, r)
				}
			}
		}
	})
}

// A server without a user for SQL is not asked again.
func TestSQLNotSetUp(t *testing.T) {
	api := &fakeAPI{answer: func(int, request) answer {
		return answer{status: 501, body: `{"type":"urn:sluice:problem:sql_not_set_up","status":501,"code":"sql_not_set_up"}`}
	}}
	client := serve(t, api, sluice.Options{})
	_, err := client.SQL(context.Background(), "SELECT 1")
	var refusal *sluice.APIError
	if !errors.As(err, &refusal) || refusal.Code != "sql_not_set_up" {
		t.Errorf("SQL returned %v", err)
	}
	if err := client.WriteSQL(context.Background(), io.Discard, sluice.CSV, "SELECT 1"); !errors.As(err, &refusal) || refusal.Code != "sql_not_set_up" {
		t.Errorf("WriteSQL returned %v", err)
	}
	if n := len(api.got()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// countingWriter counts what it gets, and checks the largest piece.
type countingWriter struct{ bytes, largest int }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.bytes += len(p)
	w.largest = max(w.largest, len(p))
	return len(p), nil
}

// An answer is written in pieces while it comes, so that it is never in memory as a whole.
func TestWriteSQL(t *testing.T) {
	const size = 64 << 20
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
		piece := bytes.Repeat([]byte("x"), 1<<20)
		for range size / len(piece) {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	client := openAny(t, sluice.Options{URL: server.URL})
	var w countingWriter
	if err := client.WriteSQL(context.Background(), &w, sluice.CSV, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if w.bytes != size || w.largest > 64<<10 {
		t.Errorf("%d bytes in pieces of up to %d, want %d in small ones", w.bytes, w.largest, size)
	}
	full := errors.New("the disk is full")
	if err := client.WriteSQL(context.Background(), writer(func([]byte) (int, error) { return 0, full }), sluice.CSV, "SELECT 1"); !errors.Is(err, full) {
		t.Errorf("the error of the writer became %v", err)
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// An answer that breaks off after its beginning is an error, and is not asked for again.
func TestWriteSQLBreaksOff(t *testing.T) {
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Content-Type", "text/csv")
		_, _ = io.WriteString(w, "begins")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	client := openAny(t, sluice.Options{URL: server.URL})
	var got bytes.Buffer
	err := client.WriteSQL(context.Background(), &got, sluice.CSV, "SELECT 1")
	if !errors.Is(err, io.ErrUnexpectedEOF) || got.String() != "begins" || requests.Load() != 1 {
		t.Errorf("returned %v after %q and %d requests", err, got.String(), requests.Load())
	}
}

// An answer may take longer than the timeout of a request, as long as something comes. When
// nothing comes for that long, it ends.
func TestWriteSQLTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := roundTripper(func(r *http.Request) (*http.Response, error) {
			from, to := io.Pipe()
			go func() {
				<-r.Context().Done()
				_ = to.CloseWithError(r.Context().Err())
			}()
			go func() {
				for range 10 {
					select {
					case <-time.After(8 * time.Second):
					case <-r.Context().Done():
						return
					}
					if _, err := to.Write([]byte("x")); err != nil {
						return
					}
				}
			}()
			return &http.Response{StatusCode: 200, Body: from, Header: http.Header{"Content-Type": {"text/csv"}}}, nil
		})
		client := openAny(t, sluice.Options{HTTPClient: &http.Client{Transport: slow}, RequestTimeout: 10 * time.Second})
		var got bytes.Buffer
		begun := time.Now()
		err := client.WriteSQL(context.Background(), &got, sluice.CSV, "SELECT 1")
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || got.String() != strings.Repeat("x", 10) || took != 90*time.Second {
			t.Errorf("returned %v after %s and %q, want a timeout after 90 s", err, took, got.String())
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(20*time.Second, cancel)
		if err := client.WriteSQL(ctx, io.Discard, sluice.CSV, "SELECT 1"); !errors.Is(err, context.Canceled) {
			t.Errorf("a canceled query returned %v", err)
		}
	})
}

// A page of a proxy is not written as an answer.
func TestWriteSQLOfAProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{answer: func(int, request) answer {
			return answer{status: 200, header: map[string]string{"Content-Type": "text/html"}, body: "<html>"}
		}}
		client := open(t, api, sluice.Options{})
		var got bytes.Buffer
		if err := client.WriteSQL(context.Background(), &got, sluice.CSV, "SELECT 1"); err == nil || got.Len() != 0 || len(api.got()) < 3 {
			t.Errorf("returned %v after %d requests and %q", err, len(api.got()), got.String())
		}
		var refused *sluice.FieldError
		if err := client.WriteSQL(context.Background(), &got, "xml", "SELECT 1"); !errors.As(err, &refused) || refused.Field != "format" {
			t.Errorf("another format returned %v", err)
		}
	})
}

func TestSearchAll(t *testing.T) {
	result := fmt.Sprintf(`{"event":%s,"score":0.5,"highlights":[{"field":"input","fragments":[{"text":"say ","match":false},{"text":"hi","match":true}]}]}`, storedEvent)
	api := &fakeAPI{answer: func(n int, _ request) answer {
		cursor := `"p2"`
		if n == 1 {
			cursor = "null"
		}
		return answer{status: 200, body: `{"results":[` + result + `],"next_cursor":` + cursor + `}`}
	}}
	client := serve(t, api, sluice.Options{})
	n := 0
	for got, err := range client.SearchAll(context.Background(), sluice.SearchQuery{Text: "hi", Limit: 1}, sluice.Wait(time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
		if got.Event.ID != "order-1" || got.Score != 0.5 || len(got.Highlights) != 1 || got.Highlights[0].Field != sluice.SearchInput ||
			!slices.Equal(got.Highlights[0].Fragments, []sluice.Fragment{{Text: "say "}, {Text: "hi", Match: true}}) {
			t.Errorf("got %+v", got)
		}
		n++
	}
	var requests []string
	for _, r := range api.got() {
		requests = append(requests, r.text+" "+r.header.Get("Prefer"))
	}
	want := []string{`{"text":"hi","limit":1} wait=1`, `{"text":"hi","limit":1,"cursor":"p2"} `}
	if n != 2 || !slices.Equal(requests, want) {
		t.Errorf("%d results by %q, want 2 by %q", n, requests, want)
	}
}

func TestSearchRefusesVectors(t *testing.T) {
	api := &fakeAPI{}
	client := serve(t, api, sluice.Options{})
	zero := float32(0)
	for field, vector := range map[string][]float32{"vector": make([]float32, 4097), "vector[1]": {1, 1 / zero}, "vector[0]": {zero / zero}} {
		_, err := client.Search(context.Background(), sluice.SearchQuery{Vector: vector})
		var refused *sluice.FieldError
		if !errors.As(err, &refused) || refused.Field != field {
			t.Errorf("returned %v, want an error of %s", err, field)
		}
	}
	if n := len(api.got()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// Rows that were read are written as the API writes them, with every digit.
func TestRowsKeepTheirJSON(t *testing.T) {
	const (
		insights = `{"rows":[{"conversation_id":"c","event_name":"e","events":3,"metadata.n":9007199254740993,"metadata.x y":null,"sum(metadata.n)":36893488147419103231,"time":"2026-01-02T00:00:00Z"},` +
			`{"error_rate":0.5,"metadata.n":{"a":1}}],"truncated":true}`
		funnel = `{"rows":[{"metadata.plan":"pro","steps":[{"event_name":"a","subjects":2,"conversion":1,"conversion_from_previous":1,"median_ms_from_previous":null},` +
			`{"event_name":"b","subjects":0,"conversion":0,"conversion_from_previous":null,"median_ms_from_previous":12.5}]}],"truncated":false}`
		retention = `[{"time":"2026-01-02T00:00:00Z","complete":true,"subjects":3,"returned":[2,1]}]`
	)
	api := &fakeAPI{answer: func(_ int, r request) answer {
		return answer{status: 200, body: map[string]string{
			"/analytics/insights": insights, "/analytics/funnel": funnel, "/analytics/retention": `{"rows":` + retention + `}`,
		}[r.path]}
	}}
	client := serve(t, api, sluice.Options{})
	ctx := context.Background()
	for want, read := range map[string]func() (any, error){
		insights:  func() (any, error) { return client.Insights(ctx, sluice.InsightsQuery{}) },
		funnel:    func() (any, error) { return client.Funnel(ctx, sluice.FunnelQuery{}) },
		retention: func() (any, error) { return client.Retention(ctx, sluice.RetentionQuery{}) },
	} {
		got, err := read()
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(got)
		if err != nil || string(text) != want {
			t.Errorf("error %v, got\n%s, want\n%s", err, text, want)
		}
	}
	got, err := client.Insights(ctx, sluice.InsightsQuery{})
	if err != nil {
		t.Fatal(err)
	}
	row := got.Rows[0]
	events, err := row.Measures[sluice.CountEvents].Int64()
	if err != nil || events != 3 || row.ConversationID != "c" || row.EventName != "e" || string(row.Metadata["n"]) != "9007199254740993" || string(row.Metadata["x y"]) != "null" {
		t.Errorf("got %+v, error %v", row, err)
	}
}

func TestFunnelRefusesWindows(t *testing.T) {
	client := serve(t, &fakeAPI{}, sluice.Options{})
	for _, window := range []time.Duration{-time.Second, 1500 * time.Millisecond} {
		var refused *sluice.FieldError
		if _, err := client.Funnel(context.Background(), sluice.FunnelQuery{Window: window}); !errors.As(err, &refused) || refused.Field != "window" {
			t.Errorf("a window of %s returned %v", window, err)
		}
	}
}
