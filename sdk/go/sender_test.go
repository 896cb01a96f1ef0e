package sluice_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// unavailable is the answer of a server that has a bad time.
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

// Whatever is refused, retried or slow: the server gets the writes of an id in
// order, one in a batch, and each until it is answered.
func TestWritesOfAnIDKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var (
			mu      sync.Mutex
			applied = make(map[string][]any)
		)
		api := &fakeAPI{answer: func(_ int, r request) answer {
			mu.Lock()
			defer mu.Unlock()
			if random.IntN(4) == 0 {
				return unavailable()
			}
			a := answer{status: 207}
			for _, i := range r.items {
				if random.IntN(3) == 0 {
					a.results = append(a.results, refusedItem(503, "unavailable"))
					continue
				}
				a.results = append(a.results, acknowledged)
				applied[i.id()] = append(applied[i.id()], i["latency"])
			}
			return a
		}}
		client := open(t, api, sluice.Options{BatchWritesMax: 7})
		const ids, writes = 5, 40
		for n := range writes {
			for id := range ids {
				latency := float64(n)
				err := client.UpdateEvent(context.Background(), fmt.Sprint("id", id), sluice.Fields{Latency: &latency})
				if err != nil {
					t.Fatal(err)
				}
			}
			<-time.After(time.Duration(n%50) * time.Millisecond)
		}
		mustFlush(t, client)
		for id, latencies := range applied {
			if len(latencies) != writes {
				t.Errorf("%s: %d writes, want %d", id, len(latencies), writes)
			}
			for n, latency := range latencies {
				if latency != float64(n) {
					t.Fatalf("%s: write %d is %v", id, n, latency)
				}
			}
		}
		for _, r := range api.got() {
			seen := make(map[string]bool)
			for _, i := range r.items {
				if seen[i.id()] {
					t.Fatalf("a batch has %s twice", i.id())
				}
				seen[i.id()] = true
			}
		}
	})
}

func TestQueueFull(t *testing.T) {
	stuck := func(int, request) answer { return unavailable() }
	t.Run("fails", func(t *testing.T) {
		client := open(t, &fakeAPI{answer: stuck}, sluice.Options{QueueWritesMax: 3, FailWhenFull: true})
		for range 3 {
			mustTrack(t, client, event("c1"))
		}
		if id, err := client.TrackEvent(context.Background(), event("c1")); !errors.Is(err, sluice.ErrQueueFull) || id != "" {
			t.Errorf("returned %q, %v", id, err)
		}
		if err := client.DeleteEvent(context.Background(), "x"); !errors.Is(err, sluice.ErrQueueFull) {
			t.Errorf("the delete returned %v", err)
		}
	})
	t.Run("by bytes", func(t *testing.T) {
		client := open(t, &fakeAPI{answer: stuck}, sluice.Options{QueueBytesMax: 1000, FailWhenFull: true})
		e := event("c1")
		e.Input = strings.Repeat("x", 500)
		mustTrack(t, client, e)
		if _, err := client.TrackEvent(context.Background(), e); !errors.Is(err, sluice.ErrQueueFull) {
			t.Errorf("the second returned %v", err)
		}
		mustTrack(t, client, event("c1"))
	})
	t.Run("never fits", func(t *testing.T) {
		client := open(t, new(fakeAPI), sluice.Options{QueueBytesMax: 100})
		e := event("c1")
		e.Input = strings.Repeat("x", 500)
		if _, err := client.TrackEvent(context.Background(), e); !errors.Is(err, sluice.ErrQueueFull) {
			t.Errorf("returned %v", err)
		}
	})
	t.Run("blocks until the context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client := open(t, &fakeAPI{answer: stuck}, sluice.Options{QueueWritesMax: 1})
			mustTrack(t, client, event("c1"))
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			start := time.Now()
			_, err := client.TrackEvent(ctx, event("c1"))
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sluice.ErrQueueFull) {
				t.Errorf("returned %v", err)
			}
			if took := time.Since(start); took != time.Minute {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("blocks until there is room, first come, first served", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(n int, _ request) answer {
				if n < 5 {
					return unavailable()
				}
				return answer{status: 202}
			}}
			client := open(t, api, sluice.Options{QueueWritesMax: 1})
			var done sync.WaitGroup
			for i := range 6 {
				done.Go(func() { mustTrack(t, client, event(fmt.Sprint("c", i))) })
				synctest.Wait()
			}
			// One that gives up does not keep the others from their turn.
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			if _, err := client.TrackEvent(ctx, event("late")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the late one returned %v", err)
			}
			done.Wait()
			mustFlush(t, client)
			var order []string
			for _, i := range api.items() {
				if c := i["conversation_id"].(string); !slices.Contains(order, c) {
					order = append(order, c)
				}
			}
			if got := strings.Join(order, " "); got != "c0 c1 c2 c3 c4 c5" {
				t.Errorf("sent in the order %s", got)
			}
		})
	})
	t.Run("one that gives up lets those behind it in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client := open(t, &fakeAPI{answer: stuck}, sluice.Options{QueueBytesMax: 1000})
			large := event("c1")
			large.Input = strings.Repeat("x", 500)
			mustTrack(t, client, large)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			go func() { _, _ = client.TrackEvent(ctx, large) }()
			synctest.Wait()
			start := time.Now()
			mustTrack(t, client, event("c1")) // fits, but it is not its turn
			if waited := time.Since(start); waited != time.Second {
				t.Errorf("waited for %s", waited)
			}
		})
	})
	t.Run("an ended context does not matter while there is room", func(t *testing.T) {
		client := open(t, new(fakeAPI), sluice.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := client.TrackEvent(ctx, event("c1")); err != nil {
			t.Error(err)
		}
	})
}

func TestItemsOf207(t *testing.T) {
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

// What is held is neither given up nor dropped from the spool; it is logged
// once, without what an answer may quote, and Flush and Close say why.
func TestHeldWrites(t *testing.T) {
	const body = `{"type":"urn:sluice:problem:unauthorized","status":401,"code":"unauthorized","detail":"confidential"}`
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{answer: func(int, request) answer {
			return answer{status: 401, body: body, header: map[string]string{"Content-Type": "application/problem+json"}}
		}}
		var reported errorLog
		var log strings.Builder
		dir := t.TempDir()
		client := open(t, api, sluice.Options{
			OnError: reported.add, SpoolDir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		id := mustTrack(t, client, event("c1"))
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		err := client.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "401 unauthorized") {
			t.Errorf("Close returned %v", err)
		}
		if n := len(api.got()); n < 100 {
			t.Errorf("%d requests in an hour", n)
		}
		if errs := reported.all(); len(errs) > 0 {
			t.Errorf("reported %v", errs)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 || !strings.Contains(log.String(), "401 unauthorized") {
			t.Errorf("%d errors in the log: %s", n, log.String())
		}
		if strings.Contains(log.String(), "confidential") {
			t.Error("the log has what the answer said")
		}
		api = new(fakeAPI)
		client = open(t, api, sluice.Options{SpoolDir: dir})
		mustFlush(t, client)
		if items := api.items(); len(items) != 1 || items[0].id() != id {
			t.Errorf("the spool had %v", items)
		}
	})
}

// A limit that was learned is tried anew, so that it does not stay for ever.
func TestLearnedLimitGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := true
		api := &fakeAPI{}
		api.answer = func(_ int, r request) answer {
			if refuse && len(r.items) > 1 {
				return answer{status: 413}
			}
			return answer{status: 202}
		}
		client := open(t, api, sluice.Options{BatchAgeMax: time.Hour})
		track := func(n int) {
			t.Helper()
			for range n {
				mustTrack(t, client, event("c1"))
			}
			mustFlush(t, client)
		}
		track(4)
		refuse = false
		track(6 * sluice.GrowAfterBatches)
		if largest := api.largest(); largest < 4 {
			t.Errorf("the largest batch has %d writes", largest)
		}
	})
}

// pauses makes n requests fail and returns the times between all.
func pauses(t *testing.T, n int, fail answer, o sluice.Options) []time.Duration {
	t.Helper()
	api := &fakeAPI{answer: func(i int, _ request) answer {
		if i < n {
			return fail
		}
		return answer{status: 202}
	}}
	client := open(t, api, o)
	mustTrack(t, client, event("c1"))
	mustFlush(t, client)
	requests := api.got()
	between := make([]time.Duration, len(requests)-1)
	for i := range between {
		between[i] = requests[i+1].at.Sub(requests[i].at)
	}
	return between
}

func TestPauses(t *testing.T) {
	t.Run("double", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := pauses(t, 12, unavailable(), sluice.Options{})
			want := 100 * time.Millisecond
			for i, pause := range got {
				if pause < want/2 || pause > want {
					t.Errorf("pause %d is %s, want %s to %s", i, pause, want/2, want)
				}
				want = min(2*want, 10*time.Second)
			}
			if len(got) != 12 {
				t.Errorf("%d pauses", len(got))
			}
		})
	})
	for value, want := range map[string]time.Duration{
		"3": 3 * time.Second, "3600": time.Minute, "99999999999": time.Second / 10,
		"Sat, 01 Jan 2000 00:00:09 GMT": 9 * time.Second, // time begins with 2000 in these tests
		"-5":                            time.Second / 10, "soon": time.Second / 10,
	} {
		t.Run("Retry-After "+value, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fail := answer{status: 429, body: "no", header: map[string]string{"Retry-After": value}}
				got := pauses(t, 1, fail, sluice.Options{})
				if value == "99999999999" {
					want = time.Minute
				}
				if len(got) != 1 || got[0] > want || want > time.Second && got[0] != want {
					t.Errorf("paused for %s, want %s", got, want)
				}
			})
		})
	}
	t.Run("are all that a retry waits for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(n int, _ request) answer {
				if n == 0 {
					return unavailable()
				}
				return answer{status: 202}
			}}
			client := open(t, api, sluice.Options{BatchAgeMax: time.Minute})
			mustTrack(t, client, event("c1"))
			<-time.After(time.Minute)
			synctest.Wait()
			mustTrack(t, client, event("c1")) // could wait for a minute
			<-time.After(time.Second)
			synctest.Wait()
			if n := len(api.got()); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
		})
	})
	t.Run("begin anew after a success", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(n int, _ request) answer {
				if n%5 == 4 {
					return answer{status: 202}
				}
				return unavailable()
			}}
			client := open(t, api, sluice.Options{})
			for range 2 {
				mustTrack(t, client, event("c1"))
				mustFlush(t, client)
			}
			requests := api.got()
			if got := requests[6].at.Sub(requests[5].at); got > 100*time.Millisecond {
				t.Errorf("the first pause of the second is %s", got)
			}
		})
	})
}

func TestRetryFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{answer: func(n int, _ request) answer {
			if n > 100 {
				return answer{status: 202}
			}
			return unavailable()
		}}
		var reported errorLog
		client := open(t, api, sluice.Options{RetryFor: 30 * time.Second, OnError: reported.add})
		start := time.Now()
		id := mustTrack(t, client, event("c1"))
		mustFlush(t, client)
		if took := time.Since(start); took > 30*time.Second || took < 15*time.Second {
			t.Errorf("given up after %s", took)
		}
		errs := reported.all()
		var refusal *sluice.APIError
		if len(errs) != 1 || errs[0].ID != id || !errors.As(errs[0], &refusal) || refusal.Status != 503 || !strings.Contains(errs[0].Error(), "given up after 30s") {
			t.Errorf("reported %v", errs)
		}
	})
}

func TestNetworkErrorsAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{t: t}
		var tries atomic.Int32
		o := sluice.Options{Logger: quiet(), RequestTimeout: time.Second}
		o.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			switch tries.Add(1) {
			case 1:
				return nil, errors.New("connection refused")
			case 2: // no answer
				<-r.Context().Done()
				return nil, r.Context().Err()
			case 3: // cut off
				rec := httptest.NewRecorder()
				rec.WriteHeader(202)
				answer := rec.Result()
				answer.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"results":`), failingReader{}))
				return answer, nil
			}
			return api.RoundTrip(r)
		})}
		client := openAny(t, o)
		mustTrack(t, client, event("c1"))
		mustFlush(t, client)
		if n := tries.Load(); n != 4 {
			t.Errorf("%d tries", n)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFlush(t *testing.T) {
	t.Run("says what is left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(int, request) answer { return unavailable() }}
			client := open(t, api, sluice.Options{})
			for range 3 {
				mustTrack(t, client, event("c1"))
			}
			ctx, cancel := context.WithTimeout(context.Background(), 7*time.Second)
			defer cancel()
			err := client.Flush(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "3 writes left") {
				t.Errorf("returned %v", err)
			}
		})
	})
	t.Run("does not wait for the age of what was held back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client := open(t, new(fakeAPI), sluice.Options{BatchAgeMax: time.Hour})
			id := mustTrack(t, client, event("c1"))
			for range 3 {
				if err := client.UpdateEvent(context.Background(), id, sluice.Fields{Error: "late"}); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			mustFlush(t, client)
			if took := time.Since(start); took != 0 {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("does not wait for what comes later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			open2 := make(chan struct{})
			api := &fakeAPI{answer: func(n int, _ request) answer {
				if n == 1 {
					<-open2
				}
				return answer{status: 202}
			}}
			client := open(t, api, sluice.Options{})
			mustTrack(t, client, event("c1"))
			flushed := make(chan error)
			go func() { flushed <- client.Flush(context.Background()) }()
			synctest.Wait()
			mustTrack(t, client, event("c1"))
			if err := <-flushed; err != nil {
				t.Error(err)
			}
			close(open2)
		})
	})
	t.Run("of nothing", func(t *testing.T) {
		client := open(t, new(fakeAPI), sluice.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := client.Flush(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(n int, _ request) answer {
				if n%2 == 0 {
					return unavailable()
				}
				return answer{status: 202}
			}}
			client := open(t, api, sluice.Options{BatchWritesMax: 2})
			var done sync.WaitGroup
			for range 20 {
				done.Go(func() {
					mustTrack(t, client, event("c1"))
					mustFlush(t, client)
				})
			}
			done.Wait()
		})
	})
}

func TestClose(t *testing.T) {
	t.Run("flushes", func(t *testing.T) {
		api := new(fakeAPI)
		client := serve(t, api, sluice.Options{BatchAgeMax: time.Hour})
		mustTrack(t, client, event("c1"))
		if err := client.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := len(api.items()); n != 1 {
			t.Errorf("%d items were sent", n)
		}
		ctx := context.Background()
		_, trackErr := client.TrackEvent(ctx, event("c1"))
		_, readErr := client.Event(ctx, "x")
		for _, err := range []error{
			trackErr, readErr, client.UpdateEvent(ctx, "x", sluice.Fields{Error: "e"}), client.DeleteEvent(ctx, "x"),
			client.Flush(ctx), client.Close(ctx),
		} {
			if !errors.Is(err, sluice.ErrClosed) {
				t.Errorf("a call after Close returned %v", err)
			}
		}
	})
	t.Run("says what is left, after 10 s", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(int, request) answer { return unavailable() }}
			client := open(t, api, sluice.Options{})
			mustTrack(t, client, event("c1"))
			mustTrack(t, client, event("c1"))
			start := time.Now()
			err := client.Close(context.Background())
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 writes left") {
				t.Errorf("returned %v", err)
			}
			if took := time.Since(start); took != 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("by its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client := openAny(t, sluice.Options{HTTPClient: &http.Client{Transport: roundTripper(
				func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done() // a server that hangs
					return nil, r.Context().Err()
				})}})
			mustTrack(t, client, event("c1"))
			ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
			defer cancel()
			start := time.Now()
			if err := client.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("returned %v", err)
			}
			if took := time.Since(start); took != 25*time.Second {
				t.Errorf("took %s", took)
			}
		})
	})
	t.Run("ends calls that wait for room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			api := &fakeAPI{answer: func(int, request) answer { return unavailable() }}
			client := open(t, api, sluice.Options{QueueWritesMax: 1})
			mustTrack(t, client, event("c1"))
			waiting := make(chan error)
			go func() {
				_, err := client.TrackEvent(context.Background(), event("c1"))
				waiting <- err
			}()
			synctest.Wait()
			go abandon(client)
			if err := <-waiting; !errors.Is(err, sluice.ErrClosed) {
				t.Errorf("returned %v", err)
			}
		})
	})
}

// Every write of many goroutines arrives once, though the client is closed
// under them: one that was taken was sent.
func TestConcurrency(t *testing.T) {
	for _, spool := range []bool{false, true} {
		t.Run(fmt.Sprintf("spool %t", spool), func(t *testing.T) {
			api := &fakeAPI{answer: func(n int, r request) answer {
				if n%7 != 3 {
					return answer{status: 202}
				}
				a := answer{status: 207}
				for i := range r.items {
					a.results = append(a.results, acknowledged)
					if i%2 == 0 {
						a.results[i] = refusedItem(503, "unavailable")
					}
				}
				return a
			}}
			o := sluice.Options{QueueWritesMax: 50, BatchWritesMax: 20, BatchAgeMax: time.Millisecond}
			if spool {
				o.SpoolDir = t.TempDir()
			}
			client := serve(t, api, o)
			var (
				mu    sync.Mutex
				taken = make(map[string]bool)
				group sync.WaitGroup
			)
			for g := range 8 {
				group.Go(func() {
					for i := range 300 {
						id, err := client.TrackEvent(context.Background(), event(fmt.Sprint(g)))
						if errors.Is(err, sluice.ErrClosed) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						taken[id] = true
						mu.Unlock()
						if i%100 == 50 {
							mustFlush(t, client)
						}
						if g == 0 && i == 250 {
							if err := client.Close(context.Background()); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			group.Wait()
			sent := make(map[string]bool)
			for _, i := range api.items() {
				sent[i.id()] = true
			}
			if len(sent) != len(taken) {
				t.Errorf("%d were taken, %d sent", len(taken), len(sent))
			}
			for id := range taken {
				if !sent[id] {
					t.Fatalf("%s was taken and not sent", id)
				}
			}
		})
	}
}

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

// The caller's own HTTP client cannot turn a POST into a GET either.
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

func TestVectorsOfOptions(t *testing.T) {
	var vectors struct {
		Options []struct {
			Option string
			Value  any
			Valid  bool
		}
	}
	readVectors(t, &vectors)
	if len(vectors.Options) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Options {
		number, _ := v.Value.(float64)
		text, _ := v.Value.(string)
		var o sluice.Options
		switch v.Option {
		case "batch_bytes_max":
			o.BatchBytesMax = int(number)
		case "batch_writes_max":
			o.BatchWritesMax = int(number)
		case "queue_writes_max":
			o.QueueWritesMax = int(number)
		case "queue_bytes_max":
			o.QueueBytesMax = int(number)
		case "wait_applied":
			o.WaitApplied = time.Duration(number) * time.Second
		case "url":
			o.URL = text
		case "api_key":
			o.APIKey = text
		default:
			t.Fatalf("the option %s", v.Option)
		}
		if err := o.Validate(); (err == nil) != v.Valid {
			t.Errorf("%s of %v: %v", v.Option, v.Value, err)
		}
	}
}

func TestCAFile(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []sluice.Options{
		{CAFile: empty}, {CAFile: empty + ".missing"}, {CAFile: empty, HTTPClient: new(http.Client)},
	} {
		client, err := sluice.New(o)
		var refused *sluice.FieldError
		if client != nil || !errors.As(err, &refused) || refused.Field != "CAFile" {
			t.Errorf("%v: the error is %v", o.CAFile, err)
		}
	}
}

func TestWarningsByDefault(t *testing.T) {
	api := &fakeAPI{answer: func(n int, _ request) answer {
		if n == 0 {
			return unavailable()
		}
		return answer{status: 207, results: []string{refusedItem(422, "invalid_value")}}
	}}
	var log strings.Builder
	client := open(t, api, sluice.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	e := event("c1")
	e.ID, e.Input = "order-1", "confidential"
	mustTrack(t, client, e)
	mustFlush(t, client)
	abandon(client)
	for _, want := range []string{`msg="write refused" op=create id=order-1 error=`, "422 invalid_value", `msg="writes not acknowledged, trying again"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if strings.Contains(log.String(), "confidential") {
		t.Error("the log has contents")
	}
}

func TestOptions(t *testing.T) {
	for field, o := range map[string]sluice.Options{
		"URL":            {URL: "localhost:8080"},
		"APIKey":         {APIKey: "a\nb"},
		"BatchWritesMax": {BatchWritesMax: 50_001},
		"BatchBytesMax":  {BatchBytesMax: -1},
		"BatchAgeMax":    {BatchAgeMax: -1},
		"QueueWritesMax": {QueueWritesMax: -1},
		"QueueBytesMax":  {QueueBytesMax: -1},
		"RetryFor":       {RetryFor: -1},
		"RequestTimeout": {RequestTimeout: -1},
		"WaitApplied":    {WaitApplied: 31 * time.Second},
		"TraceEventName": {TraceEventName: strings.Repeat("x", 129)},
	} {
		client, err := sluice.New(o)
		var refused *sluice.FieldError
		if client != nil || !errors.As(err, &refused) || refused.Field != field {
			t.Errorf("%s: the error is %v", field, err)
		}
	}
	err := (&sluice.Options{QueueWritesMax: -1, RetryFor: -1}).Validate()
	if err == nil || !strings.Contains(err.Error(), "QueueWritesMax") || !strings.Contains(err.Error(), "RetryFor") {
		t.Errorf("two mistakes are %v", err)
	}
}
