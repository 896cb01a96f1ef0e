package main

import (
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/sluicehq/sluice/internal/bench"
)

// line is one value against the size of the table.
type line struct {
	name   string
	color  color.RGBA
	dashed bool
	value  func(s *bench.ScaleSize) float64 // 0 where it was not measured
}

// drawWrites shows what a write costs, of each kind.
func drawWrites(sizes []bench.ScaleSize) (*figure, error) {
	f := newFigure("Cost of a write against the size of the table", "rows of the hot table", "µs per write, until visible")
	cost := func(kind string) func(*bench.ScaleSize) float64 {
		return func(s *bench.ScaleSize) float64 {
			for _, w := range s.Writes {
				if w.Name == kind && w.Writes > 0 {
					return w.MicrosPerWrite()
				}
			}
			return 0
		}
	}
	_, highest, err := f.lines(sizes, []line{
		{"delete", green, false, cost(bench.ScaleDelete)},
		{"recent update", orange, false, cost(bench.ScaleUpdateRecent)},
		{"cold update", blue, false, cost(bench.ScaleUpdateCold)},
	})
	if highest == 0 || err != nil {
		return nil, err
	}
	f.plot.Y.Min, f.plot.Y.Max, f.plot.Y.Tick.Marker = 0, 1.1*highest, steps{}
	return f, nil
}

// drawQueries shows the time of each query, on a clean table and on one with
// fresh changes.
func drawQueries(sizes []bench.ScaleSize) (*figure, error) {
	f := newFigure("Time of a query against the size of the table", "rows of the hot table", "ms, median")
	var all []line
	for _, q := range []struct {
		name, query string
		color       color.RGBA
	}{
		{"errors, 7 days", bench.ScaleErrors, red},
		{"p95 latency, 1 day", bench.ScaleLatency, blue},
		{"one session", bench.ScaleSession, green},
		{"top sessions, 7 days", bench.ScaleTop, orange},
	} {
		times := func(of func(*bench.ScaleQuery) float64) func(*bench.ScaleSize) float64 {
			return func(s *bench.ScaleSize) float64 {
				for i := range s.Queries {
					if s.Queries[i].Name == q.query {
						return of(&s.Queries[i])
					}
				}
				return 0
			}
		}
		all = append(
			all,
			line{q.name + ", clean", q.color, false, times(func(q *bench.ScaleQuery) float64 { return q.Clean.MedianMillis })},
			line{q.name + ", changed", q.color, true, times(func(q *bench.ScaleQuery) float64 { return q.Changed.MedianMillis })},
		)
	}
	lowest, highest, err := f.lines(sizes, all)
	if highest == 0 || err != nil {
		return nil, err
	}
	f.plot.Y.Scale, f.plot.Y.Tick.Marker = plot.LogScale{}, decades{}
	f.plot.Y.Min, f.plot.Y.Max = math.Pow10(int(math.Floor(math.Log10(lowest)))), math.Pow10(int(math.Floor(math.Log10(highest)))+1)
	return f, nil
}

// lines adds the lines, and returns the lowest and highest value; 0 is none.
func (f *figure) lines(sizes []bench.ScaleSize, all []line) (lowest, highest float64, err error) {
	f.source = scaleSource
	f.grid(true, true)
	smallest, largest := math.Inf(1), 0.0
	lowest = math.Inf(1)
	for _, l := range all {
		var points plotter.XYs
		for i := range sizes {
			x, y := float64(sizes[i].Rows), l.value(&sizes[i])
			if x <= 0 || y <= 0 {
				continue
			}
			points = append(points, plotter.XY{X: x, Y: y})
			smallest, largest, lowest, highest = min(smallest, x), max(largest, x), min(lowest, y), max(highest, y)
		}
		if err := f.line(l, points); err != nil {
			return 0, 0, err
		}
	}
	f.plot.X.Scale, f.plot.X.Tick.Marker = plot.LogScale{}, decades{}
	f.plot.X.Min, f.plot.X.Max = smallest/1.5, largest*1.5
	return lowest, highest, nil
}

func (f *figure) line(l line, points plotter.XYs) error {
	if len(points) == 0 {
		return nil
	}
	drawn, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	drawn.Color, drawn.Width = l.color, 1.8
	dots.Color, dots.Shape, dots.Radius = l.color, draw.CircleGlyph{}, 3
	if l.dashed {
		drawn.Dashes = []vg.Length{5, 3}
	}
	f.plot.Add(drawn, dots)
	f.legend.Add(l.name, drawn, dots)
	return nil
}

// steps are the ticks of a linear axis from 0: 1, 2 or 5 times a power of ten
// apart, and at most ten.
type steps struct{}

// Ticks implements [plot.Ticker].
func (steps) Ticks(_, high float64) []plot.Tick {
	step := math.Pow10(int(math.Floor(math.Log10(high))) - 1)
	for _, times := range []float64{2, 2.5, 2} {
		if high/step > 10 {
			step *= times
		}
	}
	var ticks []plot.Tick
	for i := 0.0; i*step <= high*(1+1e-9); i++ { // but for rounding
		ticks = append(ticks, plot.Tick{Value: i * step, Label: strconv.FormatFloat(i*step, 'g', 6, 64)})
	}
	return ticks
}

// decades are the ticks of a logarithmic axis.
type decades struct{}

// Ticks implements [plot.Ticker].
func (decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for exponent := int(math.Floor(math.Log10(low))); exponent <= int(math.Ceil(math.Log10(high))); exponent++ {
		decade := math.Pow10(exponent)
		for i := 1.0; i < 10; i++ {
			label := ""
			if i == 1 {
				label = short(decade)
			}
			// Beyond the axis a tick would be drawn too.
			if v := i * decade; v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: label})
			}
		}
	}
	return ticks
}

// short is a number with a unit: 10 M.
func short(v float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "B"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= unit.size {
			return fmt.Sprintf("%g %s", v/unit.size, unit.name)
		}
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
