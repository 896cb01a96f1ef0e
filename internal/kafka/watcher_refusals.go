package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
)

// lookBack is how long before its own start the watcher begins to follow the dead
// letters, because the brokers' clocks may differ from this machine's.
const lookBack = time.Minute

// begin starts to follow the dead letters from the time when the watcher was made,
// so that it sees the refusals of all writes that its process has made since. It
// begins later if there are more letters than it keeps.
func (w *Watcher) begin(ctx context.Context) error {
	first, err := listOffset(ctx, w.cl, w.letters, offsetFirst)
	if err != nil {
		return err
	}
	made, err := listOffset(ctx, w.cl, w.letters, w.made.Add(-lookBack).UnixMilli())
	if err != nil {
		return err
	}
	end, err := listOffset(ctx, w.cl, w.letters, offsetEnd)
	if err != nil {
		return err
	}
	if made < 0 {
		made = end // no letter is that recent
	}
	from := max(first, made, end-int64(w.cfg.Watcher.RefusedMax))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun, w.floor = true, from
	if from == first {
		w.floor = 0 // nobody waits for what is not in the log any more
	}
	for waiting := range w.waiters {
		waiting.floor = w.floor
	}
	w.advance(from)
	w.cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{w.letters: {0: kgo.NewOffset().At(from)}})
	return nil
}

func (w *Watcher) follow(ctx context.Context) {
	for ctx.Err() == nil {
		fetches := w.cl.PollRecords(ctx, 1000)
		fetches.EachError(func(topic string, partition int32, err error) {
			if ctx.Err() == nil {
				w.log.Warn("fetch failed; the client tries again", "topic", topic, "partition", partition, "error", err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			l, err := parseLetter(r)
			isLetter := err == nil && !isReplayed(r)
			if err != nil && !isReplayed(r) {
				w.log.Warn("skipped a record of the dead-letter topic that is not a dead letter", "topic", r.Topic, "offset", r.Offset, "error", err)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if r.Offset > w.tail { // letters are missing
				w.skip(r.Offset)
			}
			if isLetter {
				receipt := l.Record.Receipt()
				last := min(l.LastOffset, receipt.Offset+int64(w.cfg.Watcher.RefusedMax)-1)
				for ; receipt.Offset <= max(last, l.Record.Offset); receipt.Offset++ {
					w.remember(receipt, r.Offset, &event.Error{Code: l.Reason, Message: l.Detail})
				}
			}
			w.tail = r.Offset + 1
		})
		w.mu.Lock()
		w.advance(w.tail)
		w.mu.Unlock()
	}
}

// remember records a refusal. The caller holds w.mu.
func (w *Watcher) remember(r event.Receipt, seq int64, e *event.Error) {
	for _, waiting := range w.wanted[r] {
		waiting.refused[r] = e
	}
	if _, ok := w.refused[r]; !ok {
		if len(w.ring) < w.cfg.Watcher.RefusedMax {
			w.ring = append(w.ring, refusal{r, seq})
		} else {
			oldest := &w.ring[w.head]
			delete(w.refused, oldest.receipt)
			w.floor = oldest.seq + 1
			*oldest = refusal{r, seq}
			w.head = (w.head + 1) % len(w.ring)
		}
	}
	w.refused[r] = e
}

// advance records that all dead letters before the offset were read. The caller
// holds w.mu.
func (w *Watcher) advance(tail int64) {
	w.tail = tail
	close(w.moved)
	w.moved = make(chan struct{})
}

// skip records that the dead letters before the offset are gone. The caller holds
// w.mu.
func (w *Watcher) skip(to int64) {
	w.log.Warn("dead letters are missing", "topic", w.letters, "from", w.tail, "to", to)
	w.floor = to
	for waiting := range w.waiters {
		waiting.skipped = true
	}
}

// catchUp waits until all dead letters that exist now have been read.
func (w *Watcher) catchUp(ctx context.Context) error {
	end, err := listOffset(ctx, w.cl, w.letters, offsetEnd)
	if err != nil {
		return err
	}
	if w.stuck { // the next letters may be gone from the topic
		first, err := listOffset(ctx, w.cl, w.letters, offsetFirst)
		if err != nil {
			return err
		}
		w.mu.Lock()
		if w.tail < first {
			w.skip(first)
			w.advance(first)
		}
		w.mu.Unlock()
	}
	for {
		w.mu.Lock()
		tail, moved := w.tail, w.moved
		w.mu.Unlock()
		if w.stuck = tail < end; !w.stuck {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("follow %s to offset %d, at %d: %w", w.letters, end, tail, ctx.Err())
		}
	}
}
