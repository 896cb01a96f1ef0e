// Package engine runs the embedded ClickHouse server: it finds libchdb, runs it as a child
// process that serves the native protocol and HTTP on loopback, starts it again when it
// dies, and stops it.
//
// The child is the running program itself, started once more; hence [ChildMain]. It is
// the only process that loads the library, so a crash of the server or its memory are
// never the parent's, and it cannot outlive its parent.
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

// The one user that clients log in as, and the database that is theirs. The database is
// not created here: that is the first migration's work.
const (
	User     = "sluice"
	Database = "sluice"
)

const (
	// A child that dies again and again is started at most this often.
	backoffMin = 100 * time.Millisecond

	// A child that served this long was healthy: the next restart begins at backoffMin.
	healthyAfter = time.Minute

	// How often a starting child is asked whether it answers, and for how long one
	// answer is waited for.
	probeInterval = 20 * time.Millisecond
	probeTimeout  = 2 * time.Second

	// How often a first start is tried with other ports when the chosen ones were taken
	// between choosing and listening.
	portAttempts = 5

	// How long a start waits for an engine on the same directory to be gone. The child of
	// a killed parent holds the directory for a moment longer than the parent.
	lockTimeout = 3 * time.Second

	// killTimeout bounds the wait for a killed child.
	killTimeout = 10 * time.Second

	// outputTailBytesMax bounds what is kept of the child's standard output and error.
	outputTailBytesMax = 4 << 10
)

var (
	// ErrInUse is returned by [Engine.Run] when another engine uses the directory.
	ErrInUse = errors.New("directory is in use by another engine")

	// ErrStopped is returned by [Engine.WaitReady] when Run has returned.
	ErrStopped = errors.New("engine has stopped")
)

// Engine is one embedded server. Its methods are safe for concurrent use.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	password string
	client   *http.Client

	up       prometheus.Gauge
	restarts prometheus.Counter

	ready   chan struct{} // closed when the first child answers
	stopped chan struct{} // closed when Run returns

	mu                sync.Mutex
	running           bool // Run has been called
	tcpPort, httpPort int
	pid               int // of the child, 0 when there is none
}

// New returns an engine with a password of its own, which starts with [Engine.Run]. It
// touches neither files nor processes. A nil registerer leaves the metrics unregistered.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Engine, error) {
	if os.Getenv(childEnv) != "" {
		// Or each child would start a child.
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
		cfg:      cfg,
		log:      log,
		password: newPassword(),
		// One connection per probe: a kept one would be waited for by a server that stops.
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

// Ready returns a channel that is closed when the engine has answered its first query. It
// stays closed while a dead child is replaced: clients see that as any server's restart.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// WaitReady waits for [Engine.Ready]. It returns [ErrStopped] when Run returned first; the
// reason is what Run returned.
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
func (e *Engine) Password() string { return e.password }

// PID returns the process id of the child, or 0 when there is none at the moment.
func (e *Engine) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pid
}

// Run starts the server and keeps it running until ctx is done, then stops it and returns
// nil. A child that dies after it has once been ready is started again, on the same ports,
// for as long as it takes, with a capped backoff. One that dies before that is an error,
// because nothing would be different the next time. The error wraps [ErrInUse] when another
// engine uses the directory.
//
// The server is stopped cleanly when ctx is done, so whatever writes to it has to have
// stopped before. Connections that are still open hold the stop up for 5 s, queries that
// still run are cut off. Run may be called once.
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

// runChild runs one child from its launch to its end, which it causes when ctx is done.
// It returns for how long the child served, and why it ended: never nil, unless ctx is done.
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
		close(e.ready) // only Run's goroutine does
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

// stopChild ends the child cleanly if it can within the configured time, and else kills it.
func (e *Engine) stopChild(c *child) {
	begin := time.Now()
	if c.stop(e.cfg.StopTimeout) {
		e.log.Info("engine stopped", "took", time.Since(begin))
		return
	}
	c.kill()
	e.log.Warn("engine killed, it did not stop in time", "took", time.Since(begin))
}

// awaitAnswer waits until the child answers a query of [User]. HTTP is the later of the two
// listeners, so both are open then.
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
	req.Header.Set("X-ClickHouse-Key", e.password)
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

// choosePorts fills in the ports that the configuration leaves open. Once the engine has
// been ready they stay.
func (e *Engine) choosePorts(ctx context.Context) error {
	select {
	case <-e.ready:
		return nil
	default:
	}
	// Both are held until both are chosen, so that they differ.
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

// reservePort listens on port, or on a free one when it is 0, until the listener is closed.
// It is also what tells early, and plainly, that a configured port is taken.
func reservePort(ctx context.Context, host string, port int) (int, net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return 0, nil, fmt.Errorf("engine port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l, nil
}

// writeConfig writes the configuration for the next child, as a whole or not at all.
func (e *Engine) writeConfig() (path string, err error) {
	e.mu.Lock()
	tcpPort, httpPort := e.tcpPort, e.httpPort
	e.mu.Unlock()

	path = filepath.Join(e.cfg.Dir, "config.xml")
	content, err := e.cfg.configFile(path, e.password, tcpPort, httpPort)
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
