package query

import "time"

// Interval is the length of a bucket of time.
type Interval struct {
	Unit Unit
	// Count is how many units an interval has, from 1 to a billion.
	Count int64
}

const countMax = 1_000_000_000

// Unit is a unit of time.
type Unit uint8

// The units. Days, weeks and months are those of a time zone: a day in which clocks change
// has 23 or 25 hours. Weeks begin on Monday.
const (
	Second Unit = iota
	Minute
	Hour
	Day
	Week
	Month
)

// secondsLeast is the least length of each unit, apart from changes of clocks.
func (u Unit) secondsLeast() int64 {
	return [...]int64{1, 60, 3600, 86_400, 7 * 86_400, 28 * 86_400}[u]
}

// Buckets returns the beginnings of the intervals between two times, in Unix seconds, and the end of
// the last one. The first interval begins at or before sinceMicros, the last one before
// untilMicros. It returns false if there are more than most, or
// if the interval has too many units.
//
// Intervals of more than one unit begin at multiples since 1970-01-01, weeks since
// 1970-01-05. Seconds, minutes and hours are counted in UTC. A day begins at the first moment at which
// the clock shows its date; a date that a zone left out has no bucket.
func (i Interval) Buckets(sinceMicros, untilMicros int64, zone *time.Location, most int) (seconds []int64, end int64, ok bool) {
	since, until := sinceMicros/1e6, (untilMicros+1e6-1)/1e6
	// The changes of clocks make no more than two intervals of the difference.
	if i.Count < 1 || i.Count > countMax || (until-since)/i.Unit.secondsLeast()/i.Count > int64(most)+2 {
		return nil, 0, false
	}
	for n := i.number(since, zone); ; n++ {
		start := i.start(n, zone)
		if start >= until && len(seconds) > 0 {
			return seconds, start, len(seconds) <= most
		}
		if len(seconds) == 0 || start > seconds[len(seconds)-1] {
			seconds = append(seconds, start)
		}
	}
}

// number returns the number of the interval that has the time, counted from 1970.
func (i Interval) number(seconds int64, zone *time.Location) int64 {
	year, month, day := time.Unix(seconds, 0).In(zone).Date()
	days := time.Date(year, month, day, 0, 0, 0, 0, time.UTC).Unix() / 86_400
	if year < 1970 {
		days = -1 // only a zone west of UTC has one day before 1970
	}
	switch i.Unit {
	case Day:
		return floorDiv(days, i.Count)
	case Week:
		return floorDiv(days-firstMonday, 7*i.Count)
	case Month:
		return floorDiv(int64(year-1970)*12+int64(month-1), i.Count)
	case Second, Minute, Hour:
	}
	return floorDiv(seconds, i.Unit.secondsLeast()*i.Count)
}

// firstMonday is the day 1970-01-05, in days since 1970-01-01.
const firstMonday = 4

// start returns the beginning of an interval in Unix seconds.
func (i Interval) start(number int64, zone *time.Location) int64 {
	switch i.Unit {
	case Day:
		return startOfDay(1970, 1, 1+number*i.Count, zone)
	case Week:
		return startOfDay(1970, 1, 1+firstMonday+number*7*i.Count, zone)
	case Month:
		return startOfDay(1970, 1+number*i.Count, 1, zone)
	case Second, Minute, Hour:
	}
	return number * i.Unit.secondsLeast() * i.Count
}

// startOfDay returns the first moment of a date in a zone, or of the next date if the zone
// left it out.
func startOfDay(year int, month, day int64, zone *time.Location) int64 {
	date := time.Date(year, time.Month(month), int(day), 0, 0, 0, 0, time.UTC)
	begins := func(seconds int64) bool {
		return !dateOf(seconds, zone).Before(date) && dateOf(seconds-1, zone).Before(date)
	}
	midnight := time.Date(year, time.Month(month), int(day), 0, 0, 0, 0, zone)
	if begins(midnight.Unix()) {
		return midnight.Unix()
	}
	// The clock was changed at midnight, so that the day begins with the change.
	before, after := midnight.ZoneBounds()
	for _, change := range []time.Time{before, after} {
		if !change.IsZero() && begins(change.Unix()) {
			return change.Unix()
		}
	}
	return midnight.Unix()
}

// dateOf returns the date that a zone's clock shows, as a midnight in UTC.
func dateOf(seconds int64, zone *time.Location) time.Time {
	year, month, day := time.Unix(seconds, 0).In(zone).Date()
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

func floorDiv(a, b int64) int64 {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}
