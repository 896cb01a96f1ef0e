package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
	"github.com/sluicehq/sluice/internal/record"
)

// RevokedFunc is told that partitions are being given up. When they are not
// lost it may still commit them, and no other member has them before it
// returns; its ctx ends when the group waits no longer. Lost partitions may
// belong to another member already.
type RevokedFunc func(ctx context.Context, partitions []int32, lost bool)

// Consumer reads the events topic as a member of the group. Commit, Pause and
// Resume may be called beside Poll; Poll itself by one goroutine at a time.
// Close it with [Consumer.Close].
type Consumer struct {
	cfg     Config
	topic   string
	cl      *kgo.Client
	adm     *kadm.Client
	log     *slog.Logger
	revoked RevokedFunc
	// inflater bounds what the client has fetched.
	inflater *inflater
	seed     maphash.Seed
	// suspects: a partition may be at a batch that cannot be read. Owned by Poll.
	suspects bool

	mu    sync.Mutex
	epoch int64
	owned map[int32]*assignment
	fatal error
}

// assignment is a partition while this member has it.
type assignment struct {
	epoch int64
	// start and next are the offset that reading began at and the one to come;
	// -1 until the group's commit is known.
	start, next int64
	// leaders are the leader epochs of the records read and not committed, each
	// from the first record that has it. A commit carries its record's, so that
	// the next owner finds out if that part of the log has been replaced.
	leaders []leaderEpoch
	// suspect is set while the batch at next may be unreadable.
	suspect *suspicion
	// seenRead is how many batches the client had read at seenAt, when next was
	// seenNext.
	seenNext int64
	seenRead int
	seenAt   time.Time
}

type leaderEpoch struct {
	from  int64
	epoch int32
}

// NewConsumer returns a member of the group, which joins in the background.
//
// A group without commits begins at offset 0, if that is still there; see
// [ErrDataLoss]. Assignment is cooperative: a rebalance takes only the
// partitions that move.
func NewConsumer(cfg Config, revoked RevokedFunc, log *slog.Logger) (*Consumer, error) {
	cfg = cfg.WithDefaults()
	in, err := newInflater(cfg.Consumer.InflatedBytesMax)
	if err != nil {
		return nil, err
	}
	c := &Consumer{
		cfg: cfg, topic: cfg.EventsTopic(), log: log, revoked: revoked, inflater: in, seed: maphash.MakeSeed(),
		owned: make(map[int32]*assignment),
	}
	// The callbacks may come before the client is returned.
	c.mu.Lock()
	defer c.mu.Unlock()
	cl, err := newClient(&cfg, log, append(in.options(),
		clientMetrics(&cfg, "consumer"),
		kgo.ConsumerGroup(cfg.Group),
		kgo.ConsumeTopics(c.topic),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.AdjustFetchOffsetsFn(c.starting),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(c.onAssigned),
		kgo.OnPartitionsRevoked(c.onRevoked),
		kgo.OnPartitionsLost(c.onLost),
		kgo.RebalanceTimeout(cfg.Consumer.RebalanceTimeout),
		kgo.SessionTimeout(cfg.Consumer.SessionTimeout),
		kgo.HeartbeatInterval(cfg.Consumer.SessionTimeout/15),
		// To join again it does not take the connection that it joined on: only a
		// new one is known to be answered on. On one that swallows what is sent, it
		// would wait for RebalanceTimeout before it found out, as joining may take
		// that long.
		kgo.ConnIdleTimeout(requestTimeout),
		kgo.FetchMaxBytes(int32(cfg.Consumer.FetchBytesMax)),
		kgo.FetchMaxPartitionBytes(int32(cfg.Consumer.PartitionBytesMax)),
		// A transaction's end takes an offset.
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return nil, err
	}
	c.cl, c.adm = cl, kadm.NewClient(cl)
	return c, nil
}

// Poll waits for records until some are there or ctx ends, and returns at most
// recordsMax of them. The records of one partition come in the order of their
// offsets and without gaps. They are the caller's to keep; keeping one keeps
// the records in memory that it came with. An answer has at most
// [ConsumerConfig.InflatedBytesMax] and what the brokers sent uncompressed.
//
// A batch that the client cannot read for what is in it comes as a chunk of its
// own, once it was fetched several times with the same bytes; the log goes on
// after it.
//
// Every assignment of a partition has a new epoch, higher than those before. A
// chunk of an assignment that has ended meanwhile can be told by its epoch;
// to apply it is harmless, and [Consumer.Commit] leaves it out.
//
// An error other than ctx's is final: it wraps [ErrDataLoss], or
// [kgo.ErrClientClosed] after Close. What the client can retry is logged.
func (c *Consumer) Poll(ctx context.Context, recordsMax int) ([]record.Chunk, error) {
	for {
		if err := c.failure(); err != nil {
			return nil, err
		}
		wait := stallTimeout
		if c.suspects {
			wait = examinePause
		}
		bounded, cancel := context.WithTimeout(ctx, wait)
		fetches := c.cl.PollRecords(bounded, recordsMax)
		cancel()
		chunks := c.take(fetches)
		c.inflater.release()
		chunks = append(chunks, c.examineSuspects(ctx)...)
		// Only here may partitions move: they could not between the fetch and
		// its being marked with epochs.
		c.cl.AllowRebalance()
		switch {
		case len(chunks) > 0:
			return chunks, nil
		case c.failure() != nil:
		case fetches.IsClientClosed():
			return nil, kgo.ErrClientClosed
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
	}
}

func (c *Consumer) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatal
}

// fail keeps the first final error. c.mu is held.
func (c *Consumer) fail(err error) {
	if c.fatal == nil {
		c.fatal = err
	}
}

func (c *Consumer) lost(partition int32, format string, args ...any) error {
	return lostError(c.topic, partition, format, args...)
}

// take turns fetches into chunks, and checks that no offset is missing: on a
// topic that is neither compacted nor written to by transactions there are no
// gaps, so one that appears is records gone.
func (c *Consumer) take(fetches kgo.Fetches) []record.Chunk {
	var chunks []record.Chunk
	c.mu.Lock()
	defer c.mu.Unlock()
	fetches.EachPartition(func(ftp kgo.FetchTopicPartition) {
		if ftp.Err != nil {
			c.fetchFailed(ftp.Topic, ftp.Partition, ftp.Err)
		}
		a := c.owned[ftp.Partition]
		if a != nil && a.suspect != nil && len(ftp.Records) > 0 && ftp.Records[0].Offset <= a.next {
			a.suspect = nil // the client got past it
		}
		if len(ftp.Records) == 0 || a == nil || c.fatal != nil {
			return
		}
		size := 0
		for _, r := range ftp.Records {
			size += len(r.Key) + len(r.Value)
		}
		// The client's own memory of the batches is given back after this.
		copied := make([]byte, 0, size)
		keep := func(b []byte) []byte {
			n := len(copied)
			copied = append(copied, b...)
			return copied[n:len(copied):len(copied)]
		}
		chunk := record.Chunk{Partition: ftp.Partition, Epoch: a.epoch, Records: make([]record.Record, 0, len(ftp.Records))}
		for _, r := range ftp.Records {
			if r.Offset < a.next {
				continue
			}
			if r.Offset > a.next {
				// Records are lost, or the batch of these offsets has not all of them.
				a.suspect = &suspicion{}
				break
			}
			a.next++
			if n := len(a.leaders); n == 0 || a.leaders[n-1].epoch != r.LeaderEpoch {
				a.leaders = append(a.leaders, leaderEpoch{r.Offset, r.LeaderEpoch})
			}
			chunk.Next = a.next
			if r.Attrs.IsControl() {
				continue // the end of another producer's transaction
			}
			record := newRecord(c.cfg.Generation, r)
			record.Key, record.Value = keep(record.Key), keep(record.Value)
			chunk.Records = append(chunk.Records, record)
		}
		if chunk.Next > 0 {
			chunks = append(chunks, chunk)
		}
	})
	return chunks
}

// fetchFailed tells loss, which is final, from what the client goes on
// retrying by itself. c.mu is held.
func (c *Consumer) fetchFailed(topic string, partition int32, err error) {
	var loss *kgo.ErrDataLoss
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kgo.ErrClientClosed):
	case errors.Is(err, errInflatedFull): // it is fetched again
	case errors.Is(err, ErrDataLoss):
		c.fail(err)
	case errors.As(err, &loss):
		c.fail(c.lost(loss.Partition, "read up to offset %d, and the log was cut back to %d", loss.ConsumedTo, loss.ResetTo))
	case errors.Is(err, kerr.OffsetOutOfRange):
		next := int64(-1)
		if a := c.owned[partition]; a != nil {
			next = a.next
		}
		c.fail(c.lost(partition, "offset %d, which comes next, is out of the log's range", next))
	case isUnreadable(err):
		if a := c.owned[partition]; a != nil && a.suspect == nil && topic == c.topic {
			a.suspect = &suspicion{}
		}
		fallthrough
	default:
		c.log.Warn("fetch interrupted", "topic", c.topic, "partition", partition, "error", err)
	}
}

// newRecord is a record of the events topic of the generation.
func newRecord(generation int, r *kgo.Record) record.Record {
	return record.Record{
		Generation: generation, Partition: r.Partition, Offset: r.Offset,
		Key: r.Key, Value: r.Value, Version: recordVersion(r.Headers), AppendTime: r.Timestamp,
		ReplayOf: replayOf(r.Headers),
	}
}

// replayOf is the receipt of the write that a record repeats, zero where its
// headers name none.
func replayOf(headers []kgo.RecordHeader) event.Receipt {
	for _, h := range headers {
		if h.Key == headerReplayOf {
			r, _ := event.ParseReceipt(string(h.Value)) // zero if it is none
			return r
		}
	}
	return event.Receipt{}
}

// isUnreadable reports whether the error may be of a batch, and not of a broker
// or a connection.
func isUnreadable(err error) bool {
	var code *kerr.Error
	var session *kgo.ErrGroupSession
	return !errors.As(err, &code) && !errors.As(err, &session)
}

// recordVersion is the value of the version header, 0 where there is none that
// is a number.
func recordVersion(headers []kgo.RecordHeader) int {
	for _, h := range headers {
		if h.Key == headerVersion {
			if len(h.Value) == 1 && h.Value[0] >= '0' && h.Value[0] <= '9' {
				return int(h.Value[0] - '0')
			}
			n, err := strconv.Atoi(string(h.Value))
			if err != nil || n < 0 {
				return 0
			}
			return n
		}
	}
	return 0
}

func (c *Consumer) onAssigned(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
	partitions := assigned[c.topic]
	if len(partitions) == 0 {
		return
	}
	c.mu.Lock()
	for _, p := range partitions {
		c.epoch++
		c.owned[p] = &assignment{epoch: c.epoch, start: -1, next: -1}
	}
	c.mu.Unlock()
	slices.Sort(partitions)
	c.log.Info("partitions assigned", "topic", c.topic, "partitions", partitions)
}

// starting decides where each newly assigned partition is read from. Without
// it, a missing commit or one out of range would quietly move to some other place.
func (c *Consumer) starting(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Consumer.RebalanceTimeout/2)
	defer cancel()
	c.mu.Lock()
	adm := c.adm
	c.mu.Unlock()
	first, err := adm.ListStartOffsets(ctx, c.topic)
	if err == nil {
		err = first.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list start offsets of %s: %w", c.topic, err)
	}
	end, err := adm.ListEndOffsets(ctx, c.topic)
	if err == nil {
		err = end.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list end offsets of %s: %w", c.topic, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, o := range offsets[c.topic] {
		from, _ := first.Lookup(c.topic, p)
		to, _ := end.Lookup(c.topic, p)
		next := o.EpochOffset().Offset
		if next < 0 && fault.Planted(fault.ResetToLatest) {
			next = to.Offset
			offsets[c.topic][p] = kgo.NewOffset().At(next)
		}
		switch {
		case next < 0 && from.Offset > 0:
			err = c.lost(p, "group %q has no commit and the log begins at offset %d, not 0", c.cfg.Group, from.Offset)
		case next < 0:
			next = 0
			offsets[c.topic][p] = kgo.NewOffset().At(0)
		case next < from.Offset:
			err = c.lost(p, "group %q is at offset %d and the log begins at %d", c.cfg.Group, next, from.Offset)
		case next > to.Offset:
			err = c.lost(p, "group %q is at offset %d and the log ends at %d", c.cfg.Group, next, to.Offset)
		}
		if err != nil {
			c.fail(err)
			return nil, err
		}
		if a := c.owned[p]; a != nil {
			a.start, a.next = next, next
		}
	}
	return offsets, nil
}

func (c *Consumer) onRevoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	partitions := c.held(revoked)
	if len(partitions) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Consumer.RebalanceTimeout*9/10)
	defer cancel()
	if c.revoked != nil {
		c.revoked(ctx, partitions, false)
	}
	c.drop(partitions)
	c.log.Info("partitions revoked", "topic", c.topic, "partitions", partitions)
}

func (c *Consumer) onLost(ctx context.Context, _ *kgo.Client, lost map[string][]int32) {
	partitions := c.held(lost)
	if len(partitions) == 0 {
		return
	}
	c.drop(partitions)
	if c.revoked != nil {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.Consumer.RebalanceTimeout*9/10)
		defer cancel()
		c.revoked(ctx, partitions, true)
	}
	c.log.Warn("partitions lost", "topic", c.topic, "partitions", partitions)
}

func (c *Consumer) held(m map[string][]int32) []int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var held []int32
	for _, p := range m[c.topic] {
		if c.owned[p] != nil {
			held = append(held, p)
		}
	}
	slices.Sort(held)
	return held
}

func (c *Consumer) drop(partitions []int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range partitions {
		delete(c.owned, p)
	}
}

// Commit records the next offset to read of each partition, and returns once
// the group has them. Partitions that this member does not have any more are
// left out, as are offsets before the one that its assignment began at: their
// owner reads them again, or has committed more.
//
// The error wraps [ErrFenced] where the group has gone on without this member.
// The same Commit may be tried again: it succeeds once the member is back, for
// the partitions that it still has.
func (c *Consumer) Commit(ctx context.Context, offsets map[int32]int64) error {
	commit := make(map[int32]kgo.EpochOffset, len(offsets))
	c.mu.Lock()
	for p, next := range offsets {
		if a := c.owned[p]; a != nil && a.start >= 0 && next >= a.start {
			commit[p] = kgo.EpochOffset{Epoch: a.leaderOf(next - 1), Offset: next}
		}
	}
	c.mu.Unlock()
	if len(commit) == 0 {
		return nil
	}
	err := c.commit(ctx, commit)
	if isFenced(err) {
		// The member cannot join again while Poll's last answer holds a rebalance up.
		c.cl.AllowRebalance()
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	if err != nil {
		return fmt.Errorf("commit offsets of %s: %w", c.topic, err)
	}
	return nil
}

func (c *Consumer) commit(ctx context.Context, offsets map[int32]kgo.EpochOffset) error {
	var err error
	// The client waits for the end of this call and ends it with ctx.
	c.cl.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{c.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, e error) {
			if err = e; err != nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					if e := kerr.ErrorForCode(p.ErrorCode); e != nil && err == nil {
						err = fmt.Errorf("partition %d: %w", p.Partition, e)
					}
				}
			}
		})
	return err
}

// leaderOf is the leader epoch of the record at the offset, -1 where it is not
// known. It forgets those before. The consumer's mu is held.
func (a *assignment) leaderOf(offset int64) int32 {
	for len(a.leaders) > 1 && a.leaders[1].from <= offset {
		a.leaders = a.leaders[1:]
	}
	if len(a.leaders) == 0 || a.leaders[0].from > offset {
		return -1
	}
	return a.leaders[0].epoch
}

// Pause stops the fetching of all partitions, also of those that are assigned
// later, until [Consumer.Resume]. Poll goes on taking part in the group.
func (c *Consumer) Pause() { c.cl.PauseFetchTopics(c.topic) }

// Resume ends [Consumer.Pause].
func (c *Consumer) Resume() { c.cl.ResumeFetchTopics(c.topic) }

// Leads reports whether this member has partition 0, which one member of a group
// has: for work that one process is to do, and that two may do for a moment.
func (c *Consumer) Leads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owned[0] != nil
}

// Lag is, for every partition of the topic, the number of records that the
// group has not committed.
func (c *Consumer) Lag(ctx context.Context) (map[int32]int64, error) {
	end, err := c.adm.ListEndOffsets(ctx, c.topic)
	if err == nil {
		err = end.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list end offsets of %s: %w", c.topic, err)
	}
	committed, err := fetchCommitted(ctx, c.adm, c.cfg.Group, c.topic)
	if err != nil {
		return nil, err
	}
	lag := make(map[int32]int64)
	for p, o := range end[c.topic] {
		lag[p] = max(0, o.Offset-committed[p])
	}
	return lag, nil
}

// fetchCommitted reads the group's commits; a partition without one is absent.
func fetchCommitted(ctx context.Context, adm *kadm.Client, group, topic string) (map[int32]int64, error) {
	resp, err := adm.FetchOffsets(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	committed := make(map[int32]int64)
	for p, o := range maps.All(resp[topic]) {
		if o.At >= 0 {
			committed[p] = o.At
		}
	}
	return committed, nil
}

// Close leaves the group, so that other members take over at once, and closes
// the consumer. Partitions still held are given up first, as in a rebalance.
func (c *Consumer) Close(ctx context.Context) error {
	c.cl.AllowRebalance()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.cl.CloseAllowingRebalance()
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leave group %s: %w", c.cfg.Group, ctx.Err())
	}
}
