package kafka

import "time"

const (
	// ageShare is the fraction of the time since the last progress after which the
	// offsets are read again. An answer is late by at most this fraction.
	ageShare = 8
	// backlogRecords is the number of records from which the rate predicts when an
	// offset is reached. Fewer records may all be in the next commit.
	backlogRecords = 1000
	// expectedMax is the longest time that is expected again after it was seen. A
	// longer time was an outage or a backlog.
	expectedMax = 400 * time.Millisecond
)

// pace decides when to read the group's offsets. It does no I/O. Its caller holds a
// lock.
//
// The offsets of a partition are applied in order. So the next read depends only
// on the first offset that somebody waits for and on the progress until now: a
// waiter that joins behind a backlog does not make it earlier. While the offsets
// do not move, reads become rarer, down to one in PollIntervalMax.
type pace struct {
	least, most time.Duration
	// polled is when the offsets were last read.
	polled time.Time
	// quiet is how long a write takes to be applied when no other is before it.
	quiet estimate
	parts map[int32]*progress
}

// progress is the progress of one partition.
type progress struct {
	// committed is the group's offset at the last read.
	committed int64
	// written is one more than the highest offset that anybody waited for. waiters
	// is how many wait now.
	written int64
	waiters int
	// since is when the offset was last seen to move, or when it began to lag behind
	// written. The next move is unlikely before since plus expected.
	since    time.Time
	expected time.Duration
	// moved says that since is the time of a move. gap is how long a move takes, rate
	// its records per second, and step the size of the last move.
	moved bool
	gap   estimate
	rate  float64
	step  int64
}

// lags reports whether the group has something to apply, as far as is known.
func (g *progress) lags() bool { return g.written > g.committed }

func newPace(least, most time.Duration) pace {
	return pace{least: least, most: max(least, most), parts: make(map[int32]*progress)}
}

// committed returns the partition's offset at the last read.
func (p *pace) committed(partition int32) int64 { return p.part(partition).committed }

func (p *pace) part(partition int32) *progress {
	g := p.parts[partition]
	if g == nil {
		g = &progress{}
		p.parts[partition] = g
	}
	return g
}

// join records that somebody waits for an offset from now on. A write was made just
// now and takes its time; what a reader waits for may have been applied long ago.
// join reports whether the next read may be due sooner, and whether the partition
// had no backlog before.
func (p *pace) join(now time.Time, partition int32, offset int64, isWrite bool) (sooner, quiet bool) {
	g := p.part(partition)
	if quiet = !g.lags(); quiet {
		g.since, g.moved, g.rate, g.step, g.expected = now, false, 0, 0, 0
		if isWrite {
			g.expected = max(p.least, p.quiet.early())
		}
	}
	sooner = quiet || g.waiters == 0
	g.waiters++
	g.written = max(g.written, offset+1)
	return sooner, quiet
}

// leave records that a waiter of the partition has left.
func (p *pace) leave(partition int32) { p.part(partition).waiters-- }

// observe records the group's offsets, as they were read just now.
func (p *pace) observe(now time.Time, committed map[int32]int64) {
	// After a time without reads, the distance moved says nothing about the rate.
	followed := now.Sub(p.polled) <= 2*p.most
	p.polled = now
	for partition := range committed {
		p.part(partition)
	}
	for partition, g := range p.parts {
		c := committed[partition]
		if c == g.committed {
			continue
		}
		g.step = c - g.committed
		switch {
		case !followed:
			g.rate = 0
		case g.moved && g.lags():
			took := now.Sub(g.since)
			g.gap.add(took)
			rate := float64(g.step) / max(took.Seconds(), 1e-3)
			if g.rate > 0 {
				rate = (rate + g.rate) / 2
			}
			g.rate = rate
		}
		g.committed, g.since, g.moved = c, now, true
		g.expected = g.gap.early()
	}
}

// soonest returns the earliest time at which to read the offsets again.
func (p *pace) soonest() time.Time { return p.polled.Add(p.least) }

// due returns when to read the offsets again because of one partition. next is the
// first offset of the partition that somebody waits for.
func (p *pace) due(partition int32, next int64) time.Time {
	g := p.part(partition)
	pause := p.least
	if age := p.polled.Sub(g.since); age > 0 {
		pause = max(pause, age/ageShare)
	}
	if distance := next + 1 - g.committed; g.rate > 0 && distance > max(g.step, backlogRecords) {
		// Half of the expected time, so that an offset that is reached sooner is not
		// seen much later.
		pause = max(pause, time.Duration(min(float64(distance)/g.rate/2, p.most.Seconds())*float64(time.Second)))
	}
	due := p.polled.Add(min(pause, p.most))
	if likely := g.since.Add(g.expected); due.Before(likely) {
		due = likely
	}
	return due
}

// estimate estimates a time that varies, by the lower end of what was seen. An
// estimate that is too low costs one more read; one that is too high makes an
// answer late.
type estimate time.Duration

func (e *estimate) add(d time.Duration) {
	if d > expectedMax {
		return
	}
	if old := time.Duration(*e); old > 0 && d > old {
		d = old + (d-old)/8
	}
	*e = estimate(d)
}

// early returns a time before which the estimated time is hardly ever over.
func (e *estimate) early() time.Duration { return time.Duration(*e) * 3 / 4 }
