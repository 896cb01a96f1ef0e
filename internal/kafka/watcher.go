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

// Watcher tells when writes are applied: when the group's committed offset is
// above theirs, since the consumer commits only what the database has. It reads
// those offsets only while anybody waits, as often as [pace] says. Which writes
// the consumer refused it learns from the dead-letter topic, which it follows
// from a little before its own start on.
type Watcher struct {
	cfg     Config
	topic   string
	letters string
	log     *slog.Logger
	cl      *kgo.Client // its consumer follows the dead letters
	adm     *kadm.Client
	made    time.Time
	wake    chan struct{}
	stuck   bool // whether catchUp did not end the last time; Run's goroutine's

	mu      sync.Mutex
	pace    pace
	waiters map[*waiter]struct{}
	// wanted are those who wait for a write now and have to know of its refusal,
	// which they keep themselves, however many others there are.
	wanted map[event.Receipt][]*waiter
	// refused are the latest refusals, ring their keys, the oldest at place head.
	refused map[event.Receipt]*event.Error
	ring    []refusal
	head    int
	// begun says that the dead letters are followed. Those from the offset floor
	// on are in refused, up to tail, which is the next to come.
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
	// offsets are the highest that it needs of each partition.
	offsets map[int32]int64
	done    chan struct{}
	// since is when the waiter joined; quiet says that nothing it waits for had a
	// backlog before it then.
	since time.Time
	quiet bool

	// writes says that this is a call of Outcomes, and receipts are its.
	writes   bool
	receipts []event.Receipt
	// refused are the refusals of the receipts, as far as the dead letters from
	// the offset floor on tell. skipped says that some of these were missing.
	refused map[event.Receipt]*event.Error
	floor   int64
	skipped bool
}

// NewWatcher returns a watcher of the events topic, whose partitions cfg must
// name. Its Wait answers while [Watcher.Run] runs.
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

// Run follows the dead letters, and the group's offsets while anybody waits,
// until ctx ends. It closes the watcher.
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

// due is when to read the group's offsets next, if anybody waits.
func (w *Watcher) due() (at time.Time, waits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	heads := make(map[int32]int64)
	for waiting := range w.waiters {
		if waiting.applied(w.pace.committed) { // since before it came
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

// retry runs step until it succeeds; its error is that of ctx.
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

// round reads the group's offsets once, and answers those whose writes are applied.
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
	// A refused record is in the dead-letter topic before its offset is
	// committed, so what the topic holds now says all about these writes.
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

// answer ends the waiting of one that has not gone by itself. w.mu is held.
func (w *Watcher) answer(waiting *waiter) {
	if w.leave(waiting) {
		close(waiting.done)
	}
}

// applied reports whether the offsets, by partition, are above what is waited for.
func (w *waiter) applied(committed func(int32) int64) bool {
	for p, offset := range w.offsets {
		if committed(p) <= offset {
			return false
		}
	}
	return true
}
