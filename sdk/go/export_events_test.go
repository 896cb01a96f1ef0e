package sluice_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// exportServer answers exports as the function says, and records the queries. n counts
// requests from 0.
func exportServer(t *testing.T, serve func(n int, w http.ResponseWriter)) (client *sluice.Client, queries func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.WriteString(w, `{"results":[`+acknowledged+`]}`)
			return
		}
		mu.Lock()
		n := len(asked)
		asked = append(asked, strings.TrimSpace(r.URL.Path+"?"+r.URL.RawQuery+" "+r.Header.Get("Prefer")))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/x-ndjson")
		serve(n, w)
	}))
	t.Cleanup(server.Close)
	return openAny(t, sluice.Options{URL: server.URL}), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
}

// exportLine is a line with the event whose id has the number.
func exportLine(n int) string {
	return strings.ReplaceAll(storedEvent, "order-1", fmt.Sprintf("e%d", n)) + "\n"
}

// abort breaks the answer off after what was written.
func abort(w http.ResponseWriter) {
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// An export that breaks off goes on after the last whole line.
func TestExportEventsGoesOn(t *testing.T) {
	client, queries := exportServer(t, func(n int, w http.ResponseWriter) {
		switch n {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			_, _ = io.WriteString(w, exportLine(1)+exportLine(2)+exportLine(3)[:20])
			abort(w)
		case 2:
			_, _ = io.WriteString(w, exportLine(3)+`{"id":"half"`) // ends without a line's end
		case 3:
			abort(w)
		case 4:
			_, _ = io.WriteString(w, exportLine(4))
		}
	})
	mustTrack(t, client, event("c1"))
	var ids []string
	query := sluice.ExportQuery{Filter: sluice.Filter{Errors: sluice.WithError}, Embeddings: true, Cursor: "e0"}
	for e, err := range client.ExportEvents(context.Background(), query, sluice.Wait(time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	const all = "embeddings=true&error=true"
	want := []string{
		"/export?after=1.0.7&cursor=e0&" + all + " wait=1", "/export?after=1.0.7&cursor=e0&" + all + " wait=1",
		"/export?cursor=e2&" + all, "/export?cursor=e3&" + all, "/export?cursor=e3&" + all,
	}
	if !slices.Equal(ids, []string{"e1", "e2", "e3", "e4"}) || !slices.Equal(queries(), want) {
		t.Errorf("events %q by %q, want %q", ids, queries(), want)
	}
}

// An answer without a new event is tried again for half a minute.
func TestExportEventsGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		transport := roundTripper(func(*http.Request) (*http.Response, error) {
			requests++
			body := io.Reader(strings.NewReader("no event\n"))
			if requests == 1 {
				body = strings.NewReader(exportLine(1))
			}
			return &http.Response{
				StatusCode: 200, Header: http.Header{"Content-Type": {"application/x-ndjson"}},
				Body: io.NopCloser(io.MultiReader(body, errReader{io.ErrUnexpectedEOF})),
			}, nil
		})
		client := openAny(t, sluice.Options{HTTPClient: &http.Client{Transport: transport}})
		begun := time.Now()
		events := 0
		var last error
		for _, err := range client.ExportEvents(context.Background(), sluice.ExportQuery{}) {
			if last = err; err == nil {
				events++
			}
		}
		if took := time.Since(begun); last == nil || events != 1 || took > 30*time.Second || took < 15*time.Second || requests < 5 {
			t.Errorf("ended with %v after %d events, %d requests and %s", last, events, requests, took)
		}
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestExportEventsEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		serve func(w http.ResponseWriter)
		ok    func(err error) bool
	}{
		"a refusal": {func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"status":404,"code":"unknown_event","field":"cursor"}`)
		}, func(err error) bool {
			var refusal *sluice.APIError
			return errors.As(err, &refusal) && refusal.Field == "cursor"
		}},
		"a line that is too long": {func(w http.ResponseWriter) {
			line := strings.Repeat("x", 1<<20)
			for range 17 {
				if _, err := io.WriteString(w, line); err != nil {
					return
				}
			}
		}, func(err error) bool { return err != nil && strings.Contains(err.Error(), "longer than 16777216 bytes") }},
	} {
		t.Run(name, func(t *testing.T) {
			client, queries := exportServer(t, func(_ int, w http.ResponseWriter) { tt.serve(w) })
			var last error
			for _, err := range client.ExportEvents(context.Background(), sluice.ExportQuery{Cursor: "x"}) {
				last = err
			}
			if n := len(queries()); !tt.ok(last) || n != 1 {
				t.Errorf("ended with %v after %d requests", last, n)
			}
		})
	}
}

// A loop that is left ends the request, and can be begun again.
func TestExportEventsIsLeft(t *testing.T) {
	gone := make(chan struct{}, 2)
	client, _ := exportServer(t, func(_ int, w http.ResponseWriter) {
		for {
			if _, err := io.WriteString(w, exportLine(1)); err != nil {
				gone <- struct{}{}
				return
			}
		}
	})
	events := client.ExportEvents(context.Background(), sluice.ExportQuery{})
	for range 2 {
		for e, err := range events {
			if err != nil || e.ID != "e1" || e.Error != "late" {
				t.Fatal(e, err)
			}
			break
		}
		<-gone
	}
}
