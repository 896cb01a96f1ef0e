package kafka

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

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

// isUnreadable reports whether the error may be of a batch, and not of a broker
// or a connection.
func isUnreadable(err error) bool {
	var code *kerr.Error
	var session *kgo.ErrGroupSession
	return !errors.As(err, &code) && !errors.As(err, &session)
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
