package sluice_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// unavailable is the answer of a server that cannot take writes now.
func unavailable() answer { return answer{status: 503, body: "no"} }

func TestBatches(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct {
		name    string
		options sluice.Options
		track   []time.Duration // when
		input   int             // bytes
		flush   time.Duration
		want    map[time.Duration]int // items by time
	}{
		{"full", sluice.Options{BatchWritesMax: 3}, []time.Duration{0, 0, 0, 0, 0, 0, 0}, 0, 0, map[time.Duration]int{0: 6, 100 * ms: 1}},
		{"old", sluice.Options{}, []time.Duration{10 * ms, 60 * ms, 111 * ms}, 0, 0, map[time.Duration]int{110 * ms: 2, 211 * ms: 1}},
		{"old as told", sluice.Options{BatchAgeMax: time.Second}, []time.Duration{0, 999 * ms}, 0, 0, map[time.Duration]int{1000 * ms: 2}},
		{"large", sluice.Options{BatchBytesMax: 1000}, []time.Duration{0, 1 * ms, 2 * ms, 3 * ms}, 300, 0, map[time.Duration]int{2 * ms: 2, 102 * ms: 2}},
		{"one larger than a batch", sluice.Options{BatchBytesMax: 100}, []time.Duration{0, 0}, 300, 0, map[time.Duration]int{0: 2}},
		{"flushed", sluice.Options{}, []time.Duration{0, 10 * ms}, 0, 20 * ms, map[time.Duration]int{20 * ms: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := new(fakeAPI)
				client := open(t, api, tt.options)
				start := time.Now()
				at := func(when time.Duration) {
					synctest.Wait()
					<-time.After(time.Until(start.Add(when)))
				}
				for i, when := range tt.track {
					at(when)
					e := event(fmt.Sprint("c", i))
					e.Input = strings.Repeat("x", tt.input)
					mustTrack(t, client, e)
				}
				if tt.flush > 0 {
					at(tt.flush)
					mustFlush(t, client)
				}
				at(10 * time.Second)
				got := make(map[time.Duration]int)
				for _, r := range api.got() {
					got[r.at.Sub(start)] += len(r.items)
					if len(r.items) > 1 && tt.options.BatchWritesMax > 0 && len(r.items) > tt.options.BatchWritesMax {
						t.Errorf("a batch of %d", len(r.items))
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("sent %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestEachItemHasItsOwnResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{answer: func(n int, _ request) answer {
			if n > 0 {
				return answer{status: 202}
			}
			return answer{status: 207, results: []string{
				acknowledged, refusedItem(422, "invalid_value"), refusedItem(503, "unavailable"), refusedItem(429, "slow"), acknowledged,
			}}
		}}
		var reported errorLog
		client := open(t, api, sluice.Options{OnError: reported.add})
		ids := make([]string, 5)
		for i := range ids {
			ids[i] = mustTrack(t, client, event("c1"))
		}
		mustFlush(t, client)
		requests := api.got()
		if len(requests) != 2 || len(requests[1].items) != 2 ||
			requests[1].items[0].id() != ids[2] || requests[1].items[1].id() != ids[3] {
			t.Errorf("the requests are %v", requests)
		}
		errs := reported.all()
		var refusal *sluice.APIError
		if len(errs) != 1 || errs[0].ID != ids[1] || !errors.As(errs[0], &refusal) || refusal.Code != "invalid_value" || refusal.Field != "input" {
			t.Errorf("reported %v", errs)
		}
	})
}

func TestPatch(t *testing.T) {
	api := &fakeAPI{}
	client := serve(t, api, sluice.Options{BatchAgeMax: time.Hour})
	ctx := context.Background()
	metadata := map[string]any{"score": 0.5, "old": nil}
	if err := client.PatchEvent(ctx, "a/b", sluice.Fields{ConversationMetadata: metadata, Clear: sluice.ClearError}); err != nil {
		t.Fatal(err)
	}
	var wrong *sluice.FieldError
	if err := client.PatchEvent(ctx, "a", sluice.Fields{}); !errors.As(err, &wrong) {
		t.Errorf("a patch of nothing: %v", err)
	}
	mustFlush(t, client)
	want := []item{{
		"op": "patch", "id": "a/b", "conversation_metadata": map[string]any{"score": 0.5, "old": nil}, "error": nil,
	}}
	if items := api.got()[0].items; !reflect.DeepEqual(items, want) {
		t.Errorf("sent %v, want %v", items, want)
	}
}

func TestRefusedItems(t *testing.T) {
	api := &fakeAPI{answer: func(int, request) answer {
		return answer{status: 422, results: []string{refusedItem(422, "invalid_value"), refusedItem(404, "unknown_event")}}
	}}
	var reported errorLog
	client := serve(t, api, sluice.Options{OnError: reported.add, APIKey: "secret", BatchAgeMax: time.Hour})
	first := mustTrack(t, client, event("c1"))
	if err := client.DeleteEvent(context.Background(), "other"); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, client)
	errs := reported.all()
	if len(errs) != 2 || errs[0].ID != first || errs[1].ID != "other" || errs[1].Op != sluice.OpDelete {
		t.Fatalf("reported %v", errs)
	}
	if want := "delete other: sluice: the server answered 404 unknown_event: input: no"; errs[1].Error() != want {
		t.Errorf("the error is %q, want %q", errs[1], want)
	}
	if got := api.got()[0].header.Get("Authorization"); got != "Bearer secret" {
		t.Errorf("Authorization is %q", got)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestGzip(t *testing.T) {
	api := new(fakeAPI)
	client := serve(t, api, sluice.Options{Gzip: true})
	mustTrack(t, client, event("small"))
	mustFlush(t, client)
	for range 2 { // the second time with what the first has left
		e := event("large")
		e.Input = strings.Repeat("x", 2000)
		mustTrack(t, client, e)
		mustFlush(t, client)
	}
	for i, r := range api.got() {
		want := "gzip"
		if i == 0 {
			want = ""
		}
		if got := r.header.Get("Content-Encoding"); got != want {
			t.Errorf("request %d is encoded as %q, want %q", i, got, want)
		}
	}
	if items := api.items(); len(items) != 3 || items[2]["input"] != strings.Repeat("x", 2000) {
		t.Errorf("the items are %.300v", items)
	}
}

// With the caller's own HTTP client, a redirect does not turn a POST into a GET either.
func TestRedirectsOfTheCallersClient(t *testing.T) {
	api := &fakeAPI{t: t, answer: func(n int, _ request) answer {
		if n == 0 {
			return answer{status: 302, header: map[string]string{"Location": "/elsewhere"}}
		}
		return answer{status: 202}
	}}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	client := openAny(t, sluice.Options{URL: server.URL, HTTPClient: &http.Client{}})
	mustTrack(t, client, event("c1"))
	mustFlush(t, client)
	if got := api.got(); len(got) != 2 || got[1].path != "/events" || len(got[1].items) != 1 {
		t.Errorf("the requests are %v", got)
	}
}
