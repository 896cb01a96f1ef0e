package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
)

// Watcher tells when writes are applied: when the group's committed offset is
// above theirs, since the consumer commits only what the database has. Which of
// them the consumer refused it learns from the dead-letter topic, which it
// follows from the time it starts.
type Watcher struct {
	cfg     Config
	topic   string
	letters string
	log     *slog.Logger
	cl      *kgo.Client // its consumer follows the dead letters
	adm     *kadm.Client
	wake    chan struct{}

	mu      sync.Mutex
	waiters map[*waiter]struct{}
	refused map[event.Receipt]*event.Error
	ring    []event.Receipt // the keys of refused, the oldest at place head
	head    int
	tail    int64         // the next offset of the dead-letter topic
	moved   chan struct{} // closed when tail moves
}

// waiter is one call of Wait: the highest offset it needs of each partition.
type waiter struct {
	offsets map[int32]int64
	done    chan struct{}
}

// NewWatcher returns a watcher of the events topic, whose partitions cfg must
// name. Its Wait answers while [Watcher.Run] runs.
func NewWatcher(cfg Config, log *slog.Logger) (*Watcher, error) {
	if cfg.Partitions == 0 {
		return nil, errPartitionsUnknown
	}
	cfg = cfg.WithDefaults()
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
		cl: cl, adm: kadm.NewClient(cl), wake: make(chan struct{}, 1),
		waiters: make(map[*waiter]struct{}), refused: make(map[event.Receipt]*event.Error),
		moved: make(chan struct{}),
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
		if w.idle() {
			select {
			case <-w.wake:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		if err := w.retry(ctx, "watch offsets", w.round); err != nil {
			return nil // ctx is over
		}
		if !pause(ctx, w.cfg.Watcher.PollInterval) {
			return nil
		}
	}
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

func (w *Watcher) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters) == 0
}

// begin starts to follow the dead letters at their end.
func (w *Watcher) begin(ctx context.Context) error {
	end, err := topicOffset(ctx, w.adm.ListEndOffsets, w.letters)
	if err != nil {
		return err
	}
	w.advance(end)
	w.cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{w.letters: {0: kgo.NewOffset().At(end)}})
	return nil
}

func (w *Watcher) follow(ctx context.Context) {
	for ctx.Err() == nil {
		fetches := w.cl.PollRecords(ctx, 1000)
		fetches.EachError(func(topic string, partition int32, err error) {
			if ctx.Err() == nil {
				w.log.Warn("fetch interrupted", "topic", topic, "partition", partition, "error", err)
			}
		})
		next := int64(-1)
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if isReplayed(r) {
				return
			}
			l, err := parseLetter(r)
			if err != nil {
				w.log.Warn("record of the dead-letter topic left out", "topic", r.Topic, "offset", r.Offset, "error", err)
				return
			}
			w.remember(l.Record.Receipt(), &event.Error{Code: l.Reason, Message: l.Detail})
		})
		if next >= 0 {
			w.advance(next)
		}
	}
}

func (w *Watcher) remember(r event.Receipt, e *event.Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.refused[r]; !ok {
		if len(w.ring) < w.cfg.Watcher.RefusedMax {
			w.ring = append(w.ring, r)
		} else {
			delete(w.refused, w.ring[w.head])
			w.ring[w.head] = r
			w.head = (w.head + 1) % len(w.ring)
		}
	}
	w.refused[r] = e
}

func (w *Watcher) advance(next int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tail = next
	close(w.moved)
	w.moved = make(chan struct{})
}

// round reads the group's offsets once, and answers those whose writes are applied.
func (w *Watcher) round(ctx context.Context) error {
	committed, err := fetchCommitted(ctx, w.adm, w.cfg.Group, w.topic)
	if err != nil {
		return err
	}
	var applied []*waiter
	w.mu.Lock()
	for waiting := range w.waiters {
		if waiting.applied(committed) {
			applied = append(applied, waiting)
		}
	}
	w.mu.Unlock()
	if len(applied) == 0 {
		return nil
	}
	// A refused record is in the dead-letter topic before its offset is
	// committed, so what the topic holds now says all about these writes.
	end, err := topicOffset(ctx, w.adm.ListEndOffsets, w.letters)
	if err != nil {
		return err
	}
	if err := w.reach(ctx, end); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiting := range applied {
		delete(w.waiters, waiting)
		close(waiting.done)
	}
	return nil
}

func (w *waiter) applied(committed map[int32]int64) bool {
	for p, offset := range w.offsets {
		if committed[p] <= offset {
			return false
		}
	}
	return true
}

// reach waits until the dead letters have been followed up to the offset.
func (w *Watcher) reach(ctx context.Context, offset int64) error {
	for {
		w.mu.Lock()
		tail, moved := w.tail, w.moved
		w.mu.Unlock()
		if tail >= offset {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("follow %s to offset %d, at %d: %w", w.letters, offset, tail, ctx.Err())
		}
	}
}

// Wait returns when every write of the receipts is applied or refused, or with
// ctx's error when that is over first. The answer has the length of receipts;
// an element is nil where the write was applied, else says why the consumer
// refused it. Receipts of older generations are applied. A receipt that this
// log cannot have given is an [*event.Error] of the field "receipt".
func (w *Watcher) Wait(ctx context.Context, receipts []event.Receipt) ([]*event.Error, error) {
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
	if len(waiting.offsets) > 0 {
		if err := w.join(ctx, waiting); err != nil {
			return nil, err
		}
	}
	answers := make([]*event.Error, len(receipts))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range receipts {
		answers[i] = w.refused[r]
	}
	return answers, nil
}

func (w *Watcher) join(ctx context.Context, waiting *waiter) error {
	w.mu.Lock()
	w.waiters[waiting] = struct{}{}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	select {
	case <-waiting.done:
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		delete(w.waiters, waiting)
		w.mu.Unlock()
		return ctx.Err()
	}
}
