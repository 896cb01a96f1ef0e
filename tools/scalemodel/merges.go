package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// policy is what ClickHouse merges the parts of one partition by: the settings
// of Sluice's tables, and of the server's pool. Times are in seconds.
type policy struct {
	// base is merge_selector_base: the size of a merge, over that of its largest
	// part, from which on it is worth while.
	base float64
	// bytesMax is max_bytes_to_merge_at_max_space_in_pool, of the sources of one
	// merge. With fewer than slotsLow free slots the bound falls, down to bytesMin.
	bytesMax, bytesMin float64
	// forceAge is min_age_to_force_merge_seconds; 0 for never.
	forceAge float64
	// slots is how many merges run at a time, slotsLow is
	// number_of_free_entries_in_pool_to_lower_max_size_of_merge.
	slots, slotsLow int
	// bytesPerSecond is what one merge writes, after overhead.
	bytesPerSecond, overhead float64
	// lookEvery is the time between two looks at all ranges of parts. In between,
	// only those that end in new parts can have become worth while, but for what
	// age and number change.
	lookEvery float64
}

// Constants of ClickHouse's selection of merges that no setting changes, and of
// settings that Sluice leaves alone.
const (
	partsPerMergeMax = 100
	fixedCostBytes   = 5 << 20 // of a part, beside its size
	lowerBytesMin    = 1 << 20
	lowerBytesMax    = 100 << 30
	lowerAgeMin      = 10
	lowerAgeSmallMax = 3600 // at lowerBytesMin
	lowerAgeLargeMax = 30 * day
	lowerPartsMin    = 10
	lowerPartsMax    = 50
	smallAtRight     = 0.01 // of a merge's size: such parts are left for later
	day              = 86_400
)

// part is a part of the partition, in the order of insertion.
type part struct {
	bytes, born float64
	inserted    int // how many inserts are in it
	merge       int // the number of the merge that works on it; 0 for none
	first       bool
}

// running is a merge under way.
type running struct {
	number int
	end    float64
	bytes  float64
}

// load is what the merges of one partition did.
type load struct {
	seconds         float64
	inserts, merges int
	inserted        float64 // bytes
	merged          float64 // bytes that merges wrote
	forced          float64 // of those, bytes of merges that only the age allowed
	firstMerges     int     // merges of the part that was there first
	waitPeak        float64 // the longest that an insert was not in one part with that
	partsPeak       int
	partsMean       float64
	busyMean        float64 // merges at a time
	parts           []part  // in the end
}

// amplification is how often a byte was written, the insert included.
func (l *load) amplification() float64 { return (l.inserted + l.merged) / l.inserted }

// arrival is an insert that made a part.
type arrival struct{ at, bytes float64 }

// simulation plays the merges of one partition, as ClickHouse's "Simple"
// selector would choose them.
type simulation struct {
	policy
	now     float64
	parts   []part
	running []running
	merges  int
	load    load
	// What was not looked at for merges yet: from this part on, or all.
	fresh int
	full  float64   // when all was last looked at
	at    []float64 // when each insert was made, while a first part is there
}

// simulate plays arrivals, which next returns in order until it is false, and
// the merges that they cause until the given time. A first part of so many
// bytes is there at time 0, unless they are 0.
func simulate(p policy, first float64, next func() (arrival, bool), until float64) load {
	s := &simulation{policy: p}
	if first > 0 {
		s.parts = []part{{bytes: first, first: true}}
	}
	coming, more := next()
	for {
		at, what := until, 0
		if look := s.full + s.lookEvery; look < at {
			at, what = look, 3
		}
		if more && coming.at < at {
			at, what = coming.at, 1
		}
		ended := -1
		for i, r := range s.running {
			if r.end < at {
				at, what, ended = r.end, 2, i
			}
		}
		s.advance(at)
		switch what {
		case 0:
			if len(s.parts) > 0 && s.parts[0].first {
				s.waited(s.parts[0].inserted)
			}
			s.load.seconds = until
			s.load.parts = s.parts
			s.load.partsMean /= until
			s.load.busyMean /= until
			return s.load
		case 1:
			s.parts = append(s.parts, part{bytes: coming.bytes, born: at, inserted: 1})
			if s.parts[0].first {
				s.at = append(s.at, at)
			}
			s.load.inserts++
			s.load.inserted += coming.bytes
			s.load.partsPeak = max(s.load.partsPeak, len(s.parts))
			coming, more = next()
		case 2:
			s.finish(ended)
			s.fresh = 0
		case 3:
			s.fresh = 0
		}
		if s.fresh == 0 {
			s.full = at
		}
		for len(s.running) < s.slots && s.choose() {
			s.fresh = 0
		}
		s.fresh = len(s.parts)
	}
}

// advance adds up what lasted until the given time.
func (s *simulation) advance(to float64) {
	s.load.partsMean += float64(len(s.parts)) * (to - s.now)
	s.load.busyMean += float64(len(s.running)) * (to - s.now)
	s.now = to
}

// waited notes how long the first of the inserts that are not in the first part
// yet, which has so many of them, has waited for it.
func (s *simulation) waited(inserted int) {
	if inserted < len(s.at) {
		s.load.waitPeak = max(s.load.waitPeak, s.now-s.at[inserted])
	}
}

// finish replaces the sources of a merge by its part.
func (s *simulation) finish(i int) {
	r := s.running[i]
	s.running = slices.Delete(s.running, i, i+1)
	from := slices.IndexFunc(s.parts, func(p part) bool { return p.merge == r.number })
	to := from
	made := part{bytes: r.bytes, born: s.now}
	for to < len(s.parts) && s.parts[to].merge == r.number {
		made.inserted += s.parts[to].inserted
		to++
	}
	if s.parts[from].first {
		s.load.firstMerges++
		made.first = true
		s.waited(s.parts[from].inserted)
	}
	s.parts = slices.Replace(s.parts, from, to, made)
	s.load.merges++
	s.load.merged += r.bytes
}

// choose starts the merge that ClickHouse would start now. It reports whether
// there is one.
func (s *simulation) choose() bool {
	var (
		best                  = math.Inf(1)
		from, to              int
		bestForced            bool
		limit                 = s.sizeLimit()
		lowMin                = math.Log(1 + lowerBytesMin)
		lowSpan               = math.Log(1+lowerBytesMax) - lowMin
		runStart, runEnd, low int
	)
	for runStart = 0; runStart < len(s.parts); runStart = runEnd + 1 {
		for runEnd = runStart; runEnd < len(s.parts) && s.parts[runEnd].merge == 0; runEnd++ {
		}
		run := s.parts[runStart:runEnd]
		if low = s.fresh - runStart; low >= len(run) {
			continue
		}
		crowded := unit(float64(len(run)), lowerPartsMin, lowerPartsMax)
		for i := range run {
			sum, largest, youngest := run[i].bytes, run[i].bytes, run[i].born
			for j := i + 1; j < len(run) && j-i < partsPerMergeMax; j++ {
				sum += run[j].bytes
				largest = max(largest, run[j].bytes)
				youngest = max(youngest, run[j].born)
				if sum > limit {
					break
				}
				if j < low {
					continue
				}
				var (
					count  = float64(j - i + 1)
					ratio  = (sum + count*fixedCostBytes) / (largest + fixedCostBytes)
					age    = math.Floor(s.now) - math.Floor(youngest) // ClickHouse counts in whole seconds
					forced bool
				)
				if ratio < s.base {
					forced = s.forceAge > 0 && age >= s.forceAge
					if !forced {
						if ratio < 2 {
							continue
						}
						// The first bound is cheap: a small merge's age counts most.
						if ratio < s.lowered(crowded+unit(age, lowerAgeMin, lowerAgeSmallMax)) {
							continue
						}
						size := unit(math.Log(1+sum), lowMin, lowMin+lowSpan)
						old := unit(age, lowerAgeMin, lowerAgeSmallMax+(lowerAgeLargeMax-lowerAgeSmallMax)*size)
						if ratio < s.lowered(crowded+old) {
							continue
						}
					}
				}
				end, total := j+1, sum
				for end-i >= 3 && run[end-1].bytes < smallAtRight*sum {
					end--
					total -= run[end].bytes
				}
				var left float64
				if i > 0 {
					left = run[i-1].bytes
				}
				if score := score(end-i, total, left); score < best {
					best, from, to, bestForced = score, runStart+i, runStart+end, forced
				}
			}
		}
	}
	if to == 0 {
		return false
	}
	s.merges++
	r := running{number: s.merges}
	for i := from; i < to; i++ {
		s.parts[i].merge = s.merges
		r.bytes += s.parts[i].bytes
	}
	r.end = s.now + s.overhead + r.bytes/s.bytesPerSecond
	if bestForced {
		s.load.forced += r.bytes
	}
	s.running = append(s.running, r)
	return true
}

// lowered is the base where parts are many or old.
func (p *policy) lowered(by float64) float64 { return p.base + (2-p.base)*min(1, by) }

// sizeLimit bounds the next merge. Large ones leave slots to small ones.
func (s *simulation) sizeLimit() float64 {
	free := s.slots - len(s.running)
	if len(s.running) <= 1 || free >= s.slotsLow {
		return s.bytesMax
	}
	low := min(s.bytesMin, s.bytesMax)
	return low * math.Pow(s.bytesMax/low, float64(free)/float64(s.slotsLow))
}

// score is what a merge costs for each part that it does away with: the least
// is the best. left is the size of the part before it: merges that come near
// to that are preferred.
func score(parts int, bytes, left float64) float64 {
	n := float64(parts)
	cost := (bytes + fixedCostBytes*n) / (n - 1.9)
	if left > 0.9*bytes {
		if difference := math.Abs(math.Log2(bytes / left)); difference < 0.5 {
			cost *= 0.75 + 0.25*difference/0.5
		}
	}
	return cost
}

// unit maps low and what is below to 0, high and what is above to 1.
func unit(v, low, high float64) float64 { return min(1, max(0, (v-low)/(high-low))) }

// every is an arrival of so many bytes each so many seconds.
func every(seconds, bytes float64) func() (arrival, bool) {
	n := 0
	return func() (arrival, bool) {
		n++
		return arrival{float64(n) * seconds, bytes}, true
	}
}

// about is every, but at random: each insert is independent of the others, and
// the time between two of them is seconds on average.
func about(seconds, bytes float64) func() (arrival, bool) {
	random := rand.New(rand.NewPCG(1, 1))
	at := 0.0
	return func() (arrival, bool) {
		at += random.ExpFloat64() * seconds
		return arrival{at, bytes}, true
	}
}
