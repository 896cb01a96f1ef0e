//go:build !race

package bench_test

import (
	"log/slog"
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
)

// The regression guard: creates are to be visible at no less than a part of
// the rate at which ClickHouse takes the same rows alone, in the same run. On
// two cores that also run the load it is a quarter; half of the machine being
// taken by others slows both. The race detector slows only some of it, so that
// the guard is left out there, and has a target of its own: make guard.
func TestCreatesKeepUp(t *testing.T) {
	const (
		events = 100_000
		least  = 0.06
		tries  = 3
	)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for range tries {
		c, err := bench.MeasureCase(t.Context(), bench.CaseConfig{
			System: bench.SystemConfig{Dir: t.TempDir(), Binary: path},
			Load:   bench.LoadConfig{Events: events, Seed: 1, Batch: 1000, Connections: 4}, LimitEvents: events,
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ratio := c.Phases[0].WritesPerSecond() / c.Limits.InsertPerSecond
		t.Logf("creates/s: %.0f, of rows inserted straight: %.0f, ratio %.2f", c.Phases[0].WritesPerSecond(), c.Limits.InsertPerSecond, ratio)
		if ratio >= least {
			return
		}
	}
	t.Errorf("the ratio was below %.2f %d times", least, tries)
}
