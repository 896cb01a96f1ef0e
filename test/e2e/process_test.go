package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/testport"
)

const (
	startBound = time.Minute
	// stopBound is above the sum of the program's own bounds on a clean stop of an idle pipeline.
	stopBound = 45 * time.Second
	// logTailBytes is how much of a process's log a failed test shows.
	logTailBytes = 8 << 10
)

// process is a running sluice, in a process group of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	log  logBuffer
	out  logBuffer
	done chan struct{} // closed when it has ended
}

// start starts sluice. It ends with the test, and with the test's process
// however that ends.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := launch(t, sluiceBinary, t.TempDir(), nil, args...)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("end of the log of sluice %s:\n%s", strings.Join(args, " "), p.log.tail(logTailBytes))
		}
	})
	return p
}

// launch starts a sluice in dir, so that a default path cannot meet the
// repository, with more variables. It ends with the test's process.
func launch(t *testing.T, binary, dir string, env []string, args ...string) *process {
	t.Helper()
	p := &process{name: args[0], cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.log
	p.cmd.Dir = dir
	p.cmd.SysProcAttr = processAttr()
	p.cmd.WaitDelay = 5 * time.Second
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SLUICE_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "GORACE=halt_on_error=1") // for a binary with the race detector
	p.cmd.Env = append(p.cmd.Env, env...)
	started := make(chan error)
	go func() {
		// What the kernel takes for the parent is the thread that started the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // exitCode reads the state
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start sluice %s: %v", p.name, err)
	}
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits for the end and returns the exit code, -1 after a signal.
func (p *process) wait(t *testing.T, bound time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(bound):
		t.Fatalf("sluice %s has not ended after %s", p.name, bound)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends it as Ctrl-C does, and fails the test unless it exits 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if p.ended() {
		t.Fatalf("sluice %s ended by itself, exit code %d", p.name, p.cmd.ProcessState.ExitCode())
	}
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatalf("interrupt sluice %s: %v", p.name, err)
	}
	if code := p.wait(t, stopBound); code != 0 {
		t.Fatalf("sluice %s exited %d after SIGINT, want 0", p.name, code)
	}
}

// kill ends it with SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // or it has ended already
	<-p.done
}

var listening = regexp.MustCompile(`msg="?(?:listening|API listens)"? addr=(\S+)`)

// addr waits until the API listens, and returns its address.
func (p *process) addr(t *testing.T) string {
	t.Helper()
	var addr string
	eventually(t, startBound, "API of sluice "+p.name, func() error {
		if m := listening.FindSubmatch(p.log.bytes()); m != nil {
			addr = string(m[1])
			return nil
		}
		if p.ended() {
			t.Fatalf("sluice %s exited %d before it listened", p.name, p.cmd.ProcessState.ExitCode())
		}
		return errors.New("the log names no address")
	})
	return addr
}

// serve starts sluice serve on the directory, waits until it is ready, and
// returns it with a client.
func serve(t *testing.T, dir string, args ...string) (*process, *client) {
	t.Helper()
	return serveOn(t, dir, "127.0.0.1:0", args...)
}

// serveOn is serve at an address.
func serveOn(t *testing.T, dir, addr string, args ...string) (*process, *client) {
	t.Helper()
	p := start(t, append([]string{"serve", "--listen", addr, "--data-dir", dir}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "clickhouse", "server.log"))
			t.Logf("end of ClickHouse's log:\n%s", text[max(0, len(text)-logTailBytes):])
		}
	})
	c := newClient(p.addr(t))
	c.waitReady(t)
	return p, c
}

// freeAddr is an address that nothing listens on now.
func freeAddr(t *testing.T) string {
	t.Helper()
	ports, err := testport.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
}

// newKey has the program make a key, and returns it with its line for the file.
func newKey(t *testing.T, name, scopes string) (key, line string) {
	t.Helper()
	p := start(t, "key", "new", name, "--scopes", scopes)
	if code := p.wait(t, startBound); code != 0 {
		t.Fatalf("key new exited %d", code)
	}
	fields := strings.Fields(string(p.out.bytes()))
	if len(fields) != 4 {
		t.Fatalf("key new printed %q", fields)
	}
	return fields[1], fields[3]
}

// writeKeys replaces the key file as an editor does.
func writeKeys(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// logBuffer keeps what a process writes.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *logBuffer) tail(n int) string {
	text := b.bytes()
	return string(text[max(0, len(text)-n):])
}

// engineOf returns the process id of the embedded ClickHouse of a running sluice.
func engineOf(t *testing.T, p *process) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("finding a child process is written for Linux")
	}
	var pid int
	eventually(t, startBound, "embedded ClickHouse", func() error {
		stats, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			return err
		}
		for _, path := range stats {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended meanwhile
			}
			// pid (name) state ppid …; the name may hold spaces and parentheses.
			fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
			if len(fields) > 1 && fields[0] != "Z" && fields[1] == strconv.Itoa(p.pid()) {
				pid, err = strconv.Atoi(filepath.Base(filepath.Dir(path)))
				return err
			}
		}
		return fmt.Errorf("process %d has no child", p.pid())
	})
	return pid
}

// requireNothingRuns waits until no process of the data directory is left.
func requireNothingRuns(t *testing.T, dir string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return
	}
	eventually(t, 10*time.Second, "processes that are left behind", func() error {
		paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err == nil && bytes.Contains(text, []byte(dir)) {
				return fmt.Errorf("%s: %s", path, bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
			}
		}
		return nil
	})
}
