package consumer

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// firstsBefore is how far before the first record of a batch the minutes that
	// have events are told apart. Ids older than that are looked up, unless they
	// are older than every event of the table.
	firstsBefore = 10 * time.Minute
	// firstsAfter is how far after it they are. It bounds what one question reads
	// where the log is far behind: the next one is asked when the records get there.
	firstsAfter = 2 * time.Hour
	// firstsPause is how long no question is asked after one that took too long.
	firstsPause = 10 * time.Minute
	// firstsMinutesMax bounds the minutes held of a partition.
	firstsMinutesMax = 20_000

	minuteMicros = int64(time.Minute / time.Microsecond)
)

// firsts tells which ids cannot have a row that is not held as a recent one, by
// the minute of their timestamp. A create of such an id is the first one, and
// an update of it has nothing to apply to, without a look-up; so an event that
// a client minted is held from its create on, as one that the server minted is.
//
// It is made when a partition is taken over, from the minutes that have rows
// then, and made anew when the records pass the window that was asked about.
// From then on this consumer sees every write of the partition, and holds what it
// leaves; when it forgets any of that, it counts the minute as occupied.
type firsts struct {
	// occupancy says which minutes had rows at the start, from the minute since
	// on and before the minute until.
	first, last, since, until int64
	empty                     bool
	occupied                  map[int64]struct{}
	// floor is the minute up to which all are taken for occupied.
	floor int64
	// renewMicros is the append time from which on another window is asked about,
	// in Unix microseconds.
	renewMicros int64
}

func newFirsts(o event.Occupancy) *firsts {
	f := &firsts{
		empty: o.Empty, first: o.FirstMicros / minuteMicros, last: o.LastMicros / minuteMicros,
		since: o.SinceMicros/minuteMicros + 1, until: math.MaxInt64, renewMicros: math.MaxInt64,
		occupied: make(map[int64]struct{}, len(o.Minutes)),
	}
	if o.UntilMicros != 0 {
		f.until = o.UntilMicros / minuteMicros
		f.renewMicros = o.UntilMicros - firstsBefore.Microseconds()
	}
	for _, m := range o.Minutes {
		f.occupied[m] = struct{}{}
	}
	return f
}

// free reports whether no row of the id exists but those held. Of a nil firsts
// nothing is known, and no id is free.
func (f *firsts) free(id event.ID) bool {
	if f == nil {
		return false
	}
	minute := id.Micros() / minuteMicros
	if _, ok := f.occupied[minute]; ok || minute <= f.floor {
		return false
	}
	return f.empty || minute < f.first || minute > f.last || minute >= f.since && minute < f.until
}

// forget counts the minute of an event whose row is held no more as occupied.
func (f *firsts) forget(id event.ID) {
	f.occupied[id.Micros()/minuteMicros] = struct{}{}
	if len(f.occupied) > firstsMinutesMax {
		for minute := range maps.Keys(f.occupied) {
			f.floor = max(f.floor, minute)
		}
		clear(f.occupied)
	}
}

// window is what the database is asked about: the minutes around the first
// record of some partitions.
type window struct {
	since      time.Time
	partitions []*recentPartition
}

// takeOver reads which minutes have rows, for the partitions of the items of
// which nothing is held yet, or whose records have passed what was asked about.
// It comes before any row of theirs is written. Where the database finds the
// question too expensive, every minute counts as occupied for a while: updates
// are then looked up, which is slower and never wrong.
func (c *Consumer) takeOver(ctx context.Context, items []item) error {
	now := time.Now()
	for _, w := range c.windows(items, now) {
		until := w.since.Add(firstsBefore + firstsAfter)
		untilMicros := until.UnixMicro()
		if !until.Before(now) {
			untilMicros = 0
		}
		occupancy, err := c.store.Occupancy(ctx, w.since.UnixMicro(), untilMicros)
		if errors.Is(err, event.ErrTooExpensive) {
			c.occupancyAfter = now.Add(firstsPause)
			c.metrics.minutesUnknown.Inc()
			c.log.Warn("the database took too long to say which minutes have events; updates are looked up until it is asked again",
				"since", w.since, "again_in", firstsPause, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range w.partitions {
			p.firsts = newFirsts(occupancy)
		}
	}
	return nil
}

// windows are what is to be asked before the items are folded: none while the
// pause after a question that was too expensive lasts. Partitions that are about
// as far share a window.
func (c *Consumer) windows(items []item, now time.Time) []window {
	if now.Before(c.occupancyAfter) {
		return nil
	}
	var (
		windows []window
		asked   []*recentPartition
		p       *recentPartition
	)
	for i := range items {
		at := items[i].record.AppendTime
		if i == 0 || items[i].record.Partition != items[i-1].record.Partition {
			p = c.recent.partition(items[i].record.Partition)
		}
		if f := p.firsts; f != nil && at.UnixMicro() < f.renewMicros || slices.Contains(asked, p) {
			continue
		}
		asked = append(asked, p)
		windows = append(windows, window{at.Add(-firstsBefore), []*recentPartition{p}})
	}
	slices.SortFunc(windows, func(a, b window) int { return a.since.Compare(b.since) })
	shared := windows[:0]
	for _, w := range windows {
		if n := len(shared); n > 0 && w.since.Sub(shared[n-1].since) < firstsAfter/2 {
			shared[n-1].partitions = append(shared[n-1].partitions, w.partitions...)
		} else {
			shared = append(shared, w)
		}
	}
	return shared
}
