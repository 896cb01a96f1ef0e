package clickhouse_test

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

func TestMain(m *testing.M) { os.Exit(enginetest.Main(m)) }

// at is a time within a month that tests fill.
func at(t *testing.T, text string) int64 {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.UnixMicro()
}

func config(server *enginetest.Instance, database string) clickhouse.Config {
	return clickhouse.Config{Addr: server.Addr, User: server.User, Password: server.Password, Database: database}
}

func open(tb testing.TB, cfg clickhouse.Config) *clickhouse.Store {
	tb.Helper()
	store, err := clickhouse.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(store.Close)
	return store
}

// migrated is a store with a database of its own and the schema in it.
func migrated(tb testing.TB) (store *clickhouse.Store, server *enginetest.Instance, database string) {
	tb.Helper()
	server = enginetest.Server(tb)
	database = server.Database(tb)
	store = open(tb, config(server, database))
	if _, err := store.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return store, server, database
}

func insert(tb testing.TB, store *clickhouse.Store, rows event.Rows) {
	tb.Helper()
	if err := store.Insert(tb.Context(), &rows); err != nil {
		tb.Fatal(err)
	}
}

func created(offset int64) (event.Position, event.Version) {
	p := event.MakePosition(1, offset)
	return p, event.MakeVersion(event.ClassCreate, p)
}

func updated(offset int64) event.Version {
	return event.MakeVersion(event.ClassUpdate, event.MakePosition(1, offset))
}

func deleted(offset int64) event.Version {
	return event.MakeVersion(event.ClassDelete, event.MakePosition(1, offset))
}
