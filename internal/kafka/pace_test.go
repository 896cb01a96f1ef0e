package kafka

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// simulation runs a pace over a group that is made up, without a clock.
type simulation struct {
	pace pace
	now  time.Time
	// committed is the group's offset at a time.
	committed func(at time.Time) int64
	looks     int
	// late is, of each waiter that was answered, how much later that was than it
	// could be.
	late []time.Duration
}

func simulate(committed func(at time.Time) int64) *simulation {
	c := Config{}.WithDefaults().Watcher
	return &simulation{pace: newPace(c.PollInterval, c.PollIntervalMax), now: time.Unix(1_800_000_000, 0), committed: committed}
}

// wait has waiters come at the times, in order, each for the offset that belongs
// to it, and gives them up after limit. It looks until all have gone.
func (s *simulation) wait(limit time.Duration, isWrite bool, times []time.Time, offsets []int64) {
	type waiter struct {
		offset int64
		since  time.Time
		quiet  bool
	}
	var waiting []waiter
	for next := 0; next < len(times) || len(waiting) > 0; {
		// What comes next: somebody who joins, somebody who has had enough, a look.
		at, what := time.Time{}, ""
		consider := func(t time.Time, w string) {
			if what == "" || t.Before(at) {
				at, what = t, w
			}
		}
		if next < len(times) {
			consider(times[next], "join")
		}
		if len(waiting) > 0 {
			head := waiting[0].offset
			for _, w := range waiting {
				head = min(head, w.offset)
			}
			consider(waiting[0].since.Add(limit), "leave")
			due := s.pace.due(0, head)
			if due.Before(s.now) {
				due = s.now
			}
			consider(due, "look")
		}
		s.now = at
		switch what {
		case "join":
			_, quiet := s.pace.join(at, 0, offsets[next], isWrite)
			waiting = append(waiting, waiter{offset: offsets[next], since: at, quiet: quiet})
			next++
		case "leave":
			s.pace.leave(0)
			waiting = waiting[1:]
		case "look":
			s.looks++
			c := s.committed(at)
			s.pace.observe(at, map[int32]int64{0: c})
			kept := waiting[:0]
			for _, w := range waiting {
				if w.offset >= c {
					kept = append(kept, w)
					continue
				}
				if w.quiet && isWrite {
					s.pace.quiet.add(at.Sub(w.since))
				}
				s.pace.leave(0)
				// The first time at which it could have been seen, to the millisecond.
				best := w.since
				for s.committed(best) <= w.offset {
					best = best.Add(time.Millisecond)
				}
				s.late = append(s.late, at.Sub(best))
			}
			waiting = kept
		}
	}
}

func (s *simulation) worst() (worst time.Duration) {
	for _, d := range s.late {
		worst = max(worst, d)
	}
	return worst
}

func (s *simulation) check(t *testing.T, answered, looksMax int, lateMax time.Duration) {
	t.Helper()
	if len(s.late) != answered {
		t.Errorf("%d waiters were answered, want %d", len(s.late), answered)
	}
	if s.looks > looksMax {
		t.Errorf("%d looks, want at most %d", s.looks, looksMax)
	}
	if worst := s.worst(); worst > lateMax {
		t.Errorf("an answer was %s late, want at most %s", worst, lateMax)
	}
	t.Logf("%d looks for %d waiters, the latest answer %s late", s.looks, len(s.late), s.worst())
}

// series are n times, apart by the pauses.
func series(from time.Time, n int, pause func() time.Duration) []time.Time {
	times := make([]time.Time, n)
	for i := range times {
		from = from.Add(pause())
		times[i] = from
	}
	return times
}

func upTo(n int) []int64 {
	offsets := make([]int64, n)
	for i := range offsets {
		offsets[i] = int64(i)
	}
	return offsets
}

func always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// A look each 15 ms, whatever the group did, was 66 a second, as long as anybody
// waited.
func TestPace(t *testing.T) {
	t.Parallel()
	var start time.Time
	random := rand.New(rand.NewPCG(1, 2))
	about := func(d time.Duration) func() time.Duration {
		return func() time.Duration { return d/2 + time.Duration(random.Int64N(int64(d))) }
	}

	t.Run("quiet", func(t *testing.T) {
		// Each write is applied 90 ms after it was made, give or take 30.
		s := simulate(nil)
		times := series(s.now, 200, about(time.Second))
		jitter := make([]time.Duration, len(times))
		for i := range jitter {
			jitter[i] = 75*time.Millisecond + time.Duration(random.Int64N(int64(30*time.Millisecond)))
		}
		s.committed = func(at time.Time) (c int64) {
			for c < int64(len(times)) && !at.Before(times[c].Add(jitter[c])) {
				c++
			}
			return c
		}
		s.wait(5*time.Second, true, times, upTo(len(times)))
		s.check(t, 200, 4*200, 20*time.Millisecond)
	})
	t.Run("many at a time", func(t *testing.T) {
		// 200 writes a second, and a commit of all before it each 100 ms.
		s := simulate(nil)
		start = s.now
		times := series(s.now, 2000, about(5*time.Millisecond))
		s.committed = func(at time.Time) int64 {
			made := start.Add(at.Sub(start).Truncate(100 * time.Millisecond)).Add(-50 * time.Millisecond)
			c, _ := slices.BinarySearchFunc(times, made, time.Time.Compare)
			return int64(c)
		}
		s.wait(5*time.Second, true, times, upTo(len(times)))
		s.check(t, 2000, 10*40, 20*time.Millisecond)
	})
	t.Run("stopped", func(t *testing.T) {
		s := simulate(func(time.Time) int64 { return 7 })
		times := series(s.now, 1, always(0))
		s.wait(time.Minute, true, times, []int64{7})
		s.check(t, 0, 60*4+40, 0)
	})
	t.Run("stopped, and others come and go", func(t *testing.T) {
		// 50 come in a second, and give up after two.
		s := simulate(func(time.Time) int64 { return 7 })
		times := series(s.now, 3000, always(20*time.Millisecond))
		offsets := upTo(3000)
		for i := range offsets {
			offsets[i] += 7
		}
		s.wait(2*time.Second, true, times, offsets)
		s.check(t, 0, 62*4+40, 0)
	})
	t.Run("stopped, and one asks again and again", func(t *testing.T) {
		s := simulate(func(time.Time) int64 { return 7 })
		times := series(s.now, 60, always(time.Second))
		offsets := upTo(60)
		for i := range offsets {
			offsets[i] += 7
		}
		s.wait(time.Second-time.Millisecond, true, times, offsets)
		s.check(t, 0, 60*5+40, 0)
	})
	t.Run("goes on after a stop", func(t *testing.T) {
		s := simulate(nil)
		start = s.now
		s.committed = func(at time.Time) int64 {
			if at.Sub(start) < 30*time.Second {
				return 7
			}
			return 1000
		}
		s.wait(time.Minute, true, series(s.now, 1, always(0)), []int64{7})
		s.check(t, 1, 30*4+40, 250*time.Millisecond)
		// And the next one is answered as before.
		s.late = nil
		begun := s.now
		s.committed = func(at time.Time) int64 {
			if at.Sub(begun) < 1100*time.Millisecond {
				return 1000
			}
			return 1001
		}
		s.wait(time.Minute, true, series(s.now, 1, always(time.Second)), []int64{1000})
		s.check(t, 1, 30*4+60, 20*time.Millisecond)
	})
	t.Run("far behind", func(t *testing.T) {
		// A million records at 50,000 a second, in commits of 20,000.
		s := simulate(nil)
		start = s.now
		s.committed = func(at time.Time) int64 {
			return int64(at.Sub(start)/(400*time.Millisecond)) * 20_000
		}
		s.wait(time.Minute, true, series(s.now, 1, always(0)), []int64{999_999})
		s.check(t, 1, 20*5+40, 300*time.Millisecond)
	})
	t.Run("a reader of what is applied", func(t *testing.T) {
		s := simulate(func(time.Time) int64 { return 100 })
		s.wait(time.Minute, false, series(s.now, 1, always(time.Hour)), []int64{99})
		s.check(t, 1, 1, 0)
	})
}
