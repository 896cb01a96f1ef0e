package rowcache

import (
	"maps"
	"math"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// occupiedMax bounds the occupied minutes that are held of a partition.
	occupiedMax = 20_000

	minuteMicros = int64(time.Minute / time.Microsecond)
)

// absent tells, by the minute of their timestamp, which ids have no row but
// those that the cache holds. The database says once which minutes have rows, the
// occupied ones. From then on every row of the partition goes through the cache,
// and the minute of a row that the cache forgets counts as occupied.
type absent struct {
	// The minutes first to last are those of the first and the last row at the
	// start; empty says that there were no rows. The minutes since to until, the
	// latter excluded, are those of which occupied has all that had rows.
	first, last, since, until int64
	empty                     bool
	occupied                  map[int64]struct{}
	// floor is the minute up to which all minutes count as occupied.
	floor int64
}

func newAbsent(o event.Occupancy) *absent {
	a := &absent{
		empty: o.Empty, first: o.FirstMicros / minuteMicros, last: o.LastMicros / minuteMicros,
		since: o.SinceMicros/minuteMicros + 1, until: math.MaxInt64,
		occupied: make(map[int64]struct{}, len(o.Minutes)),
	}
	if o.UntilMicros != 0 {
		a.until = o.UntilMicros / minuteMicros
	}
	for _, m := range o.Minutes {
		a.occupied[m] = struct{}{}
	}
	return a
}

// contains reports whether no row of the id exists but one that the cache holds.
// A nil absent knows of no such id.
func (a *absent) contains(id event.ID) bool {
	if a == nil {
		return false
	}
	minute := id.Micros() / minuteMicros
	if _, ok := a.occupied[minute]; ok || minute <= a.floor {
		return false
	}
	return a.empty || minute < a.first || minute > a.last || minute >= a.since && minute < a.until
}

// forgotten counts the minute of the id, whose row the cache does not hold, as
// occupied.
func (a *absent) forgotten(id event.ID) {
	if a == nil {
		return
	}
	a.occupied[id.Micros()/minuteMicros] = struct{}{}
	if len(a.occupied) > occupiedMax {
		for minute := range maps.Keys(a.occupied) {
			a.floor = max(a.floor, minute)
		}
		clear(a.occupied)
	}
}
