package sluice_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// Held writes are neither given up nor removed from the spool. They are logged
// once without contents of events, and the errors of Flush and Close say why.
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

// A lowered limit is raised again after accepted batches.
func TestLoweredLimitGrows(t *testing.T) {
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

// pauses makes n requests fail, and returns the times between the requests.
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
	t.Run("are the only delay of a retry", func(t *testing.T) {
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
