package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
)

// Watcher tells when writes are applied. A write is applied when the group's
// committed offset is above its offset, because the consumer commits only what
// the database has. The watcher reads the committed offsets only while somebody
// waits, as often as [pace] says. It follows the dead-letter topic, from a little
// before its own start on, to learn which writes the consumer refused.
type Watcher struct {
	cfg     Config
	topic   string
	letters string
	log     *slog.Logger
	cl      *kgo.Client // its consumer follows the dead letters
	adm     *kadm.Client
	made    time.Time
	wake    chan struct{}
	stuck   bool // whether the last catchUp failed; owned by the goroutine of Run

	mu      sync.Mutex
	pace    pace
	waiters map[*waiter]struct{}
	// wanted has the waiters that need to know whether a write is refused. Each
	// waiter keeps the refusals of its own writes, so that they are never evicted.
	wanted map[event.Receipt][]*waiter
	// refused has the latest refusals. ring has their receipts in a ring whose
	// oldest element is at head.
	refused map[event.Receipt]*event.Error
	ring    []refusal
	head    int
	// begun says that the dead letters are followed. The refusals of the letters
	// from offset floor to tail are in refused; tail is the next letter to come.
	begun       bool
	floor, tail int64
	moved       chan struct{} // closed when tail moves
}

// refusal is a refused record, and the place of its dead letter.
type refusal struct {
	receipt event.Receipt
	seq     int64
}

// waiter is one call of Wait or Outcomes.
type waiter struct {
	// offsets has the highest offset that the waiter needs of each partition.
	offsets map[int32]int64
	done    chan struct{}
	// since is when the waiter joined. quiet says that none of its partitions had a
	// backlog then.
	since time.Time
	quiet bool

	// writes says that this is a call of Outcomes. receipts are its arguments.
	writes   bool
	receipts []event.Receipt
	// refused has the refusals of the receipts, from the dead letters at offset
	// floor and after it. skipped says that some of these letters were missing.
	refused map[event.Receipt]*event.Error
	floor   int64
	skipped bool
}

// NewWatcher returns a watcher of the events topic. cfg must name the number of
// partitions. [Watcher.Wait] answers only while [Watcher.Run] runs.
func NewWatcher(cfg Config, log *slog.Logger) (*Watcher, error) {
	if cfg.Partitions == 0 {
		return nil, errPartitionsUnknown
	}
	cfg = cfg.WithDefaults()
	made := time.Now()
	cl, err := newClient(&cfg, log,
		clientMetrics(&cfg, "watcher"),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxPartitionBytes(deadLetterBytesMax),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
	)
	if err != nil {
		return nil, err
	}
	return &Watcher{
		cfg: cfg, topic: cfg.EventsTopic(), letters: cfg.DeadLetterTopic(), log: log,
		cl: cl, adm: kadm.NewClient(cl), made: made, wake: make(chan struct{}, 1),
		pace:    newPace(cfg.Watcher.PollInterval, cfg.Watcher.PollIntervalMax),
		waiters: make(map[*waiter]struct{}), wanted: make(map[event.Receipt][]*waiter),
		refused: make(map[event.Receipt]*event.Error), moved: make(chan struct{}),
	}, nil
}

// Run follows the dead letters until ctx ends, and reads the group's offsets while
// somebody waits. It closes the watcher.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.cl.Close()
	if err := w.retry(ctx, "list dead letters", w.begin); err != nil {
		return nil // ctx is over
	}
	tailed := make(chan struct{})
	go func() {
		defer close(tailed)
		w.follow(ctx)
	}()
	defer func() { <-tailed }()
	for {
		if due, waits := w.due(); !waits {
			select {
			case <-w.wake:
			case <-ctx.Done():
				return nil
			}
		} else if pause := time.Until(due); pause > 0 {
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-w.wake: // it may be due sooner
			case <-ctx.Done():
			}
			timer.Stop()
		} else if err := w.retry(ctx, "watch offsets", w.round); err != nil {
			return nil // ctx is over
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// due returns when to read the group's offsets next, if somebody waits.
func (w *Watcher) due() (at time.Time, waits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	heads := make(map[int32]int64)
	for waiting := range w.waiters {
		if waiting.applied(w.pace.committed) { // already before the waiter joined
			at, waits = w.pace.soonest(), true
		}
		for p, offset := range waiting.offsets {
			if head, ok := heads[p]; (!ok || offset < head) && offset >= w.pace.committed(p) {
				heads[p] = offset
			}
		}
	}
	for p, head := range heads {
		if due := w.pace.due(p, head); !waits || due.Before(at) {
			at, waits = due, true
		}
	}
	return at, waits
}

// retry runs step until it succeeds. It returns an error only if ctx ends. It does
// not use a library for the backoff, which would not be shorter here.
func (w *Watcher) retry(ctx context.Context, what string, step func(context.Context) error) error {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		bounded, cancel := context.WithTimeout(ctx, requestTimeout)
		err := step(bounded)
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		w.log.Warn("step did not succeed, trying again", "step", what, "delay", delay, "error", err)
		if !pause(ctx, delay) {
			return ctx.Err()
		}
	}
}

// round reads the group's offsets once, and answers the waiters whose writes are
// applied.
func (w *Watcher) round(ctx context.Context) error {
	committed, err := fetchCommitted(ctx, w.adm, w.cfg.Group, w.topic)
	if err != nil {
		return err
	}
	var applied []*waiter
	w.mu.Lock()
	now := time.Now()
	w.pace.observe(now, committed)
	for waiting := range w.waiters {
		if !waiting.applied(w.pace.committed) {
			continue
		}
		if waiting.quiet && waiting.writes {
			w.pace.quiet.add(now.Sub(waiting.since))
			waiting.quiet = false
		}
		if waiting.writes {
			applied = append(applied, waiting)
		} else {
			w.answer(waiting)
		}
	}
	w.mu.Unlock()
	if len(applied) == 0 {
		return nil
	}
	// A refused record is in the dead-letter topic before its offset is committed,
	// so the topic now has all refusals of these writes.
	if err := w.catchUp(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiting := range applied {
		w.answer(waiting)
	}
	return nil
}

// answer answers a waiter that has not left by itself. The caller holds w.mu.
func (w *Watcher) answer(waiting *waiter) {
	if w.leave(waiting) {
		close(waiting.done)
	}
}

// applied reports whether the committed offsets are above all that it waits for.
func (w *waiter) applied(committed func(int32) int64) bool {
	for p, offset := range w.offsets {
		if committed(p) <= offset {
			return false
		}
	}
	return true
}
