package bench

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProgress(t *testing.T) {
	const second = "create  [#####               ] 125,000/500,000  125 k/s  1.0 s"
	for _, test := range []struct {
		name     string
		terminal bool
		want     string // at the end
		lines    int    // redrawn until then
	}{
		{"terminal", true, "\r" + "create  [####################] 500,000/500,000  251 k/s  2.0 s  visible 2.10 s" + eraseRest + "\n", 19},
		{"file", false, "create  500,000 …\ncreate  500,000/500,000  251 k/s  2.0 s  visible 2.10 s\n", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				p := NewProgress(&out)
				p.terminal = test.terminal
				p.Start("create", 500_000)
				addConcurrently(p, 125, 1000)
				wait(1050 * time.Millisecond)
				if test.terminal && !bytes.Contains(out.Bytes(), []byte(second)) {
					t.Errorf("after a second: %q", out.String())
				}
				p.Add(375_000)
				wait(945 * time.Millisecond)
				p.Done("visible 2.10 s")
				got := out.String()
				if lines := bytes.Count(out.Bytes(), []byte("\r")); test.terminal {
					got = got[bytes.LastIndexByte([]byte(got), '\r'):]
					if lines != test.lines+1 {
						t.Errorf("%d lines drawn, want %d", lines, test.lines+1)
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("at the end (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A step that does nothing, and one after another.
func TestProgressSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out)
		p.Start("update", 0)
		p.Done("")
		p.Start("delete", 1)
		p.Add(1)
		wait(time.Second)
		p.Done("")
		if diff := cmp.Diff("update  0 …\nupdate  0/0  0/s  0.0 s\ndelete  1 …\ndelete  1/1  1/s  1.0 s\n", out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// wait lets a synctest bubble's clock run.
func wait(d time.Duration) { <-time.After(d); synctest.Wait() }

func addConcurrently(p *Progress, times, n int) {
	var group sync.WaitGroup
	for range times {
		group.Go(func() { p.Add(n) })
	}
	group.Wait()
}
