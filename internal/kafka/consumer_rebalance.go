package kafka

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

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

// starting decides where reading begins in each newly assigned partition. The
// client's own choice would silently begin elsewhere after a commit that is
// missing or out of range.
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
