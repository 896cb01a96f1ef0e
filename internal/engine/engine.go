// Package engine runs the embedded ClickHouse server. It finds the library libchdb, and
// runs it in a child process that serves the native protocol and HTTP on loopback. It starts
// the child again when the child dies, and stops it.
//
// The child is the running program, started once more: see [ChildMain]. Only the child loads
// the library. So a crash of the server does not end the parent, and the server's memory is
// not the parent's. The child ends when its parent does.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// User is the user that Sluice logs in as, and Database is the name of that user's
// database. The first migration creates the database, not this package.
const (
	User     = "sluice"
	Database = "sluice"
	// SQLUser is the user of [Config.SQLUser].
	SQLUser = "sluice_sql"
)

const (
	// backoffMin is the pause before the first restart of a child.
	backoffMin = 100 * time.Millisecond

	// healthyAfter is how long a child must serve before its restart waits backoffMin again.
	healthyAfter = time.Minute

	// probeInterval is the time between two probes of a starting child, and probeTimeout
	// bounds each of them.
	probeInterval = 20 * time.Millisecond
	probeTimeout  = 2 * time.Second

	// portAttempts is how often the first start is tried. Another process may take the
	// chosen ports before the child listens on them; each attempt chooses other ports.
	portAttempts = 5

	// lockTimeout is how long a start waits for the lock of the directory. The child of a
	// killed parent holds it for a moment longer than the parent.
	lockTimeout = 3 * time.Second

	// killTimeout bounds the wait for a killed child.
	killTimeout = 10 * time.Second

	// outputTailBytesMax bounds what is kept of the child's standard error.
	outputTailBytesMax = 4 << 10
)

var (
	// ErrInUse is returned by [Engine.Run] when another engine uses the directory.
	ErrInUse = errors.New("directory is in use by another engine")

	// ErrStopped is returned by [Engine.WaitReady] when Run has returned before the engine
	// was ready.
	ErrStopped = errors.New("engine has stopped")
)

// Engine is one embedded server. Its methods are safe for concurrent use.
type Engine struct {
	cfg       Config
	log       *slog.Logger
	passwords passwords
	client    *http.Client

	up       prometheus.Gauge
	restarts prometheus.Counter

	ready   chan struct{} // closed when the first child answers
	stopped chan struct{} // closed when Run returns

	mu                sync.Mutex
	running           bool // Run has been called
	tcpPort, httpPort int
	pid               int // of the child, 0 when there is none
}

// passwords are those of the users, in plain text.
type passwords struct{ user, sqlUser string }

// New returns an engine with a password of its own, which starts with [Engine.Run]. It
// touches neither files nor processes. A nil registerer leaves the metrics unregistered.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Engine, error) {
	if os.Getenv(childEnv) != "" {
		// Without this check each child would start another child.
		return nil, errors.New("engine: ChildMain is not the first call of this program's main")
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:       cfg,
		log:       log,
		passwords: passwords{user: newPassword(), sqlUser: newPassword()},
		// Each probe has its own connection, because a server that stops waits for open ones.
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: probeTimeout},
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_engine_up",
			Help: "1 while the embedded ClickHouse engine answers, 0 while it starts or is down.",
		}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_engine_restarts_total",
			Help: "Restarts of the embedded ClickHouse engine after it died.",
		}),
		ready:    make(chan struct{}),
		stopped:  make(chan struct{}),
		tcpPort:  cfg.TCPPort,
		httpPort: cfg.HTTPPort,
	}
	if reg != nil {
		for _, c := range []prometheus.Collector{e.up, e.restarts} {
			if err := reg.Register(c); err != nil {
				return nil, fmt.Errorf("register engine metrics: %w", err)
			}
		}
	}
	return e, nil
}

func newPassword() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Ready returns a channel that is closed when the engine has answered its first query. The
// channel stays closed while a child that died is replaced. Clients see that like the restart
// of any server.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// WaitReady waits for [Engine.Ready]. It returns [ErrStopped] if Run returns first; the error
// of Run says why.
func (e *Engine) WaitReady(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	case <-e.stopped:
		return ErrStopped
	case <-ctx.Done():
		return fmt.Errorf("wait for engine: %w", ctx.Err())
	}
}

// Addr returns the host:port of the native protocol. It is final once the engine is ready.
func (e *Engine) Addr() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return net.JoinHostPort(e.cfg.Host, strconv.Itoa(e.tcpPort))
}

// HTTPAddr returns the host:port of the HTTP interface. It is final once the engine is ready.
func (e *Engine) HTTPAddr() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return net.JoinHostPort(e.cfg.Host, strconv.Itoa(e.httpPort))
}

// Password returns the password of [User]: 256 random bits in hexadecimal, made by [New]
// and kept across restarts of the child.
func (e *Engine) Password() string { return e.passwords.user }

// SQLPassword is [Engine.Password] for [SQLUser].
func (e *Engine) SQLPassword() string { return e.passwords.sqlUser }

// PID returns the process id of the child, or 0 when there is none at the moment.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pid
}

// Run starts the server and keeps it running until ctx is done. Then it stops the server
// cleanly and returns nil.
//
// Once the engine has been ready, a child that dies is started again on the same ports, as
// often as needed, after a pause of at most RestartDelayMax. If the first child dies before it
// is ready, Run returns an error, because another start would end in the same way. The error
// wraps [ErrInUse] if another engine uses the directory.
//
// Everything that writes to the server must have stopped before ctx is done. Connections that
// are still open delay the stop by 5 s, and queries that still run are cut off. Run may be
// called once.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	again := e.running
	e.running = true
	e.mu.Unlock()
	if again {
		panic("BUG: engine: Run called twice")
	}
	defer close(e.stopped)

	if err := os.MkdirAll(e.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("create engine directory: %w", err)
	}
	lock, err := lockDir(ctx, e.cfg.Dir)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { _ = lock.Close() }()

	backoff := backoffMin
	for attempt := 1; ; attempt++ {
		served, err := e.runChild(ctx, lock)
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-e.ready:
		default:
			if errors.Is(err, errPortTaken) && e.portsAreChosen() && attempt < portAttempts {
				continue
			}
			return err
		}
		if served >= healthyAfter {
			backoff = backoffMin
		}
		e.restarts.Inc()
		e.log.Error("engine died, restarting", "err", err, "served", served, "backoff", backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, e.cfg.RestartDelayMax)
	}
}

// portsAreChosen reports whether another attempt at a first start can use other ports.
func (e *Engine) portsAreChosen() bool { return e.cfg.TCPPort == 0 || e.cfg.HTTPPort == 0 }

// runChild starts one child and returns when the child has ended. When ctx is done, it stops
// the child. It returns how long the child served, and why it ended. The error is nil only
// if ctx is done.
func (e *Engine) runChild(ctx context.Context, lock *os.File) (served time.Duration, err error) {
	if err := e.choosePorts(ctx); err != nil {
		return 0, err
	}
	configPath, err := e.writeConfig()
	if err != nil {
		return 0, err
	}
	launched := time.Now()
	c, err := startChild(ctx, e.cfg, configPath, lock)
	if err != nil {
		return 0, err
	}
	e.setPID(c.pid())
	defer e.setPID(0)
	e.log.Info("engine starting", "pid", c.pid(), "dir", e.cfg.Dir)

	if err := e.awaitAnswer(ctx, c); err != nil {
		if ctx.Err() != nil {
			e.stopChild(c)
		} else {
			c.kill()
		}
		return 0, err
	}
	ready := time.Now()
	e.up.Set(1)
	defer e.up.Set(0)
	e.log.Info("engine ready", "pid", c.pid(), "addr", e.Addr(), "http_addr", e.HTTPAddr(), "took", ready.Sub(launched))
	select {
	case <-e.ready:
	default:
		close(e.ready) // only the goroutine of Run closes it
	}

	select {
	case <-c.exited:
		return time.Since(ready), c.exitError()
	case <-ctx.Done():
		e.up.Set(0)
		e.stopChild(c)
		return time.Since(ready), nil
	}
}

// stopChild stops the child. If that takes longer than StopTimeout, it kills the child.
func (e *Engine) stopChild(c *child) {
	begin := time.Now()
	if c.stop(e.cfg.StopTimeout) {
		e.log.Info("engine stopped", "took", time.Since(begin))
		return
	}
	c.kill()
	e.log.Warn("engine killed, it did not stop in time", "took", time.Since(begin))
}

// awaitAnswer waits until the child answers a query of [User] over HTTP. The child opens the
// listener for HTTP last, so both are open then.
func (e *Engine) awaitAnswer(ctx context.Context, c *child) error {
	timeout := time.NewTimer(e.cfg.StartTimeout)
	defer timeout.Stop()
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		err := e.probe(ctx)
		if err == nil {
			return nil
		}
		if c.isRefused() {
			return c.endError("engine does not listen")
		}
		select {
		case <-tick.C:
		case <-c.exited:
			return c.exitError()
		case <-timeout.C:
			return fmt.Errorf("engine does not answer %s after its start: %w", e.cfg.StartTimeout, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// probe asks the server for one row as [User].
func (e *Engine) probe(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.HTTPAddr()+"/?query=SELECT+1", nil)
	if err != nil {
		return fmt.Errorf("probe engine: %w", err)
	}
	req.Header.Set("X-ClickHouse-User", User)
	req.Header.Set("X-ClickHouse-Key", e.passwords.user)
	resp, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("probe engine: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("probe engine: %w", err)
	}
	if resp.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != "1" {
		return fmt.Errorf("probe engine: %s: %.200q", resp.Status, body)
	}
	return nil
}

func (e *Engine) setPID(pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pid = pid
}

// choosePorts chooses the ports that the configuration leaves open. Once the engine has
// been ready, it keeps its ports.
func (e *Engine) choosePorts(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	default:
	}
	// Both listeners stay open until both ports are chosen, so that the ports differ.
	tcpPort, tcp, err := reservePort(ctx, e.cfg.Host, e.cfg.TCPPort)
	if err != nil {
		return err
	}
	defer func() { _ = tcp.Close() }()
	httpPort, web, err := reservePort(ctx, e.cfg.Host, e.cfg.HTTPPort)
	if err != nil {
		return err
	}
	defer func() { _ = web.Close() }()

	e.mu.Lock()
	defer e.mu.Unlock()
	e.tcpPort, e.httpPort = tcpPort, httpPort
	return nil
}

// reservePort listens on the port, or on a free one if it is 0, so that no other process
// takes it. The caller closes the listener. If a configured port is taken, the error says so
// before a child is started.
func reservePort(ctx context.Context, host string, port int) (int, net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, nil, fmt.Errorf("engine port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l, nil
}

// writeConfig writes the configuration for the next child to a new file, and then replaces
// the old one by it.
func (e *Engine) writeConfig() (path string, err error) {
	e.mu.Lock()
	tcpPort, httpPort := e.tcpPort, e.httpPort
	e.mu.Unlock()

	path = filepath.Join(e.cfg.Dir, "config.xml")
	content, err := e.cfg.configFile(path, e.passwords, tcpPort, httpPort)
	if err != nil {
		return "", err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return "", fmt.Errorf("write engine configuration: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("write engine configuration: %w", err)
	}
	return path, nil
}
