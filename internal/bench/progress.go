package bench

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/term"
)

const (
	redrawInterval = 100 * time.Millisecond
	barWidth       = 20
	// eraseRest clears a terminal's line from the cursor on.
	eraseRest = "\x1b[K"
)

// Progress shows how far a load is: on a terminal by a line that is redrawn,
// elsewhere by a line at the start and one at the end of each step. Steps come
// one after another; only [Progress.Add] may be called concurrently. Errors of
// the writer are ignored: nobody's figures depend on it.
type Progress struct {
	w        io.Writer
	terminal bool

	name  string
	total int
	added atomic.Int64
	begun time.Time
	quit  chan struct{}
	drawn chan struct{} // closed when nothing draws any more
}

// NewProgress shows progress on w, which is a terminal if it is an [os.File]
// that is one.
func NewProgress(w io.Writer) *Progress {
	file, ok := w.(*os.File)
	return &Progress{w: w, terminal: ok && term.IsTerminal(int(file.Fd()))}
}

// Start begins a step of total writes. [Progress.Done] must end it, also when
// it fails.
func (p *Progress) Start(name string, total int) {
	p.name, p.total, p.begun = name, total, time.Now()
	p.added.Store(0)
	if !p.terminal {
		fmt.Fprintf(p.w, "%-7s %s …\n", name, count(float64(total)))
		return
	}
	p.quit, p.drawn = make(chan struct{}), make(chan struct{})
	go p.redraw()
}

// Add counts n more writes as done.
func (p *Progress) Add(n int) { p.added.Add(int64(n)) }

// Done ends the step, with a note for its line, such as its times.
func (p *Progress) Done(note string) {
	start := ""
	if p.terminal {
		close(p.quit)
		<-p.drawn
		start = "\r"
	}
	fmt.Fprintln(p.w, start+strings.TrimRight(p.line()+"  "+note, " ")+p.erase())
}

func (p *Progress) erase() string {
	if p.terminal {
		return eraseRest
	}
	return ""
}

func (p *Progress) redraw() {
	defer close(p.drawn)
	tick := time.NewTicker(redrawInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprint(p.w, "\r"+p.line()+eraseRest)
		case <-p.quit:
			return
		}
	}
}

// line is the state: on a terminal with a bar.
func (p *Progress) line() string {
	added, elapsed := float64(p.added.Load()), time.Since(p.begun).Seconds()
	rate := 0.0
	if elapsed > 0 {
		rate = added / elapsed
	}
	bar := ""
	if p.terminal {
		bar = p.bar(added) + " "
	}
	return fmt.Sprintf("%-7s %s%s/%s  %s  %.1f s", p.name, bar, count(added), count(float64(p.total)), shortRate(rate), elapsed)
}

func (p *Progress) bar(added float64) string {
	full := barWidth
	if p.total > 0 {
		full = min(barWidth, int(barWidth*added/float64(p.total)))
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(" ", barWidth-full) + "]"
}

func shortRate(rate float64) string {
	if rate < 1000 {
		return fmt.Sprintf("%.0f/s", rate)
	}
	return fmt.Sprintf("%.0f k/s", rate/1000)
}
