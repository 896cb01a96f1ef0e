package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

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
				w.log.Warn("fetch interrupted", "topic", topic, "partition", partition, "error", err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			l, err := parseLetter(r)
			isLetter := err == nil && !isReplayed(r)
			if err != nil && !isReplayed(r) {
				w.log.Warn("record of the dead-letter topic left out", "topic", r.Topic, "offset", r.Offset, "error", err)
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

// What [listOffset] can be asked for instead of a time.
const (
	offsetEnd   = -1
	offsetFirst = -2
)

// listOffset asks for an offset of a topic's partition 0: the first whose record
// is of the time, in Unix milliseconds, or later; -1 where there is none.
func listOffset(ctx context.Context, cl *kgo.Client, topic string, millis int64) (int64, error) {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Timestamp = millis
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.Topics = -1, append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("list offsets of %s: partition 0 is missing", topic)
	}
	listed := &resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(listed.ErrorCode); err != nil {
		return 0, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	return listed.Offset, nil
}

// Wait returns nil when every write of the receipts is applied or refused, or
// ctx's error when that is over first. Writes of older generations are applied.
// A receipt that this log cannot have given is an [*event.Error] of the field
// "receipt".
func (w *Watcher) Wait(ctx context.Context, receipts []event.Receipt) error {
	waiting, err := w.newWaiter(receipts)
	if err != nil || len(waiting.offsets) == 0 {
		return err
	}
	return w.join(ctx, waiting)
}

// Mark is for a caller of [Watcher.Outcomes], who takes it before the writes are
// made: it tells how far the dead letters are known then. The refusal of a
// later write comes after it.
func (w *Watcher) Mark() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun {
		return 0
	}
	return w.tail
}

// Outcomes is [Watcher.Wait], and tells which of the writes the consumer
// refused: the element of refused is why, nil for a write that was applied. Mark
// is what [Watcher.Mark] said before the writes were made.
//
// Where known is false, there may be refusals that the watcher has not seen, so
// that nil says nothing. That is so where the writes were made before the
// watcher had begun to follow the dead letters and there are too many of these
// for it to look back, where more than [WatcherConfig.RefusedMax] other records
// were refused between the making of the writes and the call, and where dead
// letters were lost.
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

// join waits until round answers, or ctx is over.
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

// enter has the waiter answered by a later round. It reports false where the
// last one tells already that all is applied.
func (w *Watcher) enter(waiting *waiter) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	seen := w.pace.polled.Add(w.pace.most).After(now) // the last round tells of now
	if seen && !waiting.writes && waiting.applied(w.pace.committed) {
		return false
	}
	waiting.since, waiting.quiet = now, true
	// Behind others that wait, nothing is due sooner.
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

// leave ends the waiting, unless it has ended already, which it reports as false.
// w.mu is held.
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
