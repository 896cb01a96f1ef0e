package clickhouse_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// fillCores writes n core rows, each of a conversation of its own.
func fillCores(t *testing.T, query func(sql string) string, database string, n string) {
	t.Helper()
	query(`INSERT INTO ` + database + `.events (conversation_hash, timestamp, id, conversation_id, event_name, version)
		SELECT cityHash64(number) % 16777216, toDateTime64('2026-03-01 00:00:00', 6, 'UTC') + toIntervalMicrosecond(number * 1000),
			generateUUIDv4(), 'a conversation that is known by a name of some length ' || toString(number), 'event_a', number + 1
		FROM numbers(` + n + `)`)
}

var wholeMonth = query.Filter{SinceMicros: 1_772_323_200_000_000, UntilMicros: 1_775_001_600_000_000} // March 2026

// What a query needs too much of is told apart from what the server lacks for
// others, and from a server that does not answer.
func TestLimitsOfQueries(t *testing.T) {
	direct, server, database := clickhousetest.Migrated(t)
	fillCores(t, func(sql string) string { return server.Query(t, sql) }, database, "300000")
	dear := func(ctx context.Context, cfg clickhouse.Config) error {
		_, err := clickhousetest.Open(t, cfg).Conversations(ctx, query.Conversations{Filter: wholeMonth, LimitRows: 10})
		return err
	}
	if _, err := direct.Conversations(t.Context(), query.Conversations{Filter: wholeMonth, LimitRows: 10}); err != nil {
		t.Fatalf("without limits: %v", err)
	}
	check := func(t *testing.T, err error, tooLarge, timeout bool) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		if errors.Is(err, event.ErrQueryTooLarge) != tooLarge || errors.Is(err, event.ErrQueryTimeout) != timeout {
			t.Errorf("got %v; is too large %t, is a timeout %t", err, tooLarge, timeout)
		}
		if strings.Contains(err.Error(), "SELECT") {
			t.Errorf("the error has the query in it: %v", err)
		}
	}
	t.Run("its own memory", func(t *testing.T) {
		cfg := clickhousetest.Config(server, database)
		cfg.QueryMemoryBytesMax = 8 << 20
		check(t, dear(t.Context(), cfg), true, false)
	})
	t.Run("its own time", func(t *testing.T) {
		cfg := clickhousetest.Config(server, database)
		cfg.QueryTimeout = time.Millisecond
		check(t, dear(t.Context(), cfg), false, true)
	})
	t.Run("no answer", func(t *testing.T) {
		cfg := clickhousetest.Config(server, database)
		cfg.Addr = newSwallower(t, server.Addr, "GROUP BY conversation_id").Addr().String()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := dear(ctx, cfg)
		check(t, err, false, false)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// A query whose caller has gone is ended on the server, and its connection is
// free for the next one.
func TestCancelledQueriesEnd(t *testing.T) {
	_, server, database := clickhousetest.Migrated(t)
	cfg := clickhousetest.Config(server, database)
	cfg.QueryTimeout = time.Hour // it does not end by itself
	store := clickhousetest.Open(t, cfg)
	// A month's rows are a block, for which the server allows three seconds of
	// sleep. All months together take minutes.
	server.Query(t, `INSERT INTO `+database+`.events (timestamp, id, version)
		SELECT toDateTime64('2010-01-01 00:00:00', 6, 'UTC') + toIntervalMonth(number % 99), generateUUIDv4(), 1 FROM numbers(2475)`)
	server.Query(t, "ALTER TABLE "+database+".events MODIFY COLUMN visible UInt8 ALIAS sleepEachRow(0.1) = 0")
	all := query.Filter{UntilMicros: wholeMonth.UntilMicros}
	running := func() string {
		return server.Query(t, "SELECT count() FROM system.processes WHERE current_database = '"+database+"' AND query LIKE 'SELECT count() AS events%'")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := store.Errors(ctx, all)
		ended <- err
	}()
	until := func(want string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for tick := time.NewTicker(10 * time.Millisecond); running() != want; <-tick.C {
			if time.Now().After(deadline) {
				t.Fatalf("%s queries are running, want %s", running(), want)
			}
		}
	}
	until("1")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	until("0")
}

// The rows of a look-up are bounded in bytes, of which older versions of a row
// take nothing.
func TestLookupsAreBoundedInBytes(t *testing.T) {
	server := enginetest.Server(t)
	cfg := clickhousetest.Config(server, server.Database(t))
	cfg.LookupBytesMax = 100 << 10
	store := clickhousetest.Open(t, cfg)
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	metadata := `{"k":"` + strings.Repeat("m", 16<<10) + `"}`
	var ids []event.ID
	for i := range 12 {
		id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), "c")
		ids = append(ids, id)
		position, version := clickhousetest.Created(int64(i))
		core := event.Core{ID: id, ConversationID: "c", EventName: "event_a", Metadata: metadata, Created: position, Version: version}
		clickhousetest.Insert(t, store, event.Rows{Cores: []event.Core{core}})
		if i == 0 {
			for offset := range int64(12) {
				core.Version = clickhousetest.Updated(100 + offset)
				clickhousetest.Insert(t, store, event.Rows{Cores: []event.Core{core}})
			}
		}
	}
	if _, err := store.Cores(t.Context(), ids); !errors.Is(err, event.ErrQueryTooLarge) {
		t.Errorf("%d rows of 16 KiB: error %v", len(ids), err)
	}
	for _, some := range [][]event.ID{ids[:1], ids[:4], ids[8:]} {
		cores, err := store.Cores(t.Context(), some)
		if err != nil || len(cores) != len(some) {
			t.Errorf("%d of %d rows, error %v", len(cores), len(some), err)
		}
	}
	if cores, err := store.Cores(t.Context(), ids[:1]); err != nil || cores[ids[0]].Version != clickhousetest.Updated(111) {
		t.Errorf("version %v, error %v", cores[ids[0]].Version, err)
	}
	states, err := store.CoreStates(t.Context(), ids)
	if err != nil || len(states) != len(ids) {
		t.Errorf("%d of %d states, error %v", len(states), len(ids), err)
	}
}
