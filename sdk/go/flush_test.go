package sluice_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

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
	t.Run("does not wait for the age of retried writes", func(t *testing.T) {
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
	t.Run("does not wait for later writes", func(t *testing.T) {
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
	t.Run("of an empty queue", func(t *testing.T) {
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
