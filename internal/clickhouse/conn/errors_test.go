package conn

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

func TestIsTooExpensive(t *testing.T) {
	server := enginetest.Server(t)
	store, err := Open(Config{Addr: server.Addr, User: server.User, Password: server.Password}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	for _, tt := range []struct {
		name, body string
		setting    ch.Setting
		want       bool
	}{
		{"memory", "SELECT groupArray(number) AS n FROM numbers(10000000)", Setting("max_memory_usage", "1000000"), true},
		{"rows", "SELECT [number] AS n FROM numbers(10000000)", Setting("max_rows_to_read", "1"), true},
		{"bytes", "SELECT [number] AS n FROM numbers(10000000)", Setting("max_bytes_to_read", "1"), true},
		{"time", "SELECT [sleepEachRow(1) + number] AS n FROM numbers(3)", Setting("max_execution_time", "0.01"), true},
		{"no table", "SELECT n FROM system.nothing", Setting("max_threads", "1"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n proto.ColStr
			err := store.DoServer(t.Context(), DefaultQueryTimeout, ch.Query{
				Body: "SELECT toString(n) AS n FROM (" + tt.body + ")", Settings: []ch.Setting{tt.setting},
				Result: proto.Results{{Name: "n", Data: &n}},
			})
			if err == nil {
				t.Fatal("the query succeeds")
			}
			if got := IsTooExpensive(err); got != tt.want {
				t.Errorf("of %v: %t, want %t", err, got, tt.want)
			}
			if got := IsTooExpensive(WithoutValues(err)); got != tt.want {
				t.Errorf("of %v: %t, want %t", WithoutValues(err), got, tt.want)
			}
		})
	}
}

// The memory of the whole server may be used up by others, whatever one query
// takes. Its message is not that of the query's own limit, and its code is.
func TestMemoryOfTheServer(t *testing.T) {
	library, err := engine.Find("")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	e, err := engine.New(engine.Config{Library: library, Dir: t.TempDir(), MemoryMaxBytes: engine.MemoryMinBytes}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.Run(ctx) })
	defer wg.Wait()
	defer stop()
	if err := e.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	store, err := Open(Config{Addr: e.Addr(), User: engine.User, Password: e.Password()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	bytes, err := store.ServerMemory(ctx)
	if err != nil || bytes != engine.MemoryMinBytes {
		t.Errorf("the server has %d bytes of memory, error %v; want %d", bytes, err, int64(engine.MemoryMinBytes))
	}
	// As much for all queries as for this one.
	for _, own := range []struct {
		bytes    string
		tooLarge bool
	}{{"4294967296", false}, {"67108864", true}} {
		var n proto.ColUInt64
		err := store.DoServer(ctx, DefaultQueryTimeout, ch.Query{
			Body:     "SELECT length(groupArray(number)) AS n FROM numbers(1000000000)",
			Settings: []ch.Setting{Setting("max_memory_usage", own.bytes)},
			Result:   proto.Results{{Name: "n", Data: &n}},
		})
		if !ch.IsErr(err, 241) {
			t.Fatalf("got %v, want an error of memory", err)
		}
		if got := errors.Is(readError(err), event.ErrQueryTooLarge); got != own.tooLarge {
			t.Errorf("with %s bytes, too large is %t: %v", own.bytes, got, err)
		}
	}
}

// Messages of other versions, and those that came through another host.
func TestMemoryMessages(t *testing.T) {
	for message, want := range map[string]bool{
		"Query memory limit exceeded: would use 80.00 MiB (attempt to allocate chunk of 64.00 MiB), maximum: 47.68 MiB":                         true,
		"Memory limit (for query) exceeded: would use 4.00 GiB (attempt to allocate chunk of 4194304 bytes), maximum: 3.73 GiB":                 true,
		"Received from db-2:9000. DB::Exception: Query memory limit exceeded: would use 80.00 MiB":                                              true,
		"(total) memory limit exceeded: would use 10.66 GiB. OvercommitTracker decision: Query was selected to stop by OvercommitTracker":       false,
		"Memory limit (total) exceeded: would use 10.66 GiB (attempt to allocate chunk of 4194304 bytes), maximum: 10.66 GiB":                   false,
		"User memory limit exceeded: would use 80.00 MiB. OvercommitTracker decision: Query was selected to stop by OvercommitTracker":          false,
		"Memory limit (for user) exceeded: would use 4.00 GiB (attempt to allocate chunk of 4194304 bytes), maximum: 3.73 GiB: While executing": false,
	} {
		err := readError(&ch.Exception{Code: proto.Error(241), Message: message})
		if got := errors.Is(err, event.ErrQueryTooLarge); got != want {
			t.Errorf("%q: too large is %t", message, got)
		}
	}
}
