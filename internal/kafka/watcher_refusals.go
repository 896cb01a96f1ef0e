package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
)

// lookBack is how much earlier than its own start the watcher follows the dead
// letters from, for brokers' clocks that differ from this machine's.
const lookBack = time.Minute

// begin starts to follow the dead letters: from the time on that the watcher
// was made, so that it sees those of all writes that its process has made since.
// It begins later where these are more than it keeps.
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
		made = end // there is none as late
	}
	from := max(first, made, end-int64(w.cfg.Watcher.RefusedMax))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun, w.floor = true, from
	if from == first {
		w.floor = 0 // of what is not in the log any more, nobody waits
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

// remember keeps a refusal. w.mu is held.
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

// advance says that the dead letters before the offset are known. w.mu is held.
func (w *Watcher) advance(tail int64) {
	w.tail = tail
	close(w.moved)
	w.moved = make(chan struct{})
}

// skip says that the dead letters before the offset are not to be had. w.mu is
// held.
func (w *Watcher) skip(to int64) {
	w.log.Warn("dead letters are missing", "topic", w.letters, "from", w.tail, "to", to)
	w.floor = to
	for waiting := range w.waiters {
		waiting.skipped = true
	}
}

// catchUp waits until all dead letters that there are have been followed.
func (w *Watcher) catchUp(ctx context.Context) error {
	end, err := listOffset(ctx, w.cl, w.letters, offsetEnd)
	if err != nil {
		return err
	}
	if w.stuck { // what comes next may be gone from the topic
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
