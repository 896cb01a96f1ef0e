package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// Reading one event costs nearly as much as reading thirty, because ClickHouse spends
// most of the time on work that every query needs. So reads of single events that
// come while others are under way wait, and are then done together.
const (
	// gatherBatchesMax is the most batches that are read at once.
	gatherBatchesMax = 2
	// gatherEventsMax bounds the events of a batch.
	gatherEventsMax = 64
	// gatherBytesMax is the largest bytesMax of a read that can be part of a batch. A
	// reader that leaves does not end the batch, so this bounds the memory that is
	// held for readers that have left.
	gatherBytesMax = 128 << 10
)

// errAlone says that an event must be read by queries of its own.
var errAlone = errors.New("the event does not fit into a batch")

// gather collects reads of single events into batches. Its zero value is ready to use.
type gather struct {
	mu      sync.Mutex
	waiting []*wanted
	batches int // under way
}

// wanted is one event that a reader waits for.
type wanted struct {
	ref      event.Ref
	bytesMax int
	done     chan struct{}
	// found and err are set before done is closed.
	found *event.Event
	err   error
}

// wait returns the event, or nil if there is none. Its queries begin after the call of
// wait, so that it sees everything that was stored before.
func (g *gather) wait(ctx context.Context, ref event.Ref, bytesMax int, read func(ctx context.Context, batch []*wanted)) (*event.Event, error) {
	w := &wanted{ref: ref, bytesMax: bytesMax, done: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	if g.batches < gatherBatchesMax {
		g.batches++
		go g.run(context.WithoutCancel(ctx), read)
	}
	g.mu.Unlock()
	select {
	case <-w.done:
		return w.found, w.err
	case <-ctx.Done():
		g.leave(w)
		return nil, fmt.Errorf("wait for a batch of reads: %w", ctx.Err())
	}
}

// leave removes a read that has not begun.
func (g *gather) leave(w *wanted) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, other := range g.waiting {
		if other == w {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return
		}
	}
}

// run reads batch after batch until nobody waits.
func (g *gather) run(ctx context.Context, read func(ctx context.Context, batch []*wanted)) {
	for {
		g.mu.Lock()
		batch := g.waiting[:min(len(g.waiting), gatherEventsMax)]
		g.waiting = g.waiting[len(batch):]
		if len(batch) == 0 {
			g.batches--
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		read(ctx, batch)
		for _, w := range batch {
			close(w.done)
		}
	}
}

// readBatch reads the events of a batch. An event that does not fit gets errAlone. If
// the batch as a whole is too large, all events get it.
func (s *Store) readBatch(ctx context.Context, batch []*wanted) {
	ctx, cancel := context.WithTimeout(ctx, s.readTimeout())
	defer cancel()
	if err := s.readWanted(ctx, batch); err != nil {
		if isTooLarge(err) || len(batch) > 1 && errors.Is(err, event.ErrQueryTooLarge) {
			err = errAlone
		}
		for _, w := range batch {
			w.found, w.err = nil, err
		}
	}
}

func (s *Store) readWanted(ctx context.Context, batch []*wanted) error {
	r := &room{}
	ids := make([]event.ID, len(batch)) // zero where there is no event
	var (
		aliases []string
		known   []event.ID
	)
	for i, w := range batch {
		r.left += w.bytesMax
		if ids[i] = w.ref.ID; w.ref.Alias != "" {
			aliases = append(aliases, w.ref.Alias)
		}
	}
	if len(aliases) > 0 {
		rows, err := s.aliases(ctx, conn.RoleRead, aliases)
		if err != nil {
			return err
		}
		for i, w := range batch {
			if row, ok := rows[w.ref.Alias]; ok && !row.Deleted && !row.Refused {
				ids[i] = row.ID
			}
		}
	}
	for _, id := range ids {
		if id != (event.ID{}) {
			known = append(known, id)
		}
	}
	cores, err := s.cores(ctx, conn.RoleRead, known, r)
	if err != nil {
		return err
	}
	alive := make([]event.ID, 0, len(cores))
	for id, core := range cores {
		if !core.Deleted {
			alive = append(alive, id)
		}
	}
	// The core rows are read first. If an event is deleted after that, its contents
	// are tombstones, because a delete writes the other tables before the core row.
	var (
		contents   map[fieldOf]event.ContentRow
		embeddings map[fieldOf]event.EmbeddingRow
		both       errgroup.Group
	)
	half := func() *room { return &room{left: r.left / 2} }
	both.Go(func() (err error) {
		contents, err = s.contents(ctx, alive, half())
		return err
	})
	both.Go(func() (err error) {
		embeddings, err = s.embeddings(ctx, alive, half())
		return err
	})
	if err := both.Wait(); err != nil {
		return err
	}
	for i, w := range batch {
		core, ok := cores[ids[i]]
		if !ok || core.Deleted || core.Alias != w.ref.Alias {
			continue
		}
		e, ok := assembleOne(&core, contents, embeddings)
		switch {
		case !ok:
		case eventBytesOf(&e) > w.bytesMax:
			w.err = errAlone
		default:
			if len(batch) > 1 {
				// The texts are slices of a block that also has the texts of the others.
				e.Input.Data, e.Output.Data = bytes.Clone(e.Input.Data), bytes.Clone(e.Output.Data)
			}
			w.found = &e
		}
	}
	return nil
}

// eventBytesOf returns the memory that an event takes.
func eventBytesOf(e *event.Event) int {
	return eventBytes + len(e.ID) + len(e.ConversationID) + len(e.Error) + len(e.Metadata) +
		len(e.Input.Data) + len(e.Output.Data) + len(e.InputEmbeddings) + len(e.OutputEmbeddings)
}
