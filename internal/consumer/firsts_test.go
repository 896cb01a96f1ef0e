package consumer

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
)

func TestFirstsFree(t *testing.T) {
	const minute = micros / minuteMicros
	at := func(minutes int64) event.ID {
		return event.MakeID((minute+minutes)*minuteMicros+59_999_999, 1, 1)
	}
	occupancy := event.Occupancy{
		FirstMicros: (minute - 100) * minuteMicros, LastMicros: (minute + 5) * minuteMicros,
		SinceMicros: (minute-10)*minuteMicros + 30_000_000,
		Minutes:     []int64{minute - 9, minute, minute + 5},
	}
	tests := []struct {
		name      string
		occupancy event.Occupancy
		minutes   int64
		want      bool
	}{
		{"an empty table", event.Occupancy{Empty: true}, -1000, true},
		{"before the first row", occupancy, -101, true},
		{"the minute of the first row", occupancy, -100, false},
		{"older than the window", occupancy, -50, false},
		{"the minute that the window begins in", occupancy, -10, false},
		{"an occupied minute of the window", occupancy, -9, false},
		{"a free minute of the window", occupancy, -8, true},
		{"now", occupancy, 0, false},
		{"the minute of the last row", occupancy, 5, false},
		{"after the last row", occupancy, 6, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := newFirsts(test.occupancy).free(at(test.minutes)); got != test.want {
				t.Errorf("free: %t, want %t", got, test.want)
			}
		})
	}
}

// Past the bound, all minutes up to the last one that was forgotten count.
func TestFirstsForgetIsBounded(t *testing.T) {
	f := newFirsts(event.Occupancy{Empty: true})
	for i := range int64(firstsMinutesMax + 1) {
		f.forget(event.MakeID(micros+i*minuteMicros, 1, 1))
	}
	if n := len(f.occupied); n > firstsMinutesMax {
		t.Errorf("%d minutes are held", n)
	}
	for minutes, want := range map[int64]bool{-1: false, 0: false, firstsMinutesMax: false, firstsMinutesMax + 1: true} {
		if got := f.free(event.MakeID(micros+minutes*minuteMicros, 1, 1)); got != want {
			t.Errorf("minute %d: free %t, want %t", minutes, got, want)
		}
	}
}

// On a free minute, a create that a client minted is as good as one that the
// server minted, and an update of nothing is refused without a look-up.
func TestFirstsSaveLookups(t *testing.T) {
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
func TestFirstsEnd(t *testing.T) {
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
