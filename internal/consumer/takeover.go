package consumer

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// windowBefore is how far before the first record of a batch the window begins
	// that the database is asked about. Ids older than that are looked up, unless
	// they are older than every event of the table.
	windowBefore = 10 * time.Minute
	// windowAfter is how far after that record the window ends. It bounds what one
	// question reads where the log is far behind; the next question comes when the
	// records get there.
	windowAfter = 2 * time.Hour
	// occupancyPause is how long no question is asked after one that took too long.
	occupancyPause = 10 * time.Minute
)

// takenOver is what was read of a partition when it was taken over.
type takenOver struct {
	// refusalsRead says that Consumer.refused has the refused creates that the
	// partition's last owner left.
	refusalsRead bool
	// renewMicros is the append time, in Unix microseconds, of the first records
	// that need another question about the occupied minutes: 0 before the first
	// question, and very late where the window that was asked about has no end.
	renewMicros int64
}

// takenOver returns what was read of the partition, for the caller to change.
func (c *Consumer) takenOver(partition int32) *takenOver {
	t := c.partitions[partition]
	if t == nil {
		t = new(takenOver)
		c.partitions[partition] = t
	}
	return t
}

// forgetPartition forgets all that is held of a partition that is given up.
func (c *Consumer) forgetPartition(partition int32) {
	c.cache.Drop(partition)
	delete(c.partitions, partition)
}

// window is what the database is asked about: which minutes have rows around the
// first record of some partitions.
type window struct {
	since      time.Time
	partitions []int32
}

// takeOver asks the database which minutes have rows. It asks for the partitions of
// the items that were just taken over, and for those whose records are later than
// the window that was asked for last. It must come before any of their rows is
// written. If the query is too expensive for the database, updates are looked up
// for a while, which is slower and never wrong.
func (c *Consumer) takeOver(ctx context.Context, items []item) error {
	now := time.Now()
	for _, w := range c.windows(items, now) {
		until := w.since.Add(windowBefore + windowAfter)
		untilMicros, renewMicros := until.UnixMicro(), until.Add(-windowBefore).UnixMicro()
		if !until.Before(now) {
			untilMicros, renewMicros = 0, math.MaxInt64
		}
		occupancy, err := c.store.Occupancy(ctx, w.since.UnixMicro(), untilMicros)
		if errors.Is(err, event.ErrTooExpensive) {
			c.occupancyAfter = now.Add(occupancyPause)
			c.metrics.minutesUnknown.Inc()
			c.log.Warn("the database took too long to say which minutes have events; updates are looked up until it is asked again",
				"since", w.since, "again_in", occupancyPause, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range w.partitions {
			c.cache.SetOccupancy(p, occupancy)
			c.takenOver(p).renewMicros = renewMicros
		}
	}
	return nil
}

// windows returns the questions to ask before the items are folded: none during the
// pause after a question that was too expensive. Partitions whose records are of
// about the same time share a window.
func (c *Consumer) windows(items []item, now time.Time) []window {
	if now.Before(c.occupancyAfter) {
		return nil
	}
	var (
		windows []window
		asked   []int32
		renew   int64
	)
	for i := range items {
		at := items[i].record.AppendTime
		p := items[i].record.Partition
		if i == 0 || p != items[i-1].record.Partition {
			renew = c.takenOver(p).renewMicros
		}
		if at.UnixMicro() < renew || slices.Contains(asked, p) {
			continue
		}
		asked = append(asked, p)
		windows = append(windows, window{at.Add(-windowBefore), []int32{p}})
	}
	slices.SortFunc(windows, func(a, b window) int { return a.since.Compare(b.since) })
	shared := windows[:0]
	for _, w := range windows {
		if n := len(shared); n > 0 && w.since.Sub(shared[n-1].since) < windowAfter/2 {
			shared[n-1].partitions = append(shared[n-1].partitions, w.partitions...)
		} else {
			shared = append(shared, w)
		}
	}
	return shared
}
