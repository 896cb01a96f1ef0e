package sluice_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// Whatever is refused, retried or slow, the server gets the writes of an id in
// order, one in a batch, and gets each write again until it is answered.
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
	t.Run("a call that gives up makes way for the calls behind it", func(t *testing.T) {
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

// Every accepted write of many goroutines arrives once, even if the client is
// closed in the meantime.
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
