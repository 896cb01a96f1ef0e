// Package enginedb gives the programs of tools a ClickHouse of their own with Sluice's
// schema: the embedded engine on a new directory, which is removed at the end.
package enginedb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/engine"
)

// Config says how the engine runs. The zero value is valid.
type Config struct {
	// Library is the path of libchdb.so. Default: where scripts/install-libchdb.sh puts it.
	Library string
	// Dir is where the engine's directory is made. Default: the system's for temporary files.
	Dir string
	// SystemLogs has the engine log what becomes of each part.
	SystemLogs bool
}

// DB is Sluice's schema in an engine of its own. Close it.
type DB struct {
	// Store is for the default database.
	Store  *clickhouse.Store
	engine *engine.Engine
	log    *slog.Logger
	stop   func() error
}

// Start starts an engine and creates the tables.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (_ *DB, err error) {
	path, err := engine.Find(cfg.Library)
	if err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp(cfg.Dir, "sluice-tools-")
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	e, err := engine.New(engine.Config{Library: path, Dir: data, SystemLogs: cfg.SystemLogs}, log, nil)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(data))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(running) }()
	d := &DB{engine: e, log: log, stop: func() error {
		stop()
		return errors.Join(<-stopped, os.RemoveAll(data))
	}}
	if err := e.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	if d.Store, err = d.Open(ctx, clickhouse.Config{}); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// Open returns another store on the engine, whose tables it creates if they are not there.
// The configuration's address, user and password are those of the engine. The caller closes
// the store.
func (d *DB) Open(ctx context.Context, cfg clickhouse.Config) (*clickhouse.Store, error) {
	cfg.Addr, cfg.User, cfg.Password = d.engine.Addr(), engine.User, d.engine.Password()
	store, err := clickhouse.New(cfg, d.log, nil)
	if err != nil {
		return nil, err
	}
	if _, err := store.Migrate(ctx); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// Close closes the store, stops the engine and removes its directory.
func (d *DB) Close() error {
	d.Store.Close()
	return d.stop()
}

// Query runs a statement in the default database and returns the rows of its answer, split
// into columns. It waits as long as ctx allows. Settings are pairs of name and value.
func (d *DB) Query(ctx context.Context, sql string, settings ...string) ([][]string, error) {
	values := url.Values{"database": {conn.DefaultDatabase}}
	for i := 0; i+1 < len(settings); i += 2 {
		values.Set(settings[i], settings[i+1])
	}
	u := url.URL{Scheme: "http", Host: d.engine.HTTPAddr(), RawQuery: values.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(sql))
	if err != nil {
		return nil, err
	}
	r.SetBasicAuth(engine.User, d.engine.Password())
	r.Close = true // a kept connection holds up the stop
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("query %.200q: %w", sql, err)
	}
	text, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return nil, fmt.Errorf("query %.200q: %w", sql, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("query %.200q: %s", sql, bytes.TrimSpace(text))
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	return rows, nil
}
