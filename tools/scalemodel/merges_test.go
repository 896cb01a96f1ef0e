package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	os.Exit(m.Run())
}

func TestSimulate(t *testing.T) {
	plain := policy{base: 15, bytesMax: 150 << 30, bytesMin: 1 << 20, slots: 8, slotsLow: 4, bytesPerSecond: 1e9, lookEvery: 1}
	with := func(change func(*policy)) policy {
		p := plain
		change(&p)
		return p
	}
	const big = 10e9
	for _, c := range []struct {
		name   string
		policy policy
		first  float64
		gap    float64
		bytes  float64
		until  float64
		merges int
		parts  int
	}{
		{"fourteen parts are too few", plain, 0, 0.1, 1e6, 1.35, 0, 13},
		{"the fourteenth is enough, as the base falls from ten on", plain, 0, 0.1, 1e6, 1.45, 1, 1},
		{"a lower base merges sooner", with(func(p *policy) { p.base = 5 }), 0, 0.1, 1e6, 0.55, 1, 1},
		{"no merge is larger than the bound", with(func(p *policy) { p.bytesMax = 10e6 }), 0, 0.1, 1e6, 1.45, 0, 14},
		{"without an age, two large parts stay", plain, big, 100, 9e9, 150, 0, 2},
		{"an age merges any two", with(func(p *policy) { p.forceAge = 60 }), big, 100, 9e9, 350, 2, 2},
		{"but not beyond the bound", with(func(p *policy) { p.forceAge, p.bytesMax = 60, 18e9 }), big, 100, 9e9, 199, 0, 2},
		{"nor with all slots taken", with(func(p *policy) { p.slots, p.bytesPerSecond = 1, 1 }), 0, 0.1, 1e6, 20, 0, 199},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := simulate(c.policy, c.first, every(c.gap, c.bytes), c.until)
			if l.merges != c.merges || len(l.parts) != c.parts {
				t.Errorf("%d merges and %d parts, want %d and %d", l.merges, len(l.parts), c.merges, c.parts)
			}
			inserted := l.inserts
			for _, p := range l.parts {
				inserted -= p.inserted
			}
			if inserted != 0 {
				t.Errorf("%d inserts are in no part", inserted)
			}
		})
	}
}

// modelVar has the model compared with ClickHouse, if it is 1.
const modelVar = "SLUICE_TEST_MODEL"

// The model against ClickHouse, which logs what becomes of each part: many small
// inserts into Sluice's own tables; a large part with others beside it that are
// forced together when they are three seconds old; and one with a trickle beside
// it, which never is. Then what bounds such merges. Half a minute, most of it waiting.
func TestModelAgainstClickHouse(t *testing.T) {
	if os.Getenv(modelVar) != "1" {
		t.Skipf("%s is not 1: what merges do in half a minute hangs on how busy the machine is", modelVar)
	}
	ctx := t.Context()
	d := startEngine(t)
	exec := func(t *testing.T, format string, args ...any) [][]string {
		t.Helper()
		rows, err := d.query(ctx, fmt.Sprintf(format, args...))
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	sluices := policy{base: 15, bytesMax: 150 << 30, bytesMin: 1 << 20, forceAge: day, slots: 8, slotsLow: 4, bytesPerSecond: 20e6, overhead: 0.05, lookEvery: 0.2}
	const settings = "merge_selector_base = 15, merge_selecting_sleep_ms = 200, max_merge_selecting_sleep_ms = 400, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1"

	t.Run("small inserts", func(t *testing.T) {
		from, err := newEvents(24_000, workload.Text, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.insert(ctx, from, 100); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"events", "event_contents"} {
			compare(ctx, t, d, table, sluices)
		}
	})

	// A part of 200,000 rows, then an insert of so many each tenth of a second.
	// It also returns the longest that fourteen inserts in a row took.
	beside := func(t *testing.T, table string, rows, inserts int) (load, time.Duration) {
		t.Helper()
		exec(t, "CREATE TABLE %s (a UInt64, s String) ENGINE = ReplacingMergeTree ORDER BY a SETTINGS min_age_to_force_merge_seconds = 3, %s", table, settings)
		exec(t, "INSERT INTO %s SELECT number, randomString(100) FROM numbers(200000)", table)
		var (
			begun   []time.Time
			longest time.Duration
		)
		for i := range inserts {
			begun = append(begun, time.Now())
			if i >= 14 {
				longest = max(longest, begun[i].Sub(begun[i-14]))
			}
			exec(t, "INSERT INTO %s SELECT number, randomString(100) FROM numbers(%d, %d)", table, 200_000+i*rows, rows)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		p := sluices
		p.forceAge = 3
		return compare(ctx, t, d, table, p), longest
	}
	largest := func(t *testing.T, table string) string {
		t.Helper()
		return exec(t, "SELECT count() FROM system.part_log WHERE table = '%s' AND event_type = 'MergeParts' AND rows > 200000", table)[0][0]
	}
	t.Run("forced by age", func(t *testing.T) {
		l, _ := beside(t, "forced", 1000, 80)
		if n := largest(t, "forced"); n == "0" || l.forced == 0 {
			t.Errorf("the large part was merged %s times; the model forced %.0f bytes", n, l.forced)
		}
	})
	t.Run("a trickle is never old", func(t *testing.T) {
		l, longest := beside(t, "trickle", 10, 50)
		if longest > 2500*time.Millisecond {
			t.Skipf("fourteen inserts, which make a merge, took %v: nearly as long as the age", longest)
		}
		if n := largest(t, "trickle"); n != "0" || l.forced != 0 {
			t.Errorf("the large part was merged %s times; the model forced %.0f bytes", n, l.forced)
		}
	})
	t.Run("the bound on a merge", func(t *testing.T) {
		parts := func(t *testing.T) string {
			t.Helper()
			return exec(t, "SELECT count() FROM system.parts WHERE active AND table = 'bounded'")[0][0]
		}
		exec(t, `CREATE TABLE bounded (a UInt64, s String) ENGINE = ReplacingMergeTree ORDER BY a SETTINGS min_age_to_force_merge_seconds = 1,
			enable_max_bytes_limit_for_min_age_to_force_merge = 0, max_bytes_to_merge_at_max_space_in_pool = 3000000, %s`, settings)
		for range 2 {
			exec(t, "INSERT INTO bounded SELECT number, randomString(100) FROM numbers(20000)")
		}
		for range 30 {
			if n := parts(t); n != "2" {
				t.Fatalf("%s parts: an age merges beyond the bound", n)
			}
			<-time.After(100 * time.Millisecond)
		}
		exec(t, "OPTIMIZE TABLE bounded FINAL")
		if n := parts(t); n != "1" {
			t.Errorf("%s parts after OPTIMIZE FINAL, which has no bound", n)
		}
	})
}

// compare requires that the model, given the table's inserts, makes about as many
// merges as ClickHouse did, and has them write about as much.
func compare(ctx context.Context, t *testing.T, d *database, table string, p policy) load {
	t.Helper()
	if _, err := d.query(ctx, "SYSTEM FLUSH LOGS part_log"); err != nil {
		t.Fatal(err)
	}
	log, err := d.query(ctx, `SELECT event_type, toUnixTimestamp64Micro(event_time_microseconds) / 1e6, size_in_bytes, duration_ms / 1e3
		FROM system.part_log WHERE table = '`+table+`' AND event_type IN ('NewPart', 'MergeParts') ORDER BY event_time_microseconds`)
	if err != nil {
		t.Fatal(err)
	}
	var (
		arrivals         []arrival
		began, last      float64
		inserted, merged float64
		largest          float64 // merge
		merges           int
		seconds          float64
	)
	for _, r := range log {
		var v [3]float64
		for i := range v {
			if v[i], err = strconv.ParseFloat(r[i+1], 64); err != nil {
				t.Fatal(err)
			}
		}
		if began == 0 {
			began = v[0]
		}
		last = v[0] - began
		if r[0] == "NewPart" {
			arrivals = append(arrivals, arrival{last, v[1]})
			inserted += v[1]
			continue
		}
		merges++
		merged += v[1]
		largest = max(largest, v[1])
		seconds += v[2]
	}
	if len(arrivals) == 0 || merges == 0 {
		t.Fatalf("%s: %d inserts, %d merges", table, len(arrivals), merges)
	}
	next := 0
	model := simulate(p, 0, func() (arrival, bool) {
		if next == len(arrivals) {
			return arrival{}, false
		}
		next++
		return arrivals[next-1], true
	}, last+0.001)
	t.Logf("%s: %d inserts, %.1f MB; %d merges of %.0f ms wrote %.1f MB; in the model %d wrote %.1f MB",
		table, len(arrivals), inserted/1e6, merges, 1e3*seconds/float64(merges), merged/1e6, model.merges, model.merged/1e6)
	// Merges may be on either side of the end, or begin a little later on a
	// machine that is busy.
	if off := math.Abs(float64(model.merges - merges)); off > max(3, 0.5*float64(merges)) {
		t.Errorf("%s: %d merges in the model, %d in ClickHouse", table, model.merges, merges)
	}
	if off := math.Abs(model.merged - merged); off > max(2.5*largest, 0.5*merged) {
		t.Errorf("%s: merges write %.0f bytes in the model, %.0f in ClickHouse", table, model.merged, merged)
	}
	return model
}
