package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/engine"
)

// parentEnv makes the test binary a process that runs an engine on the directory it names.
const parentEnv = "SLUICE_ENGINE_TEST_PARENT"

func TestMain(m *testing.M) {
	engine.ChildMain()
	if dir := os.Getenv(parentEnv); dir != "" {
		os.Exit(runParent(dir))
	}
	os.Exit(m.Run())
}

// runParent runs an engine and prints the child's process id once it is ready.
func runParent(dir string) int {
	library, err := engine.Find("")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	e, err := engine.New(engine.Config{Library: library, Dir: dir}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		<-e.Ready()
		fmt.Fprintln(os.Stdout, e.PID())
	}()
	if err := e.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// running is an engine whose Run has been called.
type running struct {
	*engine.Engine
	reg  *prometheus.Registry
	log  *lockedBuffer
	stop func(testing.TB) // ends Run and fails the test on its error; may be called again
}

// config returns a configuration for a new directory.
func config(tb testing.TB) engine.Config {
	tb.Helper()
	library, err := engine.Find("")
	if err != nil {
		tb.Fatal(err)
	}
	return engine.Config{Library: library, Dir: filepath.Join(tb.TempDir(), "engine")}
}

// start runs an engine until the test ends and waits until it is ready.
func start(tb testing.TB, cfg engine.Config) *running {
	tb.Helper()
	r := &running{reg: prometheus.NewRegistry(), log: new(lockedBuffer)}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if r.Engine, err = engine.New(cfg, log, r.reg); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	r.stop = func(tb testing.TB) {
		tb.Helper()
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Errorf("Run: %v", err)
			}
		})
	}
	tb.Cleanup(func() {
		r.stop(tb)
		if tb.Failed() {
			tb.Log(r.log.String())
		}
	})
	if err := r.WaitReady(tb.Context()); err != nil {
		r.stop(tb)
		tb.Fatal(err)
	}
	return r
}

// metric returns the value of a gauge or counter of the engine.
func (r *running) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	tb.Fatalf("no metric %s", name)
	return 0
}

// query runs one statement over HTTP, as the engine's user.
func (r *running) query(tb testing.TB, sql string) (string, error) {
	tb.Helper()
	return query(tb, r.HTTPAddr(), engine.User, r.Password(), sql)
}

// must is query for a statement that cannot fail.
func (r *running) must(tb testing.TB, sql string) string {
	tb.Helper()
	answer, err := r.query(tb, sql)
	if err != nil {
		tb.Fatal(err)
	}
	return answer
}

func query(tb testing.TB, addr, user, password, sql string) (string, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/", strings.NewReader(sql))
	if err != nil {
		tb.Fatal(err)
	}
	req.Close = true // a kept connection holds up the stop
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("query %q: %w", sql, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("query %q: %w", sql, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("query %q: %s: %s", sql, resp.Status, body)
	}
	return strings.TrimSpace(string(body)), nil
}

// eventually calls check until it returns nil, for at most the timeout.
func eventually(tb testing.TB, timeout time.Duration, check func() error) {
	tb.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			tb.Fatalf("not within %s: %v", timeout, err)
		}
	}
}

// gone returns nil when there is no process with this id.
func gone(pid int) error {
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process %d is there", pid)
	}
	return nil
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// createTable creates the table that the tests write to, like the ones of the pipeline.
func createTable(tb testing.TB, r *running) {
	tb.Helper()
	r.must(tb, "CREATE DATABASE "+engine.Database)
	r.must(tb, `CREATE TABLE sluice.t (id UInt32, value String, version UInt64)
		ENGINE = ReplacingMergeTree(version) ORDER BY id
		SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_age_to_force_merge_seconds = 3600`)
}

func TestServes(t *testing.T) {
	cfg := config(t)
	cfg.Settings = map[string]string{"max_threads": "1"}
	cfg.ServerSettings = map[string]string{"background_pool_size": "3"}
	cfg.MemoryMaxBytes = engine.MemoryMinBytes
	r := start(t, cfg)

	createTable(t, r)
	r.must(t, "INSERT INTO sluice.t VALUES (1, 'old', 1), (2, 'only', 1)")
	r.must(t, "INSERT INTO sluice.t VALUES (1, 'new', 2)")
	for _, tt := range []struct{ name, sql, want string }{
		{"final", "SELECT id, value FROM sluice.t FINAL ORDER BY id", "1\tnew\n2\tonly"},
		{"without final", "SELECT count() FROM sluice.t", "3"},
		{"user", "SELECT currentUser()", "sluice"},
		{"query setting", "SELECT getSetting('max_threads')", "1"},
		{"server setting", "SELECT value FROM system.server_settings WHERE name = 'background_pool_size'", "3"},
		{"memory", "SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'", "536870912"},
		{"time zone", "SELECT serverTimezone()", "UTC"},
		{"no system logs", "SELECT count() FROM system.tables WHERE database = 'system' AND name LIKE '%\\_log'", "0"},
	} {
		if got := r.must(t, tt.sql); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if up := r.metric(t, "sluice_engine_up"); up != 1 {
		t.Errorf("sluice_engine_up = %v, want 1", up)
	}

	r.stop(t)
	if up := r.metric(t, "sluice_engine_up"); up != 0 {
		t.Errorf("sluice_engine_up = %v after the stop, want 0", up)
	}
	if pid := r.PID(); pid != 0 {
		t.Errorf("PID = %d after the stop, want 0", pid)
	}
	for _, line := range []string{"engine starting", "engine ready", "engine stopped"} {
		if !strings.Contains(r.log.String(), line) {
			t.Errorf("nothing logged for %q", line)
		}
	}
}

func TestSystemLogs(t *testing.T) {
	cfg := config(t)
	cfg.SystemLogs = true
	r := start(t, cfg)
	createTable(t, r)
	r.must(t, "INSERT INTO sluice.t VALUES (1, 'a', 1)")
	for table, condition := range map[string]string{
		"query_log": "query_kind = 'Insert' AND type = 'QueryFinish'",
		"part_log":  "event_type = 'NewPart' AND table = 't'",
	} {
		// The server may answer a query before it logs its end.
		eventually(t, 10*time.Second, func() error {
			r.must(t, "SYSTEM FLUSH LOGS")
			if got := r.must(t, "SELECT count() FROM system."+table+" WHERE "+condition); got != "1" {
				return fmt.Errorf("%s has %s rows for one insert, want 1", table, got)
			}
			return nil
		})
		if got := r.must(t, "SHOW CREATE TABLE system."+table); !strings.Contains(got, "TTL event_date") {
			t.Errorf("%s has no TTL: %s", table, got)
		}
	}
}

// Only the engine's own user gets in, and being refused is no harm to the server.
func TestRefuses(t *testing.T) {
	r := start(t, config(t))
	pid := r.PID()
	for _, tt := range []struct{ name, user, password, wantCode string }{
		{"wrong password", engine.User, "wrong", "516"},
		{"no password", engine.User, "", "516"},
		{"unknown user", "nobody", "", "516"},
		// The launcher's own session is this user's only one.
		{"default without password", "default", "", "700"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, sql := range []string{
				"SELECT 1",
				"SELECT * FROM system.tables",
				"CREATE DATABASE mine",
				"SELECT * FROM file('/etc/passwd', LineAsString)",
				"SYSTEM STOP LISTEN TCP",
			} {
				_, err := query(t, r.HTTPAddr(), tt.user, tt.password, sql)
				if err == nil || !strings.Contains(err.Error(), "Code: "+tt.wantCode) {
					t.Errorf("over HTTP: %s: got %v, want code %s", sql, err, tt.wantCode)
				}
			}
			code, err := nativeHello(t, r.Addr(), tt.user, tt.password)
			if err != nil || strconv.Itoa(code) != tt.wantCode {
				t.Errorf("over the native protocol: got code %d, %v, want %s", code, err, tt.wantCode)
			}
		})
	}
	if code, err := nativeHello(t, r.Addr(), engine.User, r.Password()); err != nil || code != 0 {
		t.Errorf("the right password: got code %d, %v, want none", code, err)
	}
	if _, err := query(t, r.HTTPAddr(), "", "", "SELECT 1"); err == nil {
		t.Error("a request without any user is answered")
	}
	r.must(t, "SELECT 1")
	if r.PID() != pid {
		t.Error("the server died of a refused client")
	}
}

// A process that loses its connections without a goodbye, as by kill -9, or talks something
// else to the port, is no harm to the server either.
func TestSurvivesBrokenClients(t *testing.T) {
	r := start(t, config(t))
	pid := r.PID()
	hello := helloPacket(engine.User, r.Password())
	for name, sent := range map[string][]byte{
		"nothing":           nil,
		"garbage":           []byte("\x99\x99\x99\x99"),
		"half a hello":      hello[:8],
		"hello, then reset": hello,
		"HTTP":              []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		for _, addr := range []string{r.Addr(), r.HTTPAddr()} {
			conn := dial(t, addr)
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(sent, hello) && addr == r.Addr() {
				// Only a connection whose handshake is done waits for a query.
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			if err := conn.SetLinger(0); err != nil { // closes with a reset
				t.Fatal(err)
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			// Answered by the same server, after it has noticed.
			if code, err := nativeHello(t, r.Addr(), engine.User, r.Password()); err != nil || code != 0 {
				t.Errorf("%s: got code %d, %v for the next client", name, code, err)
			}
		}
	}
	eventually(t, 10*time.Second, func() error {
		if n := r.must(t, "SELECT value FROM system.metrics WHERE metric = 'TCPConnection'"); n != "0" {
			return fmt.Errorf("%s connections are open", n)
		}
		return nil
	})
	if r.PID() != pid || r.metric(t, "sluice_engine_restarts_total") != 0 {
		t.Error("the server died of a broken client")
	}
}

func dial(tb testing.TB, addr string) *net.TCPConn {
	tb.Helper()
	conn, err := new(net.Dialer).DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// helloPacket is the first packet of a native client, of a protocol version old enough
// that the server wants no more than that.
func helloPacket(user, password string) []byte {
	text := func(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	b := []byte{0} // hello
	b = text(b, "test")
	b = append(b, 1, 1)                 // client version
	b = binary.AppendUvarint(b, 54_058) // protocol revision
	b = text(text(b, ""), user)         // database
	return text(b, password)
}

// nativeHello logs in over the native protocol and returns the code of the exception the
// server answers with, or 0 when it lets the user in.
func nativeHello(tb testing.TB, addr, user, password string) (code int, err error) {
	tb.Helper()
	conn := dial(tb, addr)
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(helloPacket(user, password)); err != nil {
		return 0, err
	}
	var head [5]byte
	if _, err := io.ReadFull(conn, head[:1]); err != nil {
		return 0, err
	}
	switch head[0] {
	case 0:
		return 0, nil
	case 2:
		if _, err := io.ReadFull(conn, head[1:]); err != nil {
			return 0, err
		}
		return int(binary.LittleEndian.Uint32(head[1:])), nil
	}
	return 0, fmt.Errorf("unknown packet %d", head[0])
}

func TestKeepsDataAcrossStop(t *testing.T) {
	cfg := config(t)
	first := start(t, cfg)
	createTable(t, first)
	first.must(t, "INSERT INTO sluice.t SELECT number, 'x', 1 FROM numbers(100000)")
	first.stop(t)

	second := start(t, cfg)
	if got := second.must(t, "SELECT count() FROM sluice.t"); got != "100000" {
		t.Errorf("count = %s after a restart, want 100000", got)
	}
	if first.Password() == second.Password() {
		t.Error("both engines have the same password")
	}
	if _, err := query(t, second.HTTPAddr(), engine.User, first.Password(), "SELECT 1"); err == nil {
		t.Error("the first engine's password is still good")
	}
}

func TestRestartsKilledChild(t *testing.T) {
	r := start(t, config(t))
	createTable(t, r)
	addr, httpAddr := r.Addr(), r.HTTPAddr()

	for kills := 1; kills <= 2; kills++ {
		r.must(t, fmt.Sprintf("INSERT INTO sluice.t SELECT number, 'x', %d FROM numbers(1000)", kills))
		pid := r.PID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, func() error {
			n, err := r.query(t, "SELECT count() FROM sluice.t")
			if err != nil {
				return err
			}
			if want := strconv.Itoa(1000 * kills); n != want {
				t.Fatalf("count = %s after the kill, want %s", n, want)
			}
			return nil
		})
		if r.PID() == pid {
			t.Error("the child is the killed one")
		}
		if got := r.metric(t, "sluice_engine_restarts_total"); got != float64(kills) {
			t.Errorf("sluice_engine_restarts_total = %v, want %d", got, kills)
		}
	}
	if r.Addr() != addr || r.HTTPAddr() != httpAddr {
		t.Errorf("the addresses changed from %s, %s to %s, %s", addr, httpAddr, r.Addr(), r.HTTPAddr())
	}
	if !strings.Contains(r.log.String(), "signal: killed") {
		t.Error("the log does not say how the child died")
	}
}

func TestChildDiesWithParent(t *testing.T) {
	cfg := config(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.CommandContext(t.Context(), exe)
	parent.Env = append(os.Environ(), parentEnv+"="+cfg.Dir)
	parent.Stderr = os.Stderr
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(stdout, &child); err != nil {
		t.Fatal(err)
	}
	if gone(child) == nil {
		t.Fatalf("there is no child %d", child)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed
	eventually(t, 10*time.Second, func() error { return gone(child) })

	// And leaves nothing behind that keeps the next one from starting.
	start(t, cfg)
}

func TestOneEnginePerDirectory(t *testing.T) {
	cfg := config(t)
	r := start(t, cfg)
	second, err := engine.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context())
	if !errors.Is(err, engine.ErrInUse) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("Run on a directory in use: got %v, want ErrInUse and the directory", err)
	}
	if err := second.WaitReady(t.Context()); !errors.Is(err, engine.ErrStopped) {
		t.Errorf("WaitReady after Run: got %v, want ErrStopped", err)
	}
	r.must(t, "SELECT 1")
}

// A Ctrl-C goes to every process of the terminal's group, and a service manager signals
// every process of a service. The engine still has to be there for the consumer's last batch.
func TestChildIgnoresStopSignals(t *testing.T) {
	r := start(t, config(t))
	pid := r.PID()
	if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
		t.Errorf("process group of the child: got %d, %v, want its own, %d", pgid, err, pid)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		r.must(t, "SELECT 1")
	}
	if r.PID() != pid || r.metric(t, "sluice_engine_restarts_total") != 0 {
		t.Error("the child was restarted")
	}
}

// A stop does not wait for clients that stay connected, nor for a query that runs on.
func TestStopsDespiteClients(t *testing.T) {
	cfg := config(t)
	r := start(t, cfg)
	conn := dial(t, r.Addr())
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(helloPacket(engine.User, r.Password())); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := r.query(t, "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))")
		answered <- err
	}()
	eventually(t, 10*time.Second, func() error {
		if n := r.must(t, "SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%'"); n != "2" {
			return fmt.Errorf("%s queries run", n)
		}
		return nil
	})
	begin := time.Now()
	r.stop(t)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if err := <-answered; err == nil {
		t.Error("the query was answered")
	}
	if strings.Contains(r.log.String(), "killed") {
		t.Error("the child was killed")
	}
}

func TestKeepsSecrets(t *testing.T) {
	cfg := config(t)
	r := start(t, cfg)
	if len(r.Password()) != 64 {
		t.Errorf("the password has %d characters, want 64", len(r.Password()))
	}
	r.must(t, "SELECT 1")
	r.stop(t)
	if strings.Contains(r.log.String(), r.Password()) {
		t.Error("the password is in the log")
	}
	if info, err := os.Stat(cfg.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory: got %v, %v, want 0700", info.Mode(), err)
	}
	err := filepath.WalkDir(cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(r.Password())) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(cfg.Dir, "config.xml")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of config.xml: got %v, %v, want 0600", info.Mode(), err)
	}
}

func TestFirstStartFails(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	text := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*engine.Config)
		want string
	}{
		{"not a library", func(c *engine.Config) { c.Library = text }, "open library"},
		{"no such file", func(c *engine.Config) { c.Library = text + ".gone" }, "open library"},
		{"port in use", func(c *engine.Config) { c.HTTPPort = listener.Addr().(*net.TCPAddr).Port }, "address already in use"},
		{"unknown setting", func(c *engine.Config) { c.Settings = map[string]string{"max_thread": "1"} }, "max_thread"},
		{"too slow", func(c *engine.Config) { c.StartTimeout = time.Nanosecond }, "does not answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t)
			tt.edit(&cfg)
			e, err := engine.New(cfg, slog.New(slog.DiscardHandler), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run: got %v, want an error with %q", err, tt.want)
			}
			if pid := e.PID(); pid != 0 {
				t.Errorf("child %d is left", pid)
			}
		})
	}
}

func TestStopBeforeReady(t *testing.T) {
	e, err := engine.New(config(t), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	eventually(t, 10*time.Second, func() error {
		if e.PID() == 0 {
			return errors.New("no child")
		}
		return nil
	})
	pid := e.PID()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := gone(pid); err != nil {
		t.Error(err)
	}
}
