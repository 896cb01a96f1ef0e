package clickhouse_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

func TestMigrateCreatesTheDatabaseAndIsRepeatable(t *testing.T) {
	server := enginetest.Server(t)
	database := server.Database(t) + "_new" // does not exist
	t.Cleanup(func() { server.Query(t, "DROP DATABASE IF EXISTS "+database+" SYNC") })
	store := open(t, config(server, database))
	if err := store.Ready(t.Context()); err == nil {
		t.Fatal("a store without a database is ready")
	}
	all, err := clickhouse.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	first, err := store.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Applied) != len(all) || len(first.Unknown) != 0 {
		t.Fatalf("the first run applied %d of %d, unknown %d", len(first.Applied), len(all), len(first.Unknown))
	}
	second, err := store.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(second.Applied) != 0 {
		t.Fatalf("the second run applied %v again", second.Applied)
	}
	if err := store.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateAtOnce(t *testing.T) {
	server := enginetest.Server(t)
	database := server.Database(t) + "_new"
	t.Cleanup(func() { server.Query(t, "DROP DATABASE IF EXISTS "+database+" SYNC") })
	var wg sync.WaitGroup
	for range 8 {
		store := open(t, config(server, database))
		wg.Go(func() {
			if _, err := store.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
			if err := store.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := clickhouse.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	if got := server.Query(t, "SELECT count() FROM "+database+".schema_migrations FINAL"); got != string(rune('0'+len(all))) {
		t.Fatalf("%s migrations are recorded, want %d", got, len(all))
	}
}

func TestMigrateRefusesAChangedMigration(t *testing.T) {
	store, server, database := migrated(t)
	server.Query(t, "INSERT INTO "+database+".schema_migrations VALUES (1, '0001_events', 'other', now64(6))")
	_, err := store.Migrate(t.Context())
	if err == nil || !strings.Contains(err.Error(), "0001_events") || !strings.Contains(err.Error(), "checksum") {
		t.Fatalf("got %v, want an error about the checksum", err)
	}
}

func TestMigrateReportsANewerSchema(t *testing.T) {
	store, server, database := migrated(t)
	server.Query(t, "INSERT INTO "+database+".schema_migrations VALUES (999, '0999_future', 'x', now64(6))")
	done, err := store.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Unknown) != 1 || done.Unknown[0].Name != "0999_future" {
		t.Fatalf("unknown: %v", done.Unknown)
	}
}
