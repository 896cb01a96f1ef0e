package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

// slowReader has each batch wait until it is let go.
type slowReader struct {
	begun chan []*wanted
	goOn  chan struct{}
}

func newSlowReader() *slowReader {
	return &slowReader{begun: make(chan []*wanted), goOn: make(chan struct{})}
}

func (r *slowReader) read(_ context.Context, batch []*wanted) {
	r.begun <- batch
	<-r.goOn
	for _, w := range batch {
		w.found = &event.Event{ID: w.ref.Alias}
	}
}

func (g *gather) queued() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}

// Readers that come while batches are under way share the next one, as far as
// its bound, and each gets its own event.
func TestGatherSharesBatches(t *testing.T) {
	var (
		g       gather
		readers sync.WaitGroup
		r       = newSlowReader()
	)
	ask := func(n int) {
		readers.Go(func() {
			want := fmt.Sprint(n)
			if e, err := g.wait(t.Context(), event.Ref{Alias: want}, 1, r.read); err != nil || e == nil || e.ID != want {
				t.Errorf("reader %d got %v, %v", n, e, err)
			}
		})
	}
	for n := range gatherBatchesMax {
		ask(n)
		if batch := <-r.begun; len(batch) != 1 {
			t.Errorf("batch %d has %d readers", n, len(batch))
		}
	}
	const more = gatherEventsMax + 10
	for n := range more {
		ask(100 + n)
	}
	for g.queued() < more {
		runtime.Gosched()
	}
	for _, want := range []int{gatherEventsMax, 10} {
		r.goOn <- struct{}{}
		if batch := <-r.begun; len(batch) != want {
			t.Errorf("a batch of %d readers, want %d", len(batch), want)
		}
	}
	for range gatherBatchesMax {
		r.goOn <- struct{}{}
	}
	readers.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) > 0 {
		t.Errorf("%d readers are left", len(g.waiting))
	}
}

// A reader that leaves is not read for, and holds up nobody.
func TestGatherForgetsReadersThatLeave(t *testing.T) {
	var (
		g       gather
		readers sync.WaitGroup
		r       = newSlowReader()
	)
	for n := range gatherBatchesMax {
		readers.Go(func() { _, _ = g.wait(t.Context(), event.Ref{Alias: fmt.Sprint(n)}, 1, r.read) })
		<-r.begun
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := g.wait(ctx, event.Ref{Alias: "leaves"}, 1, r.read)
		left <- err
	}()
	for g.queued() < 1 {
		runtime.Gosched()
	}
	readers.Go(func() {
		if e, err := g.wait(t.Context(), event.Ref{Alias: "stays"}, 1, r.read); err != nil || e.ID != "stays" {
			t.Errorf("got %v, %v", e, err)
		}
	})
	for g.queued() < 2 {
		runtime.Gosched()
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	r.goOn <- struct{}{}
	if batch := <-r.begun; len(batch) != 1 || batch[0].ref.Alias != "stays" {
		t.Errorf("a batch of %d", len(batch))
	}
	for range gatherBatchesMax {
		r.goOn <- struct{}{}
	}
	readers.Wait()
}
