package consumer

import (
	"context"
	"maps"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// firstsWindow is how far before the first record of a batch the minutes
	// that have events are told apart. Ids older than that are looked up, unless
	// they are older than every event of the table.
	firstsWindow = 10 * time.Minute
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
// then. From then on this consumer sees every write of the partition, and holds
// what it leaves; when it forgets any of that, it counts the minute as occupied.
type firsts struct {
	// occupancy says which minutes had rows at the start.
	first, last, since int64
	empty              bool
	occupied           map[int64]struct{}
	// floor is the minute up to which all are taken for occupied.
	floor int64
}

func newFirsts(o event.Occupancy) *firsts {
	f := &firsts{
		empty: o.Empty, first: o.FirstMicros / minuteMicros, last: o.LastMicros / minuteMicros,
		since: o.SinceMicros/minuteMicros + 1, occupied: make(map[int64]struct{}, len(o.Minutes)),
	}
	for _, m := range o.Minutes {
		f.occupied[m] = struct{}{}
	}
	return f
}

// free reports whether no row of the id exists but those held.
func (f *firsts) free(id event.ID) bool {
	minute := id.Micros() / minuteMicros
	if _, ok := f.occupied[minute]; ok || minute <= f.floor {
		return false
	}
	return f.empty || minute < f.first || minute > f.last || minute >= f.since
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

// takeOver reads which minutes have rows, for the partitions of the items of
// which nothing is held yet. It comes before any row of theirs is written.
func (c *Consumer) takeOver(ctx context.Context, items []item) error {
	var fresh []*recentPartition
	since := int64(0)
	for i := range items {
		rec := items[i].record
		p := c.recent.partition(rec.Partition)
		if p.firsts != nil || len(fresh) > 0 && fresh[len(fresh)-1] == p {
			continue
		}
		fresh = append(fresh, p)
		if at := rec.AppendTime.Add(-firstsWindow).UnixMicro(); since == 0 || at < since {
			since = at
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	occupancy, err := c.store.Occupancy(ctx, since)
	if err != nil {
		return err
	}
	for _, p := range fresh {
		if p.firsts == nil {
			p.firsts = newFirsts(occupancy)
		}
	}
	return nil
}
