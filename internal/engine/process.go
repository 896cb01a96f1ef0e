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

// childEnv is the environment variable that marks a process as the child: see [ChildMain].
const childEnv = "SLUICE_ENGINE_CHILD"

// childQueries are the queries that the child's own session runs before it waits at its
// prompt.
const childQueries = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP"

// errPortTaken says that the child could not listen, because another process has the port.
var errPortTaken = errors.New("engine port is taken")

// lockDir locks the directory for this engine. The child inherits the open file, to which the
// lock belongs. So the lock lasts until both processes have ended.
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
		// The end of ctx does not end the child; stop and kill do.
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

	// The kernel kills the child when the thread that started it ends, not only when the
	// parent process does: see childAttr. So this thread is kept as long as the child lives.
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

// childEnviron returns the environment of the child: only what the library needs. The
// parent's environment may hold secrets, and SQL can read the environment of the server.
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

// stop asks the child to stop, and reports whether it has stopped within the timeout.
func (c *child) stop(timeout time.Duration) bool {
	_ = c.stdin.Close() // an error means that the pipe is closed already
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-c.exited:
		return true
	case <-t.C:
		return false
	}
}

// kill kills the child and waits until it has ended, but no longer than killTimeout: a
// process that hangs in the kernel because of a dead disk may never end.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // an error means that it has ended already
	t := time.NewTimer(killTimeout)
	defer t.Stop()
	select {
	case <-c.exited:
	case <-t.C:
	}
}

// exitError says how the child ended and what it printed last. Call it only after exited is
// closed.
func (c *child) exitError() error {
	return c.endError("engine exited: " + c.cmd.ProcessState.String())
}

// isRefused reports whether the child runs but its queries, which open the listeners, have
// failed.
func (c *child) isRefused() bool {
	return strings.Contains(c.output.String(), "Received exception")
}

// endError returns an error with what happened and what the child printed last. The error
// wraps the cause if it is known.
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
