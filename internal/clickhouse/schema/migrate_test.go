package schema_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

func TestMigrateCreatesTheDatabaseAndIsRepeatable(t *testing.T) {
	server := enginetest.Server(t)
	database := server.Database(t) + "_new" // does not exist
	t.Cleanup(func() { server.Query(t, "DROP DATABASE IF EXISTS "+database+" SYNC") })
	store := clickhousetest.Open(t, clickhousetest.Config(server, database))
	if err := store.Ready(t.Context()); err == nil {
		t.Fatal("a store without a database is ready")
	}
	all, err := schema.Migrations()
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
		store := clickhousetest.Open(t, clickhousetest.Config(server, database))
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
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	if got := server.Query(t, "SELECT count() FROM "+database+".schema_migrations FINAL"); got != strconv.Itoa(len(all)) {
		t.Fatalf("%s migrations are recorded, want %d", got, len(all))
	}
}

func TestMigrateRefusesAChangedMigration(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	server.Query(t, "INSERT INTO "+database+".schema_migrations VALUES (1, '0001_events', 'other', now64(6))")
	_, err := store.Migrate(t.Context())
	if err == nil || !strings.Contains(err.Error(), "0001_events") || !strings.Contains(err.Error(), "checksum") {
		t.Fatalf("got %v, want an error about the checksum", err)
	}
}

func TestMigrateReportsANewerSchema(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	server.Query(t, "INSERT INTO "+database+".schema_migrations VALUES (999, '0999_future', 'x', now64(6))")
	done, err := store.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Unknown) != 1 || done.Unknown[0].Name != "0999_future" {
		t.Fatalf("unknown: %v", done.Unknown)
	}
}

// schemaOf is how the tables and views of a database are defined, whatever the
// names of the database and of the user who made them.
func schemaOf(tb testing.TB, server *enginetest.Instance, database string) string {
	tb.Helper()
	return server.Query(tb, "SELECT name, replaceAll(replaceAll(create_table_query, database || '.', ''), 'DEFINER = ' || currentUser() || ' ', 'DEFINER = CURRENT_USER ') FROM system.tables WHERE database = '"+database+"' ORDER BY name FORMAT TSVRaw")
}

// migratedTo is a database as a build leaves it whose last migration is the one
// of that number, and which knew neither locks nor comments of views.
func migratedTo(tb testing.TB, server *enginetest.Instance, version int) (database string) {
	tb.Helper()
	database = server.Database(tb)
	all, err := schema.Migrations()
	if err != nil {
		tb.Fatal(err)
	}
	server.Query(tb, "CREATE TABLE "+database+".schema_migrations (version UInt32, name String, checksum String, applied_at DateTime64(6, 'UTC')) ENGINE = ReplacingMergeTree(applied_at) ORDER BY (version, checksum) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1")
	for _, m := range all[:version] {
		applyLate(tb, server, database, m)
		server.Query(tb, fmt.Sprintf("INSERT INTO %s.schema_migrations VALUES (%d, '%s', '%s', now64(6))", database, m.Version, m.Name, m.Checksum))
	}
	return database
}

// applyLate runs the statements of a migration, as a process of an older build
// does that comes late to it.
func applyLate(tb testing.TB, server *enginetest.Instance, database string, m schema.Migration) {
	tb.Helper()
	for _, statement := range m.Statements() {
		server.QueryIn(tb, database, statement)
	}
}

// TestMigrateRenewsViews has a process die after it has run an old migration
// late: all is recorded as done, and the views are old ones.
func TestMigrateRenewsViews(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	want := schemaOf(t, server, database)
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	second := all[1]
	if !strings.Contains(second.Name, "views") {
		t.Fatalf("migration %s makes no views, so this test shows nothing", second.Name)
	}
	applyLate(t, server, database, second)
	if schemaOf(t, server, database) == want {
		t.Fatal("an old migration changed nothing, so this test shows nothing")
	}
	done, err := store.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Applied) != 0 || !slices.Equal(done.Views, []string{"live_event_contents", "live_event_embeddings", "live_events"}) {
		t.Errorf("applied %v, and made the views %v", done.Applied, done.Views)
	}
	if diff := cmp.Diff(want, schemaOf(t, server, database)); diff != "" {
		t.Errorf("schema (-of one migration +after the late one):\n%s", diff)
	}
	// Views that are missing are made, and others are left alone.
	server.Query(t, "DROP VIEW "+database+".live_events SYNC")
	server.Query(t, "CREATE VIEW "+database+".of_the_user AS SELECT 1 AS one")
	if done, err = store.Migrate(t.Context()); err != nil || !slices.Equal(done.Views, []string{"live_events"}) {
		t.Errorf("made the views %v, error %v; want live_events", done.Views, err)
	}
	if done, err = store.Migrate(t.Context()); err != nil || len(done.Views) != 0 {
		t.Errorf("made the views %v, error %v; want none", done.Views, err)
	}
	// A newer build may have newer views, which this one must not take back.
	applyLate(t, server, database, second)
	server.Query(t, "INSERT INTO "+database+".schema_migrations VALUES (999, '0999_future', 'x', now64(6))")
	if done, err = store.Migrate(t.Context()); err != nil || len(done.Views) != 0 {
		t.Errorf("made the views %v of a newer schema, error %v", done.Views, err)
	}
}

// TestMigrateFromEachVersion updates what each build before this one has left.
func TestMigrateFromEachVersion(t *testing.T) {
	_, server, single := clickhousetest.Migrated(t)
	want := schemaOf(t, server, single)
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for version := range len(all) + 1 {
		database := migratedTo(t, server, version)
		done, err := clickhousetest.Open(t, clickhousetest.Config(server, database)).Migrate(t.Context())
		if err != nil {
			t.Fatalf("from version %d: %v", version, err)
		}
		if len(done.Applied) != len(all)-version {
			t.Errorf("from version %d: applied %d migrations, want %d", version, len(done.Applied), len(all)-version)
		}
		if diff := cmp.Diff(want, schemaOf(t, server, database)); diff != "" {
			t.Errorf("from version %d (-of one migration +updated):\n%s", version, diff)
		}
	}
}

// TestMigrateAtOnceEndsAsOne has many processes migrate at once, of which most
// die before they are done, from nothing and from the version before.
func TestMigrateAtOnceEndsAsOne(t *testing.T) {
	_, server, single := clickhousetest.Migrated(t)
	want := schemaOf(t, server, single)
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		version := []int{0, len(all) - 1}[round%2]
		database := migratedTo(t, server, version)
		begin := time.Now()
		var wg sync.WaitGroup
		for i := range 12 {
			store := clickhousetest.Open(t, clickhousetest.Config(server, database))
			wg.Go(func() {
				ctx := t.Context()
				if i > 0 { // the first one is not killed
					var kill context.CancelFunc
					ctx, kill = context.WithCancel(ctx)
					defer kill()
					time.AfterFunc(rand.N(400*time.Millisecond), kill)
				}
				if _, err := store.Migrate(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if diff := cmp.Diff(want, schemaOf(t, server, database)); diff != "" {
			t.Errorf("round %d, from version %d (-of one migration +of many at once):\n%s", round, version, diff)
		}
		if got := server.Query(t, "SELECT count() FROM "+database+".schema_migrations FINAL"); got != strconv.Itoa(len(all)) {
			t.Errorf("round %d: %s migrations are recorded, want %d", round, got, len(all))
		}
		t.Logf("round %d from version %d took %s", round, version, time.Since(begin).Round(time.Millisecond))
	}
}

// TestMigrationLock has processes take turns, and one lose its turn.
func TestMigrationLock(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	var inside, turns atomic.Int32
	var wg sync.WaitGroup
	for range 6 {
		other := clickhousetest.Open(t, clickhousetest.Config(server, database))
		wg.Go(func() {
			err := other.MigrationLock(t.Context(), database, func(ctx context.Context) error {
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d processes are at work at once", n)
				}
				defer inside.Add(-1)
				turns.Add(1)
				return other.Ready(ctx)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := turns.Load(); n != 6 {
		t.Fatalf("%d processes had their turn, want 6", n)
	}

	// Databases do not wait for each other, and an error is passed on.
	want := errors.New("of the work")
	err := store.MigrationLock(t.Context(), database, func(ctx context.Context) error {
		return clickhousetest.Open(t, clickhousetest.Config(server, database)).MigrationLock(ctx, database+"_other", func(context.Context) error { return want })
	})
	if !errors.Is(err, want) || strings.Contains(err.Error(), "was lost") {
		t.Errorf("got %v, want %v", err, want)
	}

	// Who does not get it waits for as long as its context lasts.
	err = store.MigrationLock(t.Context(), database, func(context.Context) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := store.MigrationLock(ctx, database, func(context.Context) error { return errors.New("two have the lock") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}

	// Its connection is lost: the work is broken off, and may be tried again.
	proxy := clickhousetest.NewProxy(t, server.Addr)
	cfg := clickhousetest.Config(server, database)
	cfg.Addr = proxy.Addr().String()
	err = clickhousetest.Open(t, cfg).MigrationLock(t.Context(), database, func(ctx context.Context) error {
		proxy.Cut()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return errors.New("the work goes on without the lock")
		}
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "was lost") || !clickhouse.IsRetryable(err) {
		t.Errorf("got %v, want a retryable error that says that the lock was lost", err)
	}
	if err := store.MigrationLock(t.Context(), database, func(context.Context) error { return nil }); err != nil {
		t.Errorf("after the holder has lost it: %v", err)
	}
}
