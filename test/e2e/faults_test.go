package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	writers = 3
	// someWrites is how many creates a fault test waits for before and after its fault.
	someWrites = 2000
)

// TestRestart stops the pipeline in the middle of use, in both ways, and
// starts it again on the same directory.
func TestRestart(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *process){
		"SIGINT":  func(t *testing.T, p *process) { p.stop(t) },
		"SIGTERM": func(t *testing.T, p *process) { terminate(t, p) },
		"SIGKILL": func(_ *testing.T, p *process) { p.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p, c := serve(t, dir)
			before := newLedger("before")
			stop := before.write(c, writers)
			defer stop()
			before.waitForWrites(t, someWrites)
			end(t, p)
			stop()
			requireNothingRuns(t, dir)

			p, c = serve(t, dir)
			before.check(t, c)
			after := newLedger("after")
			stop = after.write(c, writers)
			defer stop()
			after.waitForWrites(t, someWrites)
			stop()
			after.requireNoFailures(t)
			after.check(t, c)
			before.check(t, c)
			p.stop(t)
			requireNothingRuns(t, dir)
		})
	}
}

func terminate(t *testing.T, p *process) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t, stopBound); code != 0 {
		t.Fatalf("exited %d after SIGTERM, want 0", code)
	}
}

// TestEngineDies kills the embedded ClickHouse twice while events come in, at
// once or after it hung. The API goes on acknowledging, and everything becomes
// visible.
func TestEngineDies(t *testing.T) {
	kill := func(t *testing.T, pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("kill the engine: %v", err)
		}
	}
	t.Run("killed", func(t *testing.T) {
		testEngineDies(t, newLedger("load"), func(_ *ledger, pid int) { kill(t, pid) })
	})
	t.Run("frozen, then killed", func(t *testing.T) {
		l := newLedger("load")
		l.minted = true
		testEngineDies(t, l, func(l *ledger, pid int) {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatalf("stop the engine: %v", err)
			}
			l.waitForWrites(t, someWrites) // what the consumer inserts now is under way
			kill(t, pid)
		})
	})
}

func testEngineDies(t *testing.T, l *ledger, end func(l *ledger, pid int)) {
	t.Helper()
	p, c := serve(t, t.TempDir())
	stop := l.write(c, writers)
	defer stop()
	pid := engineOf(t, p)
	for range 2 {
		l.waitForWrites(t, someWrites)
		end(l, pid)
		l.waitForWrites(t, someWrites) // acknowledged without a database
		next := pid
		eventually(t, startBound, "another engine", func() error {
			if next = engineOf(t, p); next == pid {
				return fmt.Errorf("process %d is still there", pid)
			}
			return nil
		})
		pid = next
		c.waitReady(t)
	}
	stop()
	l.requireNoFailures(t)
	l.check(t, c)
	p.stop(t)
}

// TestRecreatedTopic removes the embedded broker's data and not ClickHouse's.
// The offsets would begin again, below the versions of the rows.
func TestRecreatedTopic(t *testing.T) {
	dir := t.TempDir()
	p, c := serve(t, dir)
	l := newLedger("load")
	if err := l.round(c, "only"); err != nil {
		t.Fatal(err)
	}
	l.check(t, c)
	p.stop(t)
	if err := os.RemoveAll(filepath.Join(dir, "kafka")); err != nil {
		t.Fatal(err)
	}
	p = start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", dir)
	if code := p.wait(t, startBound); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	last := strings.TrimSpace(p.log.tail(500))
	last = last[strings.LastIndexByte(last, '\n')+1:]
	if !strings.Contains(last, "sluice.events.g1") || !strings.Contains(last, "offsets begin again") {
		t.Errorf("the last line is %q, want it to say that the topic is another", last)
	}
	requireNothingRuns(t, dir)
}

// TestVisibleSoon measures, on a quiet system, the time from the request of a
// write to its being visible to readers.
func TestVisibleSoon(t *testing.T) {
	const bound = 2 * time.Second
	p, c := serve(t, t.TempDir())
	var took []time.Duration
	for i := range 20 {
		id := fmt.Sprintf("event-%d", i)
		began := time.Now()
		a, err := c.do(http.MethodPost, "/event", fmt.Appendf(nil, `{"id":%q,"conversation_id":"quiet","event_name":"event_a"}`, id), "")
		if err != nil || a.status != http.StatusAccepted {
			t.Fatalf("POST /event: %v, status %d: %s", err, a.status, a.body)
		}
		eventually(t, bound, "the event", func() error {
			a, err := c.do(http.MethodGet, eventPath(id), nil, "")
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("status %d", a.status)
			}
			return err
		})
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from POST to visible: median %s, highest %s", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	p.stop(t)
}
