package rowcache

import (
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func TestAbsent(t *testing.T) {
	const minute = micros / minuteMicros
	at := func(minutes int64) event.ID {
		return event.MakeID((minute+minutes)*minuteMicros+59_999_999, 1, 1)
	}
	occupancy := event.Occupancy{
		FirstMicros: (minute - 100) * minuteMicros, LastMicros: (minute + 5) * minuteMicros,
		SinceMicros: (minute-10)*minuteMicros + 30_000_000,
		Minutes:     []int64{minute - 9, minute, minute + 5},
	}
	bounded := occupancy
	bounded.UntilMicros = (minute-5)*minuteMicros + 30_000_000
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
		{"a free minute of a window that ends", bounded, -8, true},
		{"the last whole minute of a window that ends", bounded, -6, true},
		{"the minute that the window ends in", bounded, -5, false},
		{"a minute after the window", bounded, -1, false},
		{"after the last row, and the window", bounded, 6, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := newAbsent(test.occupancy).contains(at(test.minutes)); got != test.want {
				t.Errorf("absent: %t, want %t", got, test.want)
			}
		})
	}
}

// Past the bound, all minutes up to the last one that was forgotten count.
func TestAbsentIsBounded(t *testing.T) {
	a := newAbsent(event.Occupancy{Empty: true})
	for i := range int64(occupiedMax + 1) {
		a.forgotten(event.MakeID(micros+i*minuteMicros, 1, 1))
	}
	if n := len(a.occupied); n > occupiedMax {
		t.Errorf("%d minutes are held", n)
	}
	for minutes, want := range map[int64]bool{-1: false, 0: false, occupiedMax: false, occupiedMax + 1: true} {
		if got := a.contains(event.MakeID(micros+minutes*minuteMicros, 1, 1)); got != want {
			t.Errorf("minute %d: absent %t, want %t", minutes, got, want)
		}
	}
}
