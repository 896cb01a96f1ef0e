package clickhouse

import (
	"log/slog"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

func TestIsTooExpensive(t *testing.T) {
	server := enginetest.Server(t)
	store, err := New(Config{Addr: server.Addr, User: server.User, Password: server.Password}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	for _, tt := range []struct {
		name, body string
		setting    ch.Setting
		want       bool
	}{
		{"memory", "SELECT groupArray(number) AS n FROM numbers(10000000)", setting("max_memory_usage", "1000000"), true},
		{"rows", "SELECT [number] AS n FROM numbers(10000000)", setting("max_rows_to_read", "1"), true},
		{"bytes", "SELECT [number] AS n FROM numbers(10000000)", setting("max_bytes_to_read", "1"), true},
		{"time", "SELECT [sleepEachRow(1) + number] AS n FROM numbers(3)", setting("max_execution_time", "0.01"), true},
		{"no table", "SELECT n FROM system.nothing", setting("max_threads", "1"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n proto.ColStr
			err := store.admin.do(t.Context(), DefaultQueryTimeout, ch.Query{
				Body: "SELECT toString(n) AS n FROM (" + tt.body + ")", Settings: []ch.Setting{tt.setting},
				Result: proto.Results{{Name: "n", Data: &n}},
			})
			if err == nil {
				t.Fatal("the query succeeds")
			}
			if got := isTooExpensive(err); got != tt.want {
				t.Errorf("of %v: %t, want %t", err, got, tt.want)
			}
			if got := isTooExpensive(withoutValues(err)); got != tt.want {
				t.Errorf("of %v: %t, want %t", withoutValues(err), got, tt.want)
			}
		})
	}
}
