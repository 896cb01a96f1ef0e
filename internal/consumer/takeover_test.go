package consumer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// On a free minute, a create that a client minted is as good as one that the
// server minted, and an update of nothing is refused without a look-up.
func TestTakeOverSaveLookups(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.occupancy = &event.Occupancy{Empty: true}
	}, func(w *world) {
		w.apply(create(), update(id(2), failure("e")))
		w.apply(update(failure("e")))
		w.apply(create(failure("again")), update(latency(1)))
		w.apply(remove(id(3)))
		w.apply(create(id(3)), update(id(3), latency(1)))
		want := row(0, updated(4), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "e", 1, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		if !w.core(3).Deleted {
			t.Error("a deleted event lives")
		}
		if diff := cmp.Diff([]string{"0/1 unknown_event"}, w.refusals()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		if n := w.tries["cores"] + w.tries["states"]; n != 0 {
			t.Errorf("%d look-ups", n)
		}
		if n := w.tries["occupancy"]; n != 1 {
			t.Errorf("occupancy was read %d times, want once", n)
		}
	})
}

// A minute of which anything was forgotten is looked up again; a partition that
// was given up starts anew.
func TestTakeOverEnd(t *testing.T) {
	runWith(t, func(w *world, cfg *Config) {
		w.occupancy = &event.Occupancy{Empty: true}
		cfg.RecentBytesMax = 2000
	}, func(w *world) {
		w.apply(create(failure("first")))
		for n := range uint64(20) {
			w.apply(create(id(100 + n)))
		}
		w.apply(create(failure("second")), update(latency(1)))
		want := row(0, updated(22), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "first", 1, true })
		if diff := cmp.Diff(want, w.core(1), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		w.occupancy = nil // every minute has rows by now
		<-w.revoke(t.Context(), false, 0)
		w.feedChunk(0, 2, update(failure("third")))
		w.advance(time.Minute)
		if n := w.tries["occupancy"]; n != 2 {
			t.Errorf("occupancy was read %d times, want twice", n)
		}
		if got := w.core(1).Error; got != "third" {
			t.Errorf("error %q, want the update's", got)
		}
	})
}

// However far the log is behind, one question is about two hours and a bit, and
// the next one is asked when the records have got there.
func TestTakeOverAskAboutWindows(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.occupancy = &event.Occupancy{LastMicros: 1 << 62}
	}, func(w *world) {
		week := 7 * 24 * time.Hour
		w.advance(time.Until(time.UnixMicro(micros)) + week) // after the ids' time
		feed := func(behind time.Duration, writes ...event.Write) {
			t.Helper()
			var records []record.Record
			for _, write := range writes {
				rec := recordOf(write, 0, w.next[0]+int64(len(records)))
				rec.AppendTime = time.Now().Add(-behind)
				records = append(records, rec)
			}
			w.feedRecords(1, records...)
			w.advance(time.Second)
		}
		feed(week, create(), update(latency(1)))
		feed(week-time.Hour, create(id(2)), update(id(2), latency(2)))
		if got := len(w.windows); got != 1 {
			t.Fatalf("%d windows were asked about, want 1", got)
		}
		feed(week-windowAfter, create(id(3)), update(id(3), latency(3)))
		feed(week-windowAfter, create(id(4)), update(id(4), latency(4)))
		feed(time.Minute, create(id(5)), update(id(5), latency(5)))
		if got := len(w.windows); got != 3 {
			t.Fatalf("%d windows were asked about, want 3", got)
		}
		for i, win := range w.windows[:2] {
			if got, want := time.Duration(win[1]-win[0])*time.Microsecond, windowBefore+windowAfter; got != want {
				t.Errorf("window %d spans %s, want %s", i, got, want)
			}
		}
		if last := w.windows[2]; last[1] != 0 {
			t.Errorf("the window of a log that is up to date ends at %d, want no end", last[1])
		}
		for n := uint64(2); n <= 5; n++ {
			if got := w.core(n).Latency; got != float64(n) {
				t.Errorf("event %d has the latency %v, want %d", n, got, n)
			}
		}
	})
}

// Partitions that are equally far share a question; one that is elsewhere has its
// own, so that no window has to reach from one to the other.
func TestTakeOverShareWindows(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.occupancy = &event.Occupancy{LastMicros: 1 << 62}
	}, func(w *world) {
		w.advance(time.Until(time.UnixMicro(micros)) + 100*time.Hour) // after the ids' time
		now := time.Now()
		var chunks []record.Chunk
		for p, behind := range []time.Duration{100 * time.Hour, 0, 100*time.Hour - time.Minute, time.Second} {
			rec := recordOf(create(id(uint64(p))), int32(p), 0)
			rec.AppendTime = now.Add(-behind)
			chunks = append(chunks, record.Chunk{Partition: int32(p), Epoch: 1, Records: []record.Record{rec}})
		}
		w.polls <- chunks
		w.advance(time.Second)
		want := [][2]int64{
			{now.Add(-100*time.Hour - windowBefore).UnixMicro(), now.Add(-100*time.Hour + windowAfter).UnixMicro()},
			{now.Add(-time.Second - windowBefore).UnixMicro(), 0},
		}
		if diff := cmp.Diff(want, w.windows); diff != "" {
			t.Errorf("windows (-want +got):\n%s", diff)
		}
	})
}

// A database that takes too long to say which minutes have rows costs look-ups,
// and nothing else: the flush goes on at once, and the question is not asked
// again before its pause is over.
func TestTakeOverTooExpensive(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.occupancy = &event.Occupancy{Empty: true}
		w.occupancyErr = fmt.Errorf("query occupied_minutes: %w", event.ErrTooExpensive)
	}, func(w *world) {
		w.apply(create(failure("first")))
		w.apply(create(failure("second")), update(latency(1)))
		want := row(0, updated(2), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "first", 1, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		if w.tries["cores"] != 1 || w.tries["occupancy"] != 1 {
			t.Errorf("%d look-ups and %d questions, want 1 and 1", w.tries["cores"], w.tries["occupancy"])
		}
		w.advance(occupancyPause)
		w.mu.Lock()
		w.occupancyErr = nil
		w.mu.Unlock()
		w.apply(create(id(2)), update(id(2), latency(2)))
		if w.tries["cores"] != 1 || w.tries["occupancy"] != 2 {
			t.Errorf("%d look-ups and %d questions, want 1 and 2", w.tries["cores"], w.tries["occupancy"])
		}
		if journal := w.take(); slices.Contains(journal, "pause") {
			t.Errorf("the flush was retried; journal:\n%s", journal)
		}
	})
}
