// Package consumer decides what becomes of each record of the events topic:
// it folds batches of writes into rows, has them inserted, then has their
// offsets committed. It orders these steps and does no I/O of its own.
//
// What a batch leaves behind depends on the log alone, however the log is cut
// into batches, however often any part of it is replayed, and by whom:
//
//   - The first create of an id wins whole. Every create leaves rows whose
//     versions rank the earlier one higher, without a look-up of the other.
//   - An update applies to an event whose winning create is earlier in the log,
//     which its core row says; otherwise it is refused, now and by any replay.
//   - A delete is final: its tombstones outrank all else.
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/consumer/rowcache"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
	"github.com/sluicehq/sluice/internal/record"
)

// Source is the events topic, as one member of the consumer group sees it.
type Source interface {
	// Poll waits for at most recordsMax records. An error other than ctx's is
	// final: records were lost, or the group is unusable.
	Poll(ctx context.Context, recordsMax int) ([]record.Chunk, error)
	// Commit records the next offset to read of each partition.
	Commit(ctx context.Context, next map[int32]int64) error
	// Pause stops fetching until Resume.
	Pause()
	Resume()
}

// Store is the database. Its errors are retried, but for those that wrap
// [event.ErrRejected].
type Store interface {
	// Cores returns the newest core row of each of the events that has one.
	Cores(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error)
	// CoreStates is Cores with only ID, Created, Version and Deleted.
	CoreStates(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error)
	// Aliases returns the newest row of each of the aliases that has one.
	Aliases(ctx context.Context, aliases []string) (map[string]event.AliasRow, error)
	// Refused returns the refused creates of ids that are not behind an alias, up
	// to rowsMax; more says that there are others.
	Refused(ctx context.Context, rowsMax int) (refused []event.AliasRow, more bool, err error)
	// Occupancy tells which minutes of the window have events, tombstones too. A
	// window without an end has an untilMicros of 0. The error wraps
	// [event.ErrTooExpensive] where the answer would take too much.
	Occupancy(ctx context.Context, sinceMicros, untilMicros int64) (event.Occupancy, error)
	// Insert writes the rows. When the core rows can be read, so can the others.
	Insert(ctx context.Context, rows *event.Rows) error
}

// DeadLetters takes refused records.
type DeadLetters interface {
	// Send returns once the letters are durable.
	Send(ctx context.Context, letters []record.DeadLetter) error
}

// Config bounds what a consumer does.
type Config struct {
	// BatchRecordsMax is the most records of one flush. Default 50,000.
	BatchRecordsMax int
	// BatchBytesMax is the most bytes of one flush, estimated. Default 64 MiB.
	// One such batch is in flight while another accumulates, and an answer of the
	// source waits: the three are what the consumer holds of the log.
	BatchBytesMax int
	// PollBytesMax is the most bytes of one answer of the source, which a flush
	// leaves room for. Default 20 MiB. Where it is not below BatchBytesMax, a flush
	// may be larger by it.
	PollBytesMax int
	// FlushDelayQuiet is how long the first record of a small batch waits for
	// others, or longer where the database is slow: see flushShare. Default 60 ms.
	FlushDelayQuiet time.Duration
	// FlushDelayBusy is the same for a batch of BusyRecords or more, so that
	// blocks are large when there is much to write; but it waits no longer than
	// FlushDelayQuiet for a next record. Default 400 ms.
	FlushDelayBusy time.Duration
	// BusyRecords is the size from which a batch counts as busy. Default 200.
	BusyRecords int
	// RecentBytesMax bounds the memory of the rows held for updates, see
	// [rowcache.Cache]: about 150 bytes a row where events share their conversation's
	// metadata. A row with more than a sixteenth of it is not held. Default 96 MiB.
	RecentBytesMax int
	// RetryDelayMin and RetryDelayMax bound the pause between tries, which
	// doubles with each. Defaults 100 ms and 10 s.
	RetryDelayMin, RetryDelayMax time.Duration
	// StopTimeout bounds the last flush when the consumer stops. Default 15 s.
	StopTimeout time.Duration
}

// flushShare bounds the flushes of small batches to one in so many parts of the
// time. A flush costs the database about the same for one record and for a
// thousand. Without the bound, a trickle of single records would keep it busy: 3,000
// records a second, flushed every 60 ms, kept a slow machine of two cores busy.
const flushShare = 4

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		BatchRecordsMax: 50_000, BatchBytesMax: 64 << 20, PollBytesMax: 20 << 20,
		FlushDelayQuiet: 60 * time.Millisecond, FlushDelayBusy: 400 * time.Millisecond, BusyRecords: 200,
		RecentBytesMax: 96 << 20,
		RetryDelayMin:  100 * time.Millisecond, RetryDelayMax: 10 * time.Second,
		StopTimeout: 15 * time.Second,
	}
}

// Validate reports every field that is out of range.
func (cfg Config) Validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"BatchRecordsMax", int64(cfg.BatchRecordsMax)},
		{"BatchBytesMax", int64(cfg.BatchBytesMax)},
		{"PollBytesMax", int64(cfg.PollBytesMax)},
		{"FlushDelayQuiet", int64(cfg.FlushDelayQuiet)},
		{"FlushDelayBusy", int64(cfg.FlushDelayBusy)},
		{"BusyRecords", int64(cfg.BusyRecords)},
		{"RecentBytesMax", int64(cfg.RecentBytesMax)},
		{"RetryDelayMin", int64(cfg.RetryDelayMin)},
		{"RetryDelayMax", int64(cfg.RetryDelayMax)},
		{"StopTimeout", int64(cfg.StopTimeout)},
	} {
		if f.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: must be above 0", f.name))
		}
	}
	if cfg.FlushDelayBusy < cfg.FlushDelayQuiet {
		errs = append(errs, errors.New("FlushDelayBusy: must not be below FlushDelayQuiet"))
	}
	if cfg.RetryDelayMax < cfg.RetryDelayMin {
		errs = append(errs, errors.New("RetryDelayMax: must not be below RetryDelayMin"))
	}
	return errors.Join(errs...)
}

// Consumer applies the events topic to the database. Create it with [New], hand
// its [Consumer.Revoked] to the source, and call [Consumer.Run] once.
type Consumer struct {
	cfg     Config
	source  Source
	store   Store
	letters DeadLetters
	log     *slog.Logger
	metrics *metrics

	revocations chan revocation
	stopped     chan struct{}

	// Owned by the goroutine that runs Run.
	filling *batch
	spare   *batch
	// flushTook is the time of the last flush.
	flushTook time.Duration
	// epochs has the epoch of the latest chunk of each partition held.
	epochs map[int32]int64
	// ended has the latest epoch of each partition given up.
	ended map[int32]int64
	// stale are partitions that were lost and taken over again: what is held of them
	// is forgotten before the next flush.
	stale map[int32]struct{}

	// Owned by the goroutine of the flush in flight, otherwise by the one that runs Run.
	fold  *fold
	cache *rowcache.Cache
	// partitions has what was read of the partitions held when they were taken over.
	partitions map[int32]*takenOver
	aliases    map[string]batchAlias
	needs      map[event.ID]bool
	refused    refusals
	// occupancyAfter is when the store is asked again which minutes have rows, after
	// it found the question too expensive.
	occupancyAfter time.Time
	// sent are the dead letters of the flush in flight, each of which is sent
	// once, however often its batch is halved.
	sent map[event.Receipt]struct{}
}

type revocation struct {
	ctx        context.Context //nolint:containedctx // the caller's, for as long as it waits
	partitions []int32
	lost       bool
	done       chan struct{}
}

// flight is a flush that is under way.
type flight struct {
	batch  *batch
	begun  time.Time
	cancel context.CancelFunc
	done   chan error
}

// New returns a consumer. The error is of cfg.
func New(cfg Config, source Source, store Store, letters DeadLetters, log *slog.Logger, reg prometheus.Registerer) (*Consumer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("consumer config: %w", err)
	}
	return &Consumer{
		cfg: cfg, source: source, store: store, letters: letters, log: log, metrics: newMetrics(reg),
		revocations: make(chan revocation), stopped: make(chan struct{}),
		filling: newBatch(), spare: newBatch(),
		epochs: make(map[int32]int64), ended: make(map[int32]int64), stale: make(map[int32]struct{}),
		fold: newFold(), cache: rowcache.New(cfg.RecentBytesMax), partitions: make(map[int32]*takenOver),
		aliases: make(map[string]batchAlias), needs: make(map[event.ID]bool),
		refused: newRefusals(),
		sent:    make(map[event.Receipt]struct{}),
	}, nil
}

// Revoked says that partitions are being given up, or were lost to another
// member. When they are not lost it returns once the flush in flight is
// committed, or ctx is over, or the consumer's time to stop; records that wait
// for the next flush are left to the next owner.
func (c *Consumer) Revoked(ctx context.Context, partitions []int32, lost bool) {
	r := revocation{ctx: ctx, partitions: partitions, lost: lost, done: make(chan struct{})}
	select {
	case c.revocations <- r:
		<-r.done
	case <-c.stopped:
	}
}

// Run applies records until ctx ends, then flushes what it has and returns
// nil. It returns an error only where going on would lose records. It must be
// called once.
func (c *Consumer) Run(ctx context.Context) error {
	defer close(c.stopped)
	fetched := make(chan []record.Chunk)
	failed := make(chan error, 1)
	fetchCtx, stopFetch := context.WithCancel(ctx)
	defer stopFetch()
	go c.fetch(fetchCtx, fetched, failed)

	var (
		current *flight
		flushed <-chan error
		fatal   error
	)
	due := time.NewTimer(0)
	defer due.Stop()
	for fatal == nil && ctx.Err() == nil {
		if current == nil && !c.filling.empty() {
			if wait := c.delay(time.Now()); wait > 0 {
				due.Reset(wait)
			} else {
				current = c.startFlush(ctx)
				flushed = current.done
			}
		}
		incoming := fetched
		if c.full() {
			incoming = nil
		}
		select {
		case chunks := <-incoming:
			c.add(chunks)
		case <-due.C:
		case err := <-flushed:
			if err != nil {
				// To go on would have the next commit pass over the batch.
				panic("BUG: a flush that nobody broke off failed: " + err.Error())
			}
			c.flushDone(current)
			current, flushed = nil, nil
		case r := <-c.revocations:
			current = c.revoke(ctx, r, current)
			fault.Point(fault.Revoked)
			flushed = nil
			if current != nil {
				flushed = current.done
			}
			close(r.done)
		case fatal = <-failed:
		case <-ctx.Done():
		}
	}
	stopFetch()
	c.finish(ctx, current)
	if ctx.Err() != nil {
		return nil
	}
	return fatal
}

// fetch polls, handing over one answer at a time: while the batch is full it
// waits, and the source's own buffers bound what is fetched.
func (c *Consumer) fetch(ctx context.Context, fetched chan<- []record.Chunk, failed chan<- error) {
	for {
		chunks, err := c.source.Poll(ctx, c.cfg.BatchRecordsMax/4+1)
		if err != nil {
			if ctx.Err() == nil {
				failed <- fmt.Errorf("poll: %w", err)
			}
			return
		}
		if len(chunks) == 0 {
			continue
		}
		fault.Point(fault.Polled)
		select {
		case fetched <- chunks:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Consumer) full() bool {
	bytesMax := c.cfg.BatchBytesMax
	if room := c.cfg.PollBytesMax; room < bytesMax {
		bytesMax -= room
	}
	return c.filling.len() >= c.cfg.BatchRecordsMax || c.filling.bytes >= bytesMax
}

// delay is how long the filling batch may still wait.
func (c *Consumer) delay(now time.Time) time.Duration {
	if c.full() {
		return 0
	}
	if c.filling.len() < c.cfg.BusyRecords {
		quiet := min(max(c.cfg.FlushDelayQuiet, flushShare*c.flushTook), c.cfg.FlushDelayBusy)
		return quiet - now.Sub(c.filling.oldest)
	}
	// No more may be coming.
	return min(c.cfg.FlushDelayBusy-now.Sub(c.filling.oldest), c.cfg.FlushDelayQuiet-now.Sub(c.filling.latest))
}

// add puts chunks into the filling batch, except those of an assignment that has
// ended.
func (c *Consumer) add(chunks []record.Chunk) {
	now := time.Now()
	for i := range chunks {
		chunk := &chunks[i]
		p := chunk.Partition
		if chunk.Epoch <= c.ended[p] || chunk.Epoch < c.epochs[p] {
			continue
		}
		if held := c.epochs[p]; held != 0 && held < chunk.Epoch {
			c.filling.drop(p)
			c.stale[p] = struct{}{}
		}
		c.epochs[p] = chunk.Epoch
		for j := range chunk.Records {
			c.filling.add(&chunk.Records[j], now)
		}
		if chunk.Unreadable != nil {
			c.filling.addUnreadable(chunk.Unreadable, now)
		} else if chunk.Next > 0 {
			c.filling.pass(p, chunk.Next, now)
		}
		c.metrics.records.Add(float64(len(chunk.Records)))
	}
}

// startFlush starts the flush of the filling batch. The flush outlives ctx: when
// the consumer stops, a flush in flight is finished, within StopTimeout.
func (c *Consumer) startFlush(ctx context.Context) *flight {
	for p := range c.stale {
		c.forgetPartition(p)
	}
	clear(c.stale)
	b := c.filling
	c.filling, c.spare = c.spare, nil
	return c.flushInBackground(ctx, b)
}

func (c *Consumer) flushInBackground(ctx context.Context, b *batch) *flight {
	flushCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{batch: b, begun: time.Now(), cancel: cancel, done: make(chan error, 1)}
	go func() {
		defer cancel()
		f.done <- c.flush(flushCtx, b)
	}()
	return f
}

// flushDone keeps the batch of a finished flush as the spare one.
func (c *Consumer) flushDone(f *flight) {
	c.flushTook = time.Since(f.begun)
	f.batch.reset()
	c.spare = f.batch
}

// revoke gives partitions up. A flush that must be broken off starts again with
// what is left of its batch, which it returns.
func (c *Consumer) revoke(ctx context.Context, r revocation, current *flight) *flight {
	if current != nil {
		var err error
		if r.lost {
			current.cancel()
			err = <-current.done
		} else {
			select {
			case err = <-current.done:
			case <-r.ctx.Done():
				current.cancel()
				err = <-current.done
			case <-ctx.Done():
				// Stopping has a bound, which r.ctx may lack.
				current.cancel()
				err = <-current.done
			}
		}
		if err == nil {
			c.flushDone(current)
			current = nil
		}
	}
	for _, p := range r.partitions {
		c.ended[p] = max(c.ended[p], c.epochs[p])
		delete(c.epochs, p)
		c.filling.drop(p)
		c.forgetPartition(p)
		if current != nil {
			current.batch.drop(p)
		}
	}
	switch {
	case current == nil:
		return nil
	case current.batch.empty():
		c.flushDone(current)
		return nil
	}
	return c.flushInBackground(ctx, current.batch)
}

// finish flushes what is left, in at most StopTimeout, while answering
// revocations, which need no more than that.
func (c *Consumer) finish(ctx context.Context, current *flight) {
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.StopTimeout)
	defer cancel()
	for {
		if current == nil {
			if c.filling.empty() {
				return
			}
			current = c.startFlush(stopCtx)
		}
		select {
		case err := <-current.done:
			c.flushDone(current)
			current = nil
			if err != nil {
				return
			}
		case r := <-c.revocations:
			current = c.revoke(stopCtx, r, current)
			close(r.done)
		case <-stopCtx.Done():
			current.cancel()
			left := c.filling.len()
			if err := <-current.done; err != nil {
				left += current.batch.len()
			}
			c.log.Warn("stopped before the last flush", "records", left)
			return
		}
	}
}
