package clickhouse_test

import (
	"strconv"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/query"
)

// A question about a day must read about a day, whether Sluice asks it or a
// user of the views does.
func TestTimeSkipsGranules(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	const days, rowsPerDay = 30, 4096 // 4 granules a day
	server.Query(t, `INSERT INTO `+database+`.events (conversation_hash, timestamp, id, conversation_id, event_name, version)
		SELECT cityHash64(number) % 16777216, toDateTime64('2026-03-01 00:00:00', 6, 'UTC') + toIntervalMicrosecond(number * 21093750),
			generateUUIDv4(), 'c', 'event_a', number + 1
		FROM numbers(`+strconv.Itoa(days*rowsPerDay)+`)`)
	server.Query(t, "OPTIMIZE TABLE "+database+".events FINAL")

	marks := func() int {
		t.Helper()
		n, err := strconv.Atoi(server.Query(t, "SELECT sum(value) FROM system.events WHERE event = 'SelectedMarks'"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	since, until := clickhousetest.At(t, "2026-03-10T00:00:00Z"), clickhousetest.At(t, "2026-03-11T00:00:00Z")
	for name, ask := range map[string]func() uint64{
		"the API": func() uint64 {
			count, err := store.Errors(t.Context(), query.Filter{SinceMicros: since, UntilMicros: until})
			if err != nil {
				t.Fatal(err)
			}
			return count.Events
		},
		"a view": func() uint64 {
			n, err := strconv.ParseUint(server.Query(t, "SELECT count() FROM "+database+
				".live_events WHERE timestamp >= '2026-03-10' AND timestamp < '2026-03-11'"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := marks()
			if n := ask(); n != rowsPerDay {
				t.Errorf("%d events, want %d", n, rowsPerDay)
			}
			if read := marks() - before; read < 4 || read > 8 {
				t.Errorf("%d granules read of %d, for a day that has 4", read, days*4)
			}
		})
	}
}
