// Package enginetest gives the tests of other packages an embedded ClickHouse: one server
// per test binary, started when the first test asks for it, and a database per test.
//
//	func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }
//
//	func TestInsert(t *testing.T) {
//		server := enginetest.Server(t)
//		client := dial(server.Addr, server.User, server.Password, server.Database(t))
package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/engine"
)

// queryTimeout bounds one [Instance.Query].
const queryTimeout = time.Minute

// Instance is the running server. It is safe for concurrent use.
type Instance struct {
	Addr     string // of the native protocol
	HTTPAddr string
	User     string
	Password string

	databases atomic.Int64 // created so far
	readable  sync.Mutex   // held by the test that uses the reader's database
}

// shared is the one server of the test binary. A global, because testing offers no other
// way from TestMain to a test.
var shared struct {
	inMain atomic.Bool
	once   sync.Once
	server *Instance
	err    error
	stop   func() error
}

// Main runs the tests of m and stops the server, if one was started. It returns the exit
// code for os.Exit, and must be what TestMain consists of: the server is a child that is
// this test binary started once more.
func Main(m *testing.M) int {
	engine.ChildMain()
	shared.inMain.Store(true)
	code := m.Run()
	err := stopCluster()
	if shared.stop != nil {
		err = errors.Join(err, shared.stop())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "enginetest:", err)
		code = max(code, 1)
	}
	return code
}

// Server returns the server, which it starts at the first call. The test fails when there
// is none to be had: these tests are part of the suite everywhere.
func Server(tb testing.TB) *Instance {
	tb.Helper()
	if !shared.inMain.Load() {
		tb.Fatal("enginetest.Main is not called by this package's TestMain")
	}
	shared.once.Do(func() { shared.server, shared.stop, shared.err = start() })
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

// start starts a server on a temporary directory. What it returns to stop it waits for the
// server's end and removes the directory.
func start() (_ *Instance, stop func() error, err error) {
	library, err := engine.Find("")
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "sluice-engine-")
	if err != nil {
		return nil, nil, fmt.Errorf("engine directory: %w", err)
	}
	if err := addReader(dir); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := engine.New(engine.Config{Library: library, Dir: dir}, log, nil)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stop = func() error {
		cancel()
		return errors.Join(<-done, os.RemoveAll(dir))
	}
	if err := e.WaitReady(ctx); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return &Instance{
		Addr:     e.Addr(),
		HTTPAddr: e.HTTPAddr(),
		User:     engine.User,
		Password: e.Password(),
	}, stop, nil
}

// The user who may read one database, and has no other right: the embedded engine knows only
// the users that it was started with.
const (
	readerDatabase = "readable"
	readerUser     = "reader"
	readerPassword = "secret-reader"
)

// addReader configures the user for a server of that directory. ClickHouse merges what is in
// config.d.
func addReader(dir string) error {
	more := filepath.Join(dir, "config.d")
	if err := os.MkdirAll(more, 0o700); err != nil {
		return fmt.Errorf("engine directory: %w", err)
	}
	const config = `<clickhouse>
    <users>
        <` + readerUser + `>
            <password>` + readerPassword + `</password>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <grants><query>GRANT SELECT ON ` + readerDatabase + `.*</query></grants>
        </` + readerUser + `>
    </users>
</clickhouse>
`
	if err := os.WriteFile(filepath.Join(more, "reader.xml"), []byte(config), 0o600); err != nil {
		return fmt.Errorf("engine directory: %w", err)
	}
	return nil
}

// Readable creates a database for this test and returns its name, and a user who may select
// from it and nothing else. Tests that ask for it wait for each other.
func (s *Instance) Readable(tb testing.TB) (database, user, password string) {
	tb.Helper()
	s.readable.Lock()
	tb.Cleanup(s.readable.Unlock)
	s.Query(tb, "CREATE DATABASE "+readerDatabase+" ENGINE = Atomic")
	tb.Cleanup(func() { s.Query(tb, "DROP DATABASE IF EXISTS "+readerDatabase+" SYNC") })
	return readerDatabase, readerUser, readerPassword
}

// Database creates a database for this test and returns its name. It is dropped, with
// everything in it, when the test ends.
func (s *Instance) Database(tb testing.TB) string {
	tb.Helper()
	name := "t" + strconv.FormatInt(s.databases.Add(1), 10) + "_" + identifier(tb.Name())
	s.Query(tb, "CREATE DATABASE "+name+" ENGINE = Atomic")
	tb.Cleanup(func() { s.Query(tb, "DROP DATABASE "+name+" SYNC") })
	return name
}

// identifier turns a test's name into something that needs no quoting in SQL.
func identifier(name string) string {
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, name)
	const lenMax = 60 // directories are named after it
	return id[:min(len(id), lenMax)]
}

// Query runs one statement over HTTP and returns its answer, tab-separated, without the
// last line break. The test fails when the server refuses it.
func (s *Instance) Query(tb testing.TB, sql string) string {
	tb.Helper()
	return s.QueryIn(tb, "default", sql)
}

// QueryIn is [Instance.Query] for a statement that names tables of a database
// without the database.
func (s *Instance) QueryIn(tb testing.TB, database, sql string) string {
	tb.Helper()
	// Not the test's context: cleanups run after it is cancelled.
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.HTTPAddr+"/?database="+url.QueryEscape(database), strings.NewReader(sql))
	if err != nil {
		tb.Fatal(err)
	}
	req.SetBasicAuth(s.User, s.Password)
	req.Close = true // a kept connection holds up the stop
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatalf("query %.200q: %v", sql, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("query %.200q: %v", sql, err)
	}
	if resp.StatusCode != http.StatusOK {
		tb.Fatalf("query %.200q: %s: %s", sql, resp.Status, body)
	}
	return strings.TrimSuffix(string(body), "\n")
}
