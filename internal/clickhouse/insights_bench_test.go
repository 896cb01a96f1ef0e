package clickhouse_test

import (
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/query"
)

// BenchmarkInsights asks 2 million events of seven days, of 50,000 conversations and 20,000 users, with metadata of
// four members.
func BenchmarkInsights(b *testing.B) {
	store, server, database := clickhousetest.Migrated(b)
	server.Query(b, "INSERT INTO "+database+`.events (conversation_hash, timestamp, id, conversation_id, event_name, error, latency, metadata, created, version)
SELECT cityHash64(number % 50000) % 16777216, fromUnixTimestamp64Micro(toInt64(1769731200000000 + number * 300000)), generateUUIDv4(),
    'conversation ' || toString(number % 50000), ['event_a', 'event_b', 'event_c'][rand(1) % 3 + 1], if(rand(2) % 10 = 0, 'error', NULL), rand(3) % 100000 / 8,
    '{"plan":"' || ['free', 'pro', 'team'][number % 3 + 1] || '","user":"u' || toString(number % 20000) || '","tokens":' || toString(rand(4) % 3000) ||
        ',"cost":' || toString(rand(5) % 3000 / 100000) || '}', 1, 4611686018427387904 + number
FROM numbers(2000000)`)
	server.Query(b, "OPTIMIZE TABLE "+database+".events FINAL")
	f := query.Filter{SinceMicros: clickhousetest.At(b, "2026-01-30T00:00:00Z"), UntilMicros: clickhousetest.At(b, "2026-02-06T00:00:00Z")}
	days, _, _ := query.Interval{Unit: query.Day, Count: 1}.Buckets(f.SinceMicros, f.UntilMicros, time.UTC, 10)
	events := query.Measure{Function: query.CountEvents}
	byPlan := []query.Group{{By: query.ByMetadata, MetadataKey: "plan"}}
	steps := []query.Filter{{EventNames: []string{"event_a"}}, {EventNames: []string{"event_b"}}, {EventNames: []string{"event_c"}}}
	user := query.Subject{MetadataKey: "user"}
	insights := func(q query.Insights) func() error {
		q.Filter, q.LimitRows = f, 1000
		return func() error {
			_, err := store.Insights(b.Context(), q)
			return err
		}
	}
	funnel := func(s query.Subject) func() error {
		return func() error {
			_, err := store.Funnel(b.Context(), query.Funnel{Filter: f, Steps: steps, WindowMicros: 86_400e6, Subject: s, LimitRows: 1})
			return err
		}
	}
	retention := func(s query.Subject) func() error {
		return func() error {
			_, err := store.Retention(b.Context(), query.Retention{Filter: f, Did: steps[0], Returned: steps[1], Subject: s, PeriodSeconds: days})
			return err
		}
	}
	for _, question := range []struct {
		name string
		ask  func() error
	}{
		{"by event name", insights(query.Insights{Measures: []query.Measure{events}, GroupBy: []query.Group{{By: query.ByEventName}}})},
		{"by plan", insights(query.Insights{Measures: []query.Measure{events}, GroupBy: byPlan})},
		{"tokens by plan", insights(query.Insights{Measures: []query.Measure{events, {Function: query.Sum, MetadataKey: "tokens"}}, GroupBy: byPlan})},
		{"cost", insights(query.Insights{Measures: []query.Measure{{Function: query.Sum, MetadataKey: "cost"}}})},
		{"funnel by conversation", funnel(query.Subject{})},
		{"funnel by user", funnel(user)},
		{"retention by conversation", retention(query.Subject{})},
		{"retention by user", retention(user)},
	} {
		b.Run(question.name, func(b *testing.B) {
			for b.Loop() {
				if err := question.ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
