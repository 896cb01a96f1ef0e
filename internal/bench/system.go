// Package bench measures a whole Sluice: the time of a load until all of it is
// visible and verified, what it costs, and how that compares with the limits
// that the machine, Kafka and ClickHouse set.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/engine"
)

const (
	readyTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
	queryTimeout = 30 * time.Minute // of the scale benchmark's fills
	// pollInterval is long enough for the asking not to weigh on what is measured.
	pollInterval = 25 * time.Millisecond
)

// SystemConfig says which Sluice is started to be measured.
type SystemConfig struct {
	// Dir holds everything, and is made. Required.
	Dir string
	// Binary is the sluice that is run. Required.
	Binary string
	// Library is libchdb. Default: see [engine.Find].
	Library string
	// Brokers are those of a Kafka to use instead of the embedded broker.
	Brokers []string
	// BrokerPIDs are the processes of that Kafka, if they run on this machine,
	// so that they are measured too.
	BrokerPIDs []int
	// ServerSettings are ClickHouse's, beside those of "sluice serve".
	ServerSettings map[string]string
}

// System is a running Sluice: ClickHouse's engine, and processes of sluice on
// it. The engine is started here and not by "sluice serve", so that its tables
// can be looked into; it is the same code with the same settings.
type System struct {
	cfg       SystemConfig
	log       *slog.Logger
	http      *http.Client
	engine    *engine.Engine
	engineErr chan error
	stopped   context.CancelFunc
	children  []*child
	database  string
	brokers   []string
}

// Start starts the engine. Serve starts the rest. Close it.
func Start(ctx context.Context, cfg SystemConfig, log *slog.Logger) (*System, error) {
	library, err := engine.Find(cfg.Library)
	if err != nil {
		return nil, err
	}
	e, err := engine.New(engine.Config{Library: library, Dir: filepath.Join(cfg.Dir, "clickhouse"), ServerSettings: cfg.ServerSettings}, log, nil)
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &System{
		cfg: cfg, log: log, http: &http.Client{Transport: new(http.Transport)}, engine: e, engineErr: make(chan error, 1), stopped: stop,
		database: engine.Database, brokers: cfg.Brokers,
	}
	go func() { s.engineErr <- e.Run(running) }()
	if err := e.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close stops the children, the last one first, then the engine. The data stays.
func (s *System) Close() error {
	var errs []error
	for i := len(s.children) - 1; i >= 0; i-- {
		errs = append(errs, s.children[i].stop())
	}
	s.http.CloseIdleConnections() // ClickHouse waits for them
	s.stopped()
	return errors.Join(append(errs, <-s.engineErr)...)
}

// ClickHouse is how to reach the engine.
func (s *System) ClickHouse(database string) clickhouse.Config {
	return clickhouse.Config{Addr: s.engine.Addr(), Database: database, User: engine.User, Password: s.engine.Password()}
}

// Query runs statements on the engine, in the given database, and returns the
// answer as tab-separated lines.
func (s *System) Query(ctx context.Context, database, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	u := url.URL{Scheme: "http", Host: s.engine.HTTPAddr(), RawQuery: url.Values{"database": {database}}.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(sql))
	if err != nil {
		return "", err
	}
	r.SetBasicAuth(engine.User, s.engine.Password())
	answer, err := s.http.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("query: %s", bytes.TrimSpace(text))
	}
	return strings.TrimSuffix(string(text), "\n"), nil
}

// Number runs a query whose answer is one number.
func (s *System) Number(ctx context.Context, sql string) (float64, error) {
	text, err := s.Query(ctx, s.database, sql)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(text, 64)
}

// Brokers are those of the Kafka in use: the given one, or the embedded broker
// once Serve has returned.
func (s *System) Brokers() []string { return s.brokers }

// Serve starts "sluice serve" with further flags, and waits until it is ready.
func (s *System) Serve(ctx context.Context, flags ...string) (workload.Target, error) {
	data := filepath.Join(s.cfg.Dir, "sluice")
	if len(s.cfg.Brokers) == 0 {
		port, err := freePort(ctx)
		if err != nil {
			return workload.Target{}, err
		}
		s.brokers = []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
		flags = append(flags, "--broker-port", strconv.Itoa(port))
	} else {
		flags = append(flags, "--kafka-brokers", strings.Join(s.cfg.Brokers, ","))
	}
	port, err := freePort(ctx)
	if err != nil {
		return workload.Target{}, err
	}
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	if err := s.child("serve", append(flags, "--clickhouse-url", s.clickhouseURL(s.database), "--data-dir", data, "--listen", u.Host)...); err != nil {
		return workload.Target{}, err
	}
	return workload.Target{URL: u}, s.waitReady(ctx, u.String()+"/readyz")
}

// child starts a process of sluice. It ends with Close, or with stopChild.
func (s *System) child(command string, flags ...string) error {
	logFile, err := os.Create(filepath.Join(s.cfg.Dir, command+".log"))
	if err != nil {
		return err
	}
	defer logFile.Close()                                                     // the child has its own
	cmd := exec.Command(s.cfg.Binary, append([]string{command}, flags...)...) //nolint:noctx // it is stopped in order
	cmd.Stderr = logFile
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sluice %s: %w", command, err)
	}
	s.children = append(s.children, watch(command, cmd))
	return nil
}

// stopChild stops the children of a command.
func (s *System) stopChild(command string) error {
	var (
		errs []error
		rest []*child
	)
	for _, c := range s.children {
		if c.name == command {
			errs = append(errs, c.stop())
		} else {
			rest = append(rest, c)
		}
	}
	s.children = rest
	return errors.Join(errs...)
}

func (s *System) clickhouseURL(database string) string {
	u := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(engine.User, s.engine.Password()),
		Host: s.engine.Addr(), Path: "/" + database,
	}
	return u.String()
}

func (s *System) waitReady(ctx context.Context, u string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return false, err
		}
		answer, err := s.http.Do(r)
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return true, nil
			}
			err = errors.New(answer.Status)
		}
		last = err
		if c := s.children[len(s.children)-1]; c.ended() {
			return false, fmt.Errorf("sluice %s ended: see %s", c.name, filepath.Join(s.cfg.Dir, c.name+".log"))
		}
		return false, nil
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s is not ready: %w", u, last)
	}
	return err
}

// poll asks until it is done, fails, or ctx is over.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// processes are those of the system, for [meter].
func (s *System) processes() []processID {
	ids := []processID{{"ClickHouse", s.engine.PID()}}
	for _, c := range s.children {
		ids = append(ids, processID{"sluice " + c.name, c.cmd.Process.Pid})
	}
	for _, pid := range s.cfg.BrokerPIDs {
		ids = append(ids, processID{"Apache Kafka", pid})
	}
	return ids
}

func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// child is a process that was started.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func watch(name string, cmd *exec.Cmd) *child {
	c := &child{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c
}

func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// stop ends it as Ctrl-C does, and kills it when that takes too long.
func (c *child) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // or it has ended
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		_ = c.cmd.Process.Kill()
		<-c.done
	}
	if c.err != nil {
		return fmt.Errorf("sluice %s: %w", c.name, c.err)
	}
	return nil
}
