package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/sluicehq/sluice/internal/bench"
)

const (
	barHeight vg.Length = 13
	barGap    vg.Length = 4
)

// series is one bar of each group.
type series struct {
	name   string
	color  color.RGBA
	values []float64 // 0 draws nothing
	// inner, if any, is drawn inside of the bar, which then is pale.
	inner  []float64
	format func(value float64) string
}

// drawPhases has a group of bars for each case: the time of each phase until
// all is visible, and within it the time until all is acknowledged.
func drawPhases(cases []bench.Case) (*figure, error) {
	all := []series{{name: "create", color: blue}, {name: "update", color: orange}, {name: "delete", color: green}}
	var names []string
	for _, c := range cases {
		names = append(names, caseName(&c))
		for i := range all {
			visible, acked := phaseTimes(&c, all[i].name)
			all[i].values, all[i].inner = append(all[i].values, visible), append(all[i].inner, acked)
		}
	}
	for i := range all {
		all[i].format = func(v float64) string { return fmt.Sprintf("%.2f s", v) }
	}
	f, err := drawBars("Time of each phase", "seconds from the first request", names, all)
	if f == nil || err != nil {
		return nil, err
	}
	f.legend.Add("acknowledged", swatch(gray))
	f.legend.Add("visible and verified", swatch(pale(gray)))
	return f, nil
}

func phaseTimes(c *bench.Case, phase string) (visible, acked float64) {
	for _, p := range c.Phases {
		if p.Name == phase {
			return p.VisibleSeconds, p.AckedSeconds
		}
	}
	return 0, 0
}

// drawRatios has a group of bars for each case that was compared: the rate of
// its creates against each of the limits, and that of draining a topic against
// ClickHouse's own Kafka engine.
func drawRatios(cases []bench.Case) (*figure, error) {
	all := []series{
		{name: "rows inserted straight", color: blue},
		{name: "records produced straight", color: orange},
		{name: "requests discarded", color: green},
		{name: "drain: Kafka engine", color: red},
	}
	var names []string
	for _, c := range cases {
		if c.Limits == nil && c.Alternative == nil {
			continue
		}
		names = append(names, caseName(&c))
		for i, value := range ratios(&c) {
			all[i].values = append(all[i].values, value)
		}
	}
	for i := range all {
		all[i].format = func(v float64) string { return fmt.Sprintf("%.2f×", v) }
	}
	f, err := drawBars("Sluice's rate as a ratio of what it is compared with", "ratio (1: as fast)", names, all)
	if f == nil || err != nil {
		return nil, err
	}
	f.plot.X.Max = max(f.plot.X.Max, 1.1)
	return f, f.mark(1, len(names), len(all))
}

// mark draws a line at x through the bars of each group, but not its name.
func (f *figure) mark(x float64, groups, bars int) error {
	pitch, middle := 1/float64(bars+2), float64(bars)/2
	for i := range groups {
		y := float64(i)
		line, err := plotter.NewLine(plotter.XYs{{X: x, Y: y - (middle+0.5)*pitch}, {X: x, Y: y + (middle-0.5)*pitch}})
		if err != nil {
			return err
		}
		line.Color, line.Dashes = gray, []vg.Length{4, 3}
		f.plot.Add(line)
	}
	return nil
}

// ratios are 0 where one of the rates was not measured.
func ratios(c *bench.Case) [4]float64 {
	of := func(ours, theirs float64) float64 {
		if theirs <= 0 {
			return 0
		}
		return ours / theirs
	}
	var r [4]float64
	if l := c.Limits; l != nil {
		for _, p := range c.Phases {
			if p.Name == "create" && p.VisibleSeconds > 0 {
				ours := p.WritesPerSecond()
				r[0], r[1], r[2] = of(ours, l.InsertPerSecond), of(ours, l.ProducePerSecond), of(ours, l.DiscardPerSecond)
			}
		}
	}
	if a := c.Alternative; a != nil {
		r[3] = of(a.SluicePerSecond, a.KafkaEnginePerSecond)
	}
	return r
}

func caseName(c *bench.Case) string {
	how := fmt.Sprintf("batches of %d", c.Batch)
	if c.Batch == 1 {
		how = "single requests"
	}
	broker := c.Broker
	if broker == bench.EmbeddedBroker {
		broker = "embedded broker"
	}
	return fmt.Sprintf("%s; %s × %d; %s", c.Name, how, c.Connections, broker)
}

// drawBars draws groups of horizontal bars, each below its name, the first
// group on top. It returns nil without groups.
func drawBars(title, x string, groups []string, all []series) (*figure, error) {
	if len(groups) == 0 {
		return nil, nil
	}
	f := newFigure(title, x, "")
	pitch := barHeight + barGap
	group := vg.Length(len(all)+2) * pitch // a line for the name, and one of space
	f.height = 9*margin + vg.Length(len(groups))*group
	f.grid(true, false)
	for i, s := range all {
		if err := f.bars(s, pitch*(vg.Length(len(all)-1)/2-vg.Length(i)-0.5)); err != nil {
			return nil, err
		}
		f.legend.Add(s.name, swatch(s.color))
	}
	var names []note
	for i, name := range reversed(groups) {
		names = append(names, note{0, float64(i), name, vg.Point{Y: pitch * vg.Length(len(all)) / 2}})
	}
	if err := f.notes(names); err != nil {
		return nil, err
	}
	f.plot.HideY()
	f.plot.Y.Min, f.plot.Y.Max = -0.5, float64(len(groups))-0.5
	// Room for the figure behind the longest bar.
	f.plot.X.Min, f.plot.X.Max = 0, 1.2*longest(all)
	f.plot.X.Tick.Marker = steps{}
	return f, nil
}

func (f *figure) bars(s series, offset vg.Length) error {
	add := func(values []float64, fill color.RGBA) error {
		bars, err := plotter.NewBarChart(plotter.Values(reversed(values)), barHeight)
		if err != nil {
			return err
		}
		bars.Horizontal, bars.Offset, bars.Color, bars.LineStyle.Width = true, offset, fill, 0
		f.plot.Add(bars)
		return nil
	}
	outer := s.color
	if s.inner != nil {
		outer = pale(s.color)
	}
	if err := add(s.values, outer); err != nil {
		return err
	}
	if s.inner != nil {
		if err := add(s.inner, s.color); err != nil {
			return err
		}
	}
	var notes []note
	for i, value := range reversed(s.values) {
		if value > 0 {
			notes = append(notes, note{value, float64(i), s.format(value), vg.Point{X: 4, Y: offset}})
		}
	}
	return f.notes(notes)
}

// swatch is a color in a legend.
func swatch(c color.RGBA) plot.Thumbnailer {
	return &plotter.BarChart{Color: c}
}

func reversed[T any](s []T) []T {
	r := make([]T, len(s))
	for i, v := range s {
		r[len(s)-1-i] = v
	}
	return r
}

func longest(all []series) float64 {
	longest := math.SmallestNonzeroFloat64
	for _, s := range all {
		for _, v := range s.values {
			longest = max(longest, v)
		}
	}
	return longest
}
