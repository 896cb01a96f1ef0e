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

// RevokedFunc is called when this member gives partitions up. If they are not
// lost, it may still commit their offsets, and no other member gets them before
// it returns; ctx ends when the group waits no longer. Lost partitions may
// already belong to another member.
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
	// inflater bounds the memory of the fetched batches.
	inflater *inflater
	seed     maphash.Seed
	// suspects says that a partition may be at a batch that cannot be read. Only
	// Poll uses it.
	suspects bool

	mu    sync.Mutex
	epoch int64
	owned map[int32]*assignment
	fatal error
}

// assignment is a partition while this member has it.
type assignment struct {
	epoch int64
	// start is the offset that reading began at, and next the offset that comes
	// next. Both are -1 until the group's commit is known.
	start, next int64
	// leaders are the leader epochs of the records that are read and not yet
	// committed, each with its first record. A commit carries the epoch of its
	// record, so that the next owner notices if that part of the log was replaced.
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
// A group without commits begins at offset 0. If offset 0 is gone, see
// [ErrDataLoss]. Assignment is cooperative: a rebalance interrupts only the
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
		// To join again, the member must not use the connection that it joined on. A
		// connection that swallows requests would be noticed only after
		// RebalanceTimeout, because joining may take that long. So idle connections
		// end early.
		kgo.ConnIdleTimeout(requestTimeout),
		kgo.FetchMaxBytes(int32(cfg.Consumer.FetchBytesMax)),
		kgo.FetchMaxPartitionBytes(int32(cfg.Consumer.PartitionBytesMax)),
		// The end of a transaction takes an offset too.
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return nil, err
	}
	c.cl, c.adm = cl, kadm.NewClient(cl)
	return c, nil
}

// Poll waits until there are records or ctx ends, and returns at most recordsMax
// of them. The records of one partition come in the order of their offsets and
// without gaps. The caller may keep them; keeping one record keeps the records
// of its chunk in memory. The records take at most
// [ConsumerConfig.InflatedBytesMax], plus those that the brokers sent
// uncompressed.
//
// A batch whose content the client cannot read comes as a chunk of its own, once
// it was fetched several times with the same bytes. Reading goes on after it.
//
// Every assignment of a partition has a higher epoch than those before. The epoch
// of a chunk shows whether its assignment has ended meanwhile. Applying such a
// chunk is harmless, and [Consumer.Commit] ignores its offsets.
//
// An error other than that of ctx is final. It wraps [ErrDataLoss], or
// [kgo.ErrClientClosed] after Close. Errors that the client retries are logged.
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
		// Partitions may move only here, and not between a fetch and the marking of
		// its chunks with epochs.
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

// fail records the first final error. The caller holds c.mu.
func (c *Consumer) fail(err error) {
	if c.fatal == nil {
		c.fatal = err
	}
}

func (c *Consumer) lost(partition int32, format string, args ...any) error {
	return lostError(c.topic, partition, format, args...)
}

// take turns fetches into chunks and checks that no offset is missing. A topic
// that is not compacted and not written by transactions has no gaps, so a gap
// means that records are gone.
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

// fetchFailed handles the error of a fetch. Loss of data is final; the client
// retries everything else by itself. The caller holds c.mu.
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
		c.log.Warn("fetch failed; the client tries again", "topic", c.topic, "partition", partition, "error", err)
	}
}

// isUnreadable reports whether the error may come from the content of a batch
// rather than from a broker or a connection.
func isUnreadable(err error) bool {
	var code *kerr.Error
	var session *kgo.ErrGroupSession
	return !errors.As(err, &code) && !errors.As(err, &session)
}

// Pause stops fetching all partitions until [Consumer.Resume], also those that are
// assigned later. Poll keeps the member in the group.
func (c *Consumer) Pause() { c.cl.PauseFetchTopics(c.topic) }

// Resume ends [Consumer.Pause].
func (c *Consumer) Resume() { c.cl.ResumeFetchTopics(c.topic) }

// Leads reports whether this member has partition 0. One member of a group has
// it, so it may do work that one process should do. For a moment, two members
// may both believe that they have it.
func (c *Consumer) Leads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owned[0] != nil
}

// Close leaves the group, so that other members take over at once, and closes the
// consumer. It first gives up the member's partitions, as a rebalance does.
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
