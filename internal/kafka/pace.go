package kafka

import "time"

const (
	// ageShare is the part of the time since the last progress that a next look
	// waits, so that an answer is at most so much late.
	ageShare = 8
	// backlogRecords is the distance from which a rate tells when an offset will
	// be reached. Fewer records may all be in the next commit.
	backlogRecords = 1000
	// expectedMax is the longest time that is expected because it was seen before.
	// A longer one was an outage, or a backlog.
	expectedMax = 400 * time.Millisecond
)

// pace decides when to read the group's offsets. It does no I/O, and its caller
// locks.
//
// A partition's offsets are applied in order, so what it does next is told by
// its first offset that is waited for and by its progress until now, whoever
// waits: a waiter that joins behind a backlog brings no look nearer. While the
// offsets do not move, looks get rarer with the time since they last did, up to
// one in PollIntervalMax.
type pace struct {
	least, most time.Duration
	// polled is when the offsets were last read.
	polled time.Time
	// quiet is how long a write takes to be applied where none is before it.
	quiet estimate
	parts map[int32]*progress
}

// progress is what is known of one partition.
type progress struct {
	// committed is the group's offset, as of the last look.
	committed int64
	// written is the highest offset that was waited for, and one; waiters are how
	// many wait now.
	written int64
	waiters int
	// since is when the offset was last seen to move, or when it began to lag
	// behind written. Before since plus expected, no next move is likely.
	since    time.Time
	expected time.Duration
	// moved says that since is a move, gap how long one takes, rate how many
	// records a second that was, step the size of the last one.
	moved bool
	gap   estimate
	rate  float64
	step  int64
}

// lags reports whether the group is known to have something to apply.
func (g *progress) lags() bool { return g.written > g.committed }

func newPace(least, most time.Duration) pace {
	return pace{least: least, most: max(least, most), parts: make(map[int32]*progress)}
}

// committed is the partition's offset as of the last look.
func (p *pace) committed(partition int32) int64 { return p.part(partition).committed }

func (p *pace) part(partition int32) *progress {
	g := p.parts[partition]
	if g == nil {
		g = &progress{}
		p.parts[partition] = g
	}
	return g
}

// join tells of an offset that is waited for from now on. A write was made just
// now, so that it takes its time; what a reader waits for may be applied long
// since. It reports whether the next look may be due sooner for that, and
// whether the partition had no backlog before.
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

// leave tells that an offset is not waited for any more.
func (p *pace) leave(partition int32) { p.part(partition).waiters-- }

// observe tells of the group's offsets, as they were read just now.
func (p *pace) observe(now time.Time, committed map[int32]int64) {
	// After a time without looks, what moved since then tells nothing of a rate.
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

// soonest is when to read the offsets again where nothing speaks against it.
func (p *pace) soonest() time.Time { return p.polled.Add(p.least) }

// due is when to read the offsets again for the sake of one partition, whose
// first offset that is waited for is next.
func (p *pace) due(partition int32, next int64) time.Time {
	g := p.part(partition)
	pause := p.least
	if age := p.polled.Sub(g.since); age > 0 {
		pause = max(pause, age/ageShare)
	}
	if distance := next + 1 - g.committed; g.rate > 0 && distance > max(g.step, backlogRecords) {
		// Half of the way, so that what is reached sooner is not seen much later.
		pause = max(pause, time.Duration(min(float64(distance)/g.rate/2, p.most.Seconds())*float64(time.Second)))
	}
	due := p.polled.Add(min(pause, p.most))
	if likely := g.since.Add(g.expected); due.Before(likely) {
		due = likely
	}
	return due
}

// estimate is of a time that varies, at the lower end of what was seen: too low
// costs one look more, too high an answer that is late.
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

// early is a time before which the estimated one is hardly ever over.
func (e *estimate) early() time.Duration { return time.Duration(*e) * 3 / 4 }
