package main

import (
	"bytes"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Lengths are in points, of which a browser draws 3 as 4 pixels.
const (
	textSize    vg.Length = 10
	titleSize   vg.Length = 14
	margin      vg.Length = 12
	legendWidth vg.Length = 210
	sourceText            = "measured by: make bench"
	scaleSource           = "measured by: sluice-bench scale"
)

// Colors that people who see few of them can tell apart (Okabe and Ito).
var (
	blue   = color.RGBA{0, 114, 178, 255}
	orange = color.RGBA{230, 159, 0, 255}
	green  = color.RGBA{0, 158, 115, 255}
	red    = color.RGBA{213, 94, 0, 255}
	gray   = color.RGBA{90, 90, 90, 255}
	light  = color.RGBA{225, 225, 225, 255}
)

// pale mixes a color with two parts of white.
func pale(c color.RGBA) color.RGBA {
	mix := func(v uint8) uint8 { return uint8((int(v) + 2*255) / 3) }
	return color.RGBA{mix(c.R), mix(c.G), mix(c.B), 255}
}

// figure is a plot with its legend beside it and its source below, all on
// white, so that it can be read on a dark page too.
type figure struct {
	plot          *plot.Plot
	legend        plot.Legend
	width, height vg.Length
	source        string
}

func newFigure(title, x, y string) *figure {
	f := &figure{plot: plot.New(), legend: plot.NewLegend(), width: 720, height: 360, source: sourceText}
	f.plot.Title.Text, f.plot.X.Label.Text, f.plot.Y.Label.Text = title, x, y
	f.plot.Title.Padding = margin
	for _, style := range []*text.Style{
		&f.plot.X.Label.TextStyle, &f.plot.Y.Label.TextStyle, &f.plot.X.Tick.Label, &f.plot.Y.Tick.Label, &f.legend.TextStyle,
	} {
		style.Font = sans(textSize)
	}
	f.plot.Title.TextStyle.Font = sans(titleSize)
	f.legend.Top, f.legend.Left, f.legend.Padding = true, true, 4
	return f
}

func sans(size vg.Length) font.Font {
	return font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}

// grid draws lines at the ticks of an axis.
func (f *figure) grid(vertical, horizontal bool) {
	g := plotter.NewGrid()
	g.Vertical.Color, g.Horizontal.Color = nil, nil
	if vertical {
		g.Vertical.Color = light
	}
	if horizontal {
		g.Horizontal.Color = light
	}
	f.plot.Add(g)
}

// svg is the file's content.
func (f *figure) svg() ([]byte, error) {
	canvas := vgsvg.New(f.width, f.height)
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Path())
	f.plot.Draw(draw.Crop(all, margin, -legendWidth-2*margin, 3*margin, -margin))
	f.legend.Draw(draw.Crop(all, f.width-legendWidth-margin, -margin, 3*margin, -4*margin))
	all.FillText(text.Style{Color: gray, Font: sans(textSize), Handler: f.plot.TextHandler}, vg.Point{X: margin, Y: margin}, f.source)
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	// Not everybody has this font: Arial has the same widths.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

func (f *figure) save(path string) error {
	svg, err := f.svg()
	if err != nil {
		return err
	}
	return os.WriteFile(path, svg, 0o644)
}

// note writes a text beside a point of the plot.
type note struct {
	x, y float64
	text string
	at   vg.Point // the offset
}

// notes adds texts to the plot.
func (f *figure) notes(notes []note) error {
	if len(notes) == 0 {
		return nil
	}
	var labels plotter.XYLabels
	for _, n := range notes {
		labels.XYs = append(labels.XYs, plotter.XY{X: n.x, Y: n.y})
		labels.Labels = append(labels.Labels, n.text)
	}
	drawn, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	drawn.Offset = vg.Point{}
	for i := range drawn.TextStyle {
		drawn.TextStyle[i].Font, drawn.TextStyle[i].YAlign = sans(textSize), text.YCenter
	}
	f.plot.Add(shifted{drawn, notes})
	return nil
}

// shifted draws labels with an offset for each.
type shifted struct {
	*plotter.Labels
	notes []note
}

// Plot implements [plot.Plotter].
func (s shifted) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for i, n := range s.notes {
		at := vg.Point{X: x(n.x) + n.at.X, Y: y(n.y) + n.at.Y}
		c.FillText(s.TextStyle[i], at, n.text)
	}
}
