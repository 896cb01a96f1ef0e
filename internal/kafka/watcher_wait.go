package kafka

import (
	"context"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// Wait returns nil when every write of the receipts is applied or refused, or the
// error of ctx if ctx ends first. Writes of older generations are applied. For a
// receipt that cannot be of this log, the error is an [*event.Error] with the
// field "receipt".
func (w *Watcher) Wait(ctx context.Context, receipts []event.Receipt) error {
	waiting, err := w.newWaiter(receipts)
	if err != nil || len(waiting.offsets) == 0 {
		return err
	}
	return w.join(ctx, waiting)
}

// Mark returns how far the dead letters have been read. A caller of
// [Watcher.Outcomes] takes the mark before it makes the writes; their refusals
// come after the mark.
func (w *Watcher) Mark() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun {
		return 0
	}
	return w.tail
}

// Outcomes waits like [Watcher.Wait], and tells which of the writes the consumer
// refused: refused has the reason for each receipt, or nil for a write that was
// applied. mark is the [Watcher.Mark] from before the writes were made.
//
// If known is false, the watcher may have missed refusals, and nil says nothing.
// There are three causes: the watcher had not begun to follow the dead letters
// when the writes were made, and there are too many letters to look back; more
// than [WatcherConfig.RefusedMax] other records were refused between the writes
// and the call; or dead letters were lost.
func (w *Watcher) Outcomes(ctx context.Context, mark int64, receipts []event.Receipt) (refused []*event.Error, known bool, err error) {
	waiting, err := w.newWaiter(receipts)
	if err != nil {
		return nil, false, err
	}
	refused = make([]*event.Error, len(receipts))
	if len(waiting.offsets) == 0 {
		return refused, true, nil
	}
	waiting.writes, waiting.receipts = true, receipts
	waiting.refused = make(map[event.Receipt]*event.Error)
	if err := w.join(ctx, waiting); err != nil {
		return nil, false, err
	}
	for i, r := range receipts {
		refused[i] = waiting.refused[r]
	}
	return refused, waiting.floor <= mark && !waiting.skipped, nil
}

func (w *Watcher) newWaiter(receipts []event.Receipt) (*waiter, error) {
	waiting := &waiter{offsets: make(map[int32]int64), done: make(chan struct{})}
	for _, r := range receipts {
		switch {
		case r.Generation < 1 || r.Generation > w.cfg.Generation || r.Partition < 0 || r.Offset < 0,
			r.Generation == w.cfg.Generation && int(r.Partition) >= w.cfg.Partitions:
			return nil, event.Errorf(event.CodeInvalidValue, "receipt", "is not a receipt of this server")
		case r.Generation == w.cfg.Generation:
			if offset, ok := waiting.offsets[r.Partition]; !ok || r.Offset > offset {
				waiting.offsets[r.Partition] = r.Offset
			}
		}
	}
	return waiting, nil
}

// join waits until a round answers or ctx ends.
func (w *Watcher) join(ctx context.Context, waiting *waiter) error {
	if !w.enter(waiting) {
		return nil
	}
	select {
	case <-waiting.done:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.leave(waiting)
		return ctx.Err()
	}
}

// enter adds the waiter to those that later rounds answer. It reports false if the
// last round already shows that everything is applied.
func (w *Watcher) enter(waiting *waiter) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	seen := w.pace.polled.Add(w.pace.most).After(now) // the last round is recent enough
	if seen && !waiting.writes && waiting.applied(w.pace.committed) {
		return false
	}
	waiting.since, waiting.quiet = now, true
	// A waiter behind others does not make a round due sooner.
	sooner := false
	for p, offset := range waiting.offsets {
		s, quiet := w.pace.join(now, p, offset, waiting.writes)
		sooner, waiting.quiet = sooner || s, waiting.quiet && quiet
	}
	w.waiters[waiting] = struct{}{}
	waiting.floor = w.floor
	for _, r := range waiting.receipts {
		w.wanted[r] = append(w.wanted[r], waiting)
		if refusal := w.refused[r]; refusal != nil {
			waiting.refused[r] = refusal
		}
	}
	if sooner {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// leave removes the waiter. It reports false if the waiter has left already. The
// caller holds w.mu.
func (w *Watcher) leave(waiting *waiter) bool {
	if _, ok := w.waiters[waiting]; !ok {
		return false
	}
	delete(w.waiters, waiting)
	for p := range waiting.offsets {
		w.pace.leave(p)
	}
	for _, r := range waiting.receipts {
		others := slices.DeleteFunc(w.wanted[r], func(other *waiter) bool { return other == waiting })
		if len(others) == 0 {
			delete(w.wanted, r)
		} else {
			w.wanted[r] = others
		}
	}
	return true
}
