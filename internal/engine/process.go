package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// childEnv marks a process as the child: see [ChildMain].
const childEnv = "SLUICE_ENGINE_CHILD"

// childQueries is what the child's own session runs before it waits at its prompt.
const childQueries = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP"

// errPortTaken says that the child could not listen.
var errPortTaken = errors.New("engine port is taken")

// lockDir takes the directory for this engine. The lock belongs to the open file, which the
// child inherits, so it lasts until the last of the two processes is gone.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	path := filepath.Join(dir, "engine.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // in the configured directory
	if err != nil {
		return nil, fmt.Errorf("lock engine directory: %w", err)
	}
	deadline := time.After(lockTimeout)
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-tick.C:
		case <-deadline:
			return nil, errors.Join(fmt.Errorf("engine directory %s: %w", dir, ErrInUse), f.Close())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}

// child is one run of the server process.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	output *tailWriter   // standard error
	exited chan struct{} // closed when the process is gone
}

// startChild starts this program once more as the server: see [ChildMain].
func startChild(ctx context.Context, cfg Config, configPath string, lock *os.File) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	c := &child{
		// Not ended by ctx, but by stop and kill.
		cmd: exec.CommandContext(context.WithoutCancel(ctx), exe, //nolint:gosec // this very program
			cfg.Library,
			"--config-file="+configPath,
			"--path="+filepath.Join(cfg.Dir, "data"),
			"--interactive",
			"--disable_suggestion",
			"--progress=off",
			"--progress-table=off",
			"--history_file=/dev/null",
			"--query="+childQueries,
		),
		output: &tailWriter{max: outputTailBytesMax},
		exited: make(chan struct{}),
	}
	c.cmd.Args[0] = filepath.Base(exe) + "-engine" // what ps shows
	c.cmd.Dir = cfg.Dir
	c.cmd.Env = childEnviron()
	c.cmd.Stderr = c.output
	c.cmd.ExtraFiles = []*os.File{lock}
	c.cmd.SysProcAttr = childAttr()
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}

	// The kernel's "when the parent is gone" is about the thread that started the child,
	// not the process. So that thread is kept for as long as the child lives.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = c.cmd.Wait() // exitError reads the state
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	return c, nil
}

// childEnviron is the little that the library needs of the environment. The parent's may
// hold secrets, and what can be read in the server's environment can be read through SQL.
func childEnviron() []string {
	env := []string{childEnv + "=1", "TZ=UTC", "TERM=dumb"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop asks the child to stop and reports whether it did so in time.
func (c *child) stop(timeout time.Duration) bool {
	_ = c.stdin.Close() // a closed pipe says the same
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-c.exited:
		return true
	case <-t.C:
		return false
	}
}

// kill ends the child and waits until it is gone, for a bounded time: a process that hangs
// in the kernel, on a dead disk, cannot be waited for.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // or it is gone already
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-c.exited:
	case <-t.C:
	}
}

// exitError says how the child ended and what it said last. Only after exited is closed.
func (c *child) exitError() error {
	return c.endError("engine exited: " + c.cmd.ProcessState.String())
}

// isRefused reports whether the child runs but its session's queries, which open the
// listeners, were answered with an error.
func (c *child) isRefused() bool {
	return strings.Contains(c.output.String(), "Received exception")
}

// endError adds to what happened the last that the child said, and the cause, if known.
func (c *child) endError(what string) error {
	said := strings.TrimSpace(c.output.String())
	if said != "" {
		what += ": " + said
	}
	switch {
	case strings.Contains(said, "Address already in use"):
		return fmt.Errorf("%w: %s", errPortTaken, what)
	case strings.Contains(said, "Cannot lock file"):
		return fmt.Errorf("%w: %s", ErrInUse, what)
	}
	return errors.New(what)
}

// tailWriter keeps the last bytes written to it.
type tailWriter struct {
	max int

	mu  sync.Mutex
	buf []byte
}

func (w *tailWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	if over := len(w.buf) - w.max; over > 0 {
		w.buf = append(w.buf[:0], w.buf[over:]...)
	}
	return len(p), nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.buf)
}
