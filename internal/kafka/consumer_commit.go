package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Commit commits the next offset to read of each partition, and returns when the
// group has them. It ignores partitions that this member does not have any more,
// and offsets before the start of its assignment: the owner of such a partition
// reads the records again, or has committed more.
//
// The error wraps [ErrFenced] if the group has gone on without this member. The
// same Commit may be tried again. It succeeds when the member is back, for the
// partitions that it still has.
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
		// The member cannot join again while the last Poll blocks a rebalance.
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
	// CommitOffsetsSync returns after the callback, and ends with ctx.
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

// leaderOf returns the leader epoch of the record at the offset, or -1 if it is
// not known. It forgets the earlier epochs. The caller holds the consumer's mu.
func (a *assignment) leaderOf(offset int64) int32 {
	for len(a.leaders) > 1 && a.leaders[1].from <= offset {
		a.leaders = a.leaders[1:]
	}
	if len(a.leaders) == 0 || a.leaders[0].from > offset {
		return -1
	}
	return a.leaders[0].epoch
}

// Lag returns the number of records that the group has not committed, for every
// partition of the topic.
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
