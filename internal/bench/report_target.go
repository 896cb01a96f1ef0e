package bench

import (
	"fmt"
	"strings"

	"github.com/sluicehq/sluice/internal/bench/workload"
)

// The sizes and loads that the targets are set for. A run of another size says
// nothing about them.
const (
	targetCreates      = 500_000
	targetChanges      = 200_000
	targetConnections  = 64
	targetRowsFew      = 1_000_000
	targetRowsMany     = 100_000_000
	targetRowsQueries  = 1_000_000_000
	targetMaxGrowth    = 1.3
	targetColdUpdates  = 20_000
	targetSingleWrites = 20_000
	// targetLoad is how many creates make a full load. Less is over before
	// memory and latencies have come to their height.
	targetLoad = 100_000
)

// target is what Sluice is to reach, and what a run reached.
type target struct {
	what    string
	limit   float64
	atLeast bool // else at most
	unit    func(float64) string
	reached []reading
}

// reading is what was measured for a target, and where.
type reading struct {
	where string
	value float64
}

func atMost(what string, limit float64, unit func(float64) string, reached []reading) target {
	return target{what: what, limit: limit, unit: unit, reached: reached}
}

func atLeast(what string, limit float64, unit func(float64) string, reached []reading) target {
	return target{what: what, limit: limit, unit: unit, reached: reached, atLeast: true}
}

// bound is the limit with its direction.
func (t *target) bound() string {
	if t.atLeast {
		return "≥ " + t.unit(t.limit)
	}
	return "≤ " + t.unit(t.limit)
}

// verdict says by how much of the limit a value misses it.
func (t *target) verdict(value float64) string {
	missed := value - t.limit
	if t.atLeast {
		missed = -missed
	}
	switch percent := 100 * missed / t.limit; {
	case missed <= 0:
		return "met"
	case percent < 1:
		return fmt.Sprintf("missed by %.2g %%", percent)
	default:
		return fmt.Sprintf("missed by %.0f %%", percent)
	}
}

// targetWhere is the column of the cases in a targetTable.
const targetWhere = 2

// targetTable judges the targets, a row for each reading. Where all is false,
// targets without one are left out.
func targetTable(targets []target, all bool) table {
	t := table{header: []string{"target", "limit", "measured with", "reached", "result"}}
	for _, target := range targets {
		for _, r := range target.reached {
			t.add(target.what, target.bound(), r.where, target.unit(r.value), target.verdict(r.value))
		}
		if len(target.reached) == 0 && all {
			t.add(target.what, target.bound(), "–", "–", notMeasured)
		}
	}
	return t
}

// targets are those that one run of the benchmark can judge.
func (r *Report) targets() []target {
	batches := func(c *Case) bool { return isTextBatch(c) && isFullLoad(c) }
	single := func(c *Case) bool {
		return isText(c) && c.Batch == 1 && c.Connections == targetConnections && isFullLoad(c)
	}
	light := func(c *Case) bool { return c.Batch == 1 && c.Connections == 1 }
	return []target{
		atMost("500,000 creates of text, in batches, visible", 3.5, seconds, r.visible(isTextBatch, "create", targetCreates)),
		atMost("then 200,000 updates of random events, visible", 1.4, seconds, r.visible(isTextBatch, "update", targetChanges)),
		atMost("then 200,000 deletes of random events, visible", 1.0, seconds, r.visible(isTextBatch, "delete", targetChanges)),
		atMost("500,000 creates with two 384-dim embeddings, visible", 15, seconds, r.visible(isVectorBatch, "create", targetCreates)),
		atLeast("creates of text, of the rate of the same rows inserted straight", 0.5, times, r.readings(batches, insertRatio)),
		atLeast("draining a topic, of the rate of ClickHouse's Kafka engine", 2, times, r.readings(anyCase, drainRatio)),
		atLeast("single POST /event, 64 connections, until visible", targetSingleWrites, perSecond, r.readings(single, createRate)),
		atMost("single POST /event, 64 connections, acknowledgement p99", 20, milliseconds, r.readings(single, createAck)),
		atMost("acknowledged to visible, light load (one request at a time), p99", 250, milliseconds, r.readings(light, freshness)),
		atMost("acknowledged to visible, full load, p99", 2000, milliseconds, r.readings(isFullLoad, freshness)),
		atMost("resident memory of Sluice's processes, full load", 512, mebibytes, r.readings(isFullLoad, sluiceMemory)),
	}
}

func anyCase(*Case) bool { return true }

func isText(c *Case) bool { return strings.HasPrefix(c.Name, workload.Text.String()) }

func isTextBatch(c *Case) bool { return isText(c) && c.Batch > 1 }

func isFullLoad(c *Case) bool {
	p := c.phase("create")
	return p != nil && p.Writes >= targetLoad
}

func isVectorBatch(c *Case) bool { return !isText(c) && c.Batch > 1 }

// readings are the values of the cases that match and have one.
func (r *Report) readings(match func(*Case) bool, value func(*Case) (float64, bool)) []reading {
	var found []reading
	for i := range r.Cases {
		c := &r.Cases[i]
		if !match(c) {
			continue
		}
		if v, ok := value(c); ok {
			found = append(found, reading{c.Title(), v})
		}
	}
	return found
}

// visible reads the phase's time, where it had that many writes.
func (r *Report) visible(match func(*Case) bool, phase string, writes int) []reading {
	return r.readings(match, func(c *Case) (float64, bool) {
		p := c.phase(phase)
		if p == nil || p.Writes != writes {
			return 0, false
		}
		return p.VisibleSeconds, true
	})
}

func (c *Case) phase(name string) *Phase {
	for i := range c.Phases {
		if c.Phases[i].Name == name {
			return &c.Phases[i]
		}
	}
	return nil
}

func createRate(c *Case) (float64, bool) {
	p := c.phase("create")
	if p == nil || p.VisibleSeconds <= 0 {
		return 0, false
	}
	return p.WritesPerSecond(), true
}

func createAck(c *Case) (float64, bool) {
	p := c.phase("create")
	if p == nil || p.AckMillis.N == 0 {
		return 0, false
	}
	return p.AckMillis.P99, true
}

func insertRatio(c *Case) (float64, bool) {
	rate, ok := createRate(c)
	if !ok || c.Limits == nil || c.Limits.InsertPerSecond <= 0 {
		return 0, false
	}
	return rate / c.Limits.InsertPerSecond, true
}

func drainRatio(c *Case) (float64, bool) {
	if c.Alternative == nil || c.Alternative.KafkaEnginePerSecond <= 0 {
		return 0, false
	}
	return c.Alternative.SluicePerSecond / c.Alternative.KafkaEnginePerSecond, true
}

// freshness is the p99 of the phase where it was the longest.
func freshness(c *Case) (worst float64, ok bool) {
	for _, p := range c.Phases {
		if p.FreshMillis.N > 0 {
			worst, ok = max(worst, p.FreshMillis.P99), true
		}
	}
	return worst, ok
}

// sluiceMemory is the highest sum of the peaks of Sluice's processes, in MiB.
// With the embedded broker, it includes the broker.
func sluiceMemory(c *Case) (mib float64, ok bool) {
	for _, p := range c.Phases {
		var sum int64
		for _, u := range p.Processes {
			if strings.HasPrefix(u.Name, "sluice ") {
				sum += u.PeakBytes
			}
		}
		mib = max(mib, float64(sum)/(1<<20))
	}
	return mib, mib > 0
}

// targets are those about the size of the table.
func (r *ScaleReport) targets() []target {
	few, many, most := r.size(targetRowsFew), r.size(targetRowsMany), r.size(targetRowsQueries)
	targets := []target{
		atMost("cost of a delete, 100 M rows against 1 M", targetMaxGrowth, times, growth(few, many, ScaleDelete)),
		atMost("cost of an update of a recent event, 100 M rows against 1 M", targetMaxGrowth, times, growth(few, many, ScaleUpdateRecent)),
		atLeast("cold updates of random events, 100 M rows", targetColdUpdates, perSecond, coldRate(many)),
	}
	for _, q := range []struct {
		name, what     string
		clean, changed float64 // ms
	}{
		{ScaleErrors, "errors of 7 days", 300, 600},
		{ScaleLatency, "p95 by session, 1 day", 400, 600},
		{ScaleSession, "one session", 20, 20},
		{ScaleTop, "top sessions of 7 days", 800, 1200},
	} {
		targets = append(targets,
			atMost(q.what+", 1 B rows, clean", q.clean, milliseconds, queryTime(most, q.name, func(q *ScaleQuery) ScaleTimes { return q.Clean })),
			atMost(q.what+", 1 B rows, after 1 % changes", q.changed, milliseconds, queryTime(most, q.name, func(q *ScaleQuery) ScaleTimes { return q.Changed })))
	}
	return targets
}

func (r *ScaleReport) size(rows int) *ScaleSize {
	for i := range r.Sizes {
		if r.Sizes[i].Rows == rows {
			return &r.Sizes[i]
		}
	}
	return nil
}

func (s *ScaleSize) write(name string) *ScaleWrite {
	if s == nil {
		return nil
	}
	for i := range s.Writes {
		if w := &s.Writes[i]; w.Name == name && w.VisibleSeconds > 0 {
			return w
		}
	}
	return nil
}

func growth(few, many *ScaleSize, write string) []reading {
	a, b := few.write(write), many.write(write)
	if a == nil || b == nil {
		return nil
	}
	return []reading{{fmt.Sprintf("%s writes", count(float64(b.Writes))), b.MicrosPerWrite() / a.MicrosPerWrite()}}
}

func coldRate(s *ScaleSize) []reading {
	w := s.write(ScaleUpdateCold)
	if w == nil {
		return nil
	}
	return []reading{{fmt.Sprintf("%s writes", count(float64(w.Writes))), w.WritesPerSecond()}}
}

func queryTime(s *ScaleSize, name string, of func(*ScaleQuery) ScaleTimes) []reading {
	if s == nil {
		return nil
	}
	for i := range s.Queries {
		if t := of(&s.Queries[i]); s.Queries[i].Name == name && t.MedianMillis > 0 {
			return []reading{{"median of several runs", t.MedianMillis}}
		}
	}
	return nil
}
