package bench_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
)

// Scale itself fails when ClickHouse's counts differ from what was written. All
// its writes are to ids that Go computed, so that it passes only when they are
// those of the rows that SQL made.
func TestScale(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	const rows, writes = 20_000, 500
	var progress bytes.Buffer
	sizes, err := bench.Scale(t.Context(), bench.ScaleConfig{
		System: bench.SystemConfig{Dir: t.TempDir(), Binary: path},
		Rows:   []int{rows}, Days: 60, Writes: writes, Seed: 1, Progress: &progress,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if len(sizes) != 1 {
		t.Fatalf("%d sizes, want 1", len(sizes))
	}
	size := sizes[0]
	if size.Rows != rows || size.DiskBytes == 0 || size.Parts < 2 || size.Parts > 4 {
		t.Errorf("table: %+v", size)
	}
	if want := rows * 30 / 60 / 100; size.ChangedUpdates != want || size.ChangedDeletes != want {
		t.Errorf("%d updates and %d deletes of the last month, want %d each", size.ChangedUpdates, size.ChangedDeletes, want)
	}
	lookups := map[string]bool{bench.ScaleDelete: false, bench.ScaleUpdateRecent: false, bench.ScaleUpdateCold: true}
	if len(size.Writes) != len(lookups) {
		t.Errorf("%d kinds of writes, want %d", len(size.Writes), len(lookups))
	}
	for _, w := range size.Writes {
		if want, ok := lookups[w.Name]; !ok || w.Writes != writes || w.VisibleSeconds < w.AckedSeconds || (w.LookupQueries > 0) != want {
			t.Errorf("%+v", w)
		}
	}
	for _, q := range size.Queries {
		if q.Clean.BestMillis <= 0 || q.Clean.MedianMillis < q.Clean.BestMillis || q.Changed.BestMillis <= 0 {
			t.Errorf("%+v", q)
		}
	}
	if len(size.Queries) != 4 || !strings.Contains(progress.String(), bench.ScaleUpdateCold) {
		t.Errorf("%d queries, progress:\n%s", len(size.Queries), progress.String())
	}
}

func TestScaleConfigValidate(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  bench.ScaleConfig
		want string
	}{
		{"nothing", bench.ScaleConfig{}, "Rows: must not be empty\nWrites: must be positive\nDays: must be from 30 to 3650"},
		{"few rows", bench.ScaleConfig{Rows: []int{1000}, Days: 30, Writes: 1000}, "Rows: 1000 are too few for rounds of 1000 writes"},
		{"right", bench.ScaleConfig{Rows: []int{1_000_000}, Days: 150, Writes: 50_000}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := test.cfg.Validate(); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
