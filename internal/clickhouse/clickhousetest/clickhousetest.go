// Package clickhousetest opens stores on the embedded ClickHouse for tests, and
// makes the rows and versions that they insert.
package clickhousetest

import (
	"log/slog"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

// At parses a time of RFC 3339 and returns it in Unix microseconds.
func At(t testing.TB, text string) int64 {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.UnixMicro()
}

// Config returns the configuration of a database on the server.
func Config(server *enginetest.Instance, database string) clickhouse.Config {
	return clickhouse.Config{Addr: server.Addr, User: server.User, Password: server.Password, Database: database}
}

// Open returns a store that is closed when the test ends.
func Open(tb testing.TB, cfg clickhouse.Config) *clickhouse.Store {
	tb.Helper()
	store, err := clickhouse.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(store.Close)
	return store
}

// Migrated returns a store on a new database that has the schema.
func Migrated(tb testing.TB) (store *clickhouse.Store, server *enginetest.Instance, database string) {
	tb.Helper()
	server = enginetest.Server(tb)
	database = server.Database(tb)
	store = Open(tb, Config(server, database))
	if _, err := store.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return store, server, database
}

// Insert inserts the rows and fails the test on an error.
func Insert(tb testing.TB, store *clickhouse.Store, rows event.Rows) {
	tb.Helper()
	if err := store.Insert(tb.Context(), &rows); err != nil {
		tb.Fatal(err)
	}
}

// Created returns the position of a write at the offset, and the version that it
// has as a create.
func Created(offset int64) (event.Position, event.Version) {
	p := event.MakePosition(1, offset)
	return p, event.MakeVersion(event.ClassCreate, p)
}

// Updated returns the version of an update at the offset.
func Updated(offset int64) event.Version {
	return event.MakeVersion(event.ClassUpdate, event.MakePosition(1, offset))
}

// Deleted returns the version of a delete at the offset.
func Deleted(offset int64) event.Version {
	return event.MakeVersion(event.ClassDelete, event.MakePosition(1, offset))
}

// OneCore returns the core row of one event.
func OneCore(t testing.TB, conversation string) event.Rows {
	position, version := Created(1)
	return event.Rows{Cores: []event.Core{{ID: event.NewID(At(t, "2026-03-01T00:00:00Z"), conversation), ConversationID: conversation, Created: position, Version: version}}}
}
