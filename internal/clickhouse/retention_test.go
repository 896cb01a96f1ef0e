package clickhouse_test

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/query"
)

// retention are the rows that query.Retention documents.
func (w *world) retention(q query.Retention) []query.RetentionRow {
	rows := make([]query.RetentionRow, len(q.PeriodSeconds))
	for i := range rows {
		rows[i].Returned = make([]uint64, len(rows)-i)
	}
	for _, events := range w.subjects(q.Filter, q.Subject) {
		did, returned := make([]bool, len(rows)), make([]bool, len(rows))
		for _, e := range events {
			period := 0
			for i, seconds := range q.PeriodSeconds {
				if seconds*1e6 <= e.Micros {
					period = i
				}
			}
			did[period] = did[period] || w.isOf(e, q.Did)
			returned[period] = returned[period] || w.isOf(e, q.Returned)
		}
		for i := range rows {
			if !did[i] {
				continue
			}
			rows[i].Subjects++
			for j := i; j < len(rows); j++ {
				if returned[j] {
					rows[i].Returned[j-i]++
				}
			}
		}
	}
	return rows
}

func retentionQuestions(t *testing.T, f query.Filter) map[string]query.Retention {
	t.Helper()
	zone, err := time.LoadLocation("America/Sao_Paulo")
	if err != nil {
		t.Fatal(err)
	}
	f.SinceMicros = max(f.SinceMicros, clickhousetest.At(t, "2026-01-25T00:00:00Z"))
	f.UntilMicros = min(f.UntilMicros, clickhousetest.At(t, "2026-03-10T00:00:00Z"))
	periods := func(unit query.Unit) []int64 {
		starts, _, ok := query.Interval{Unit: unit, Count: 1}.Buckets(f.SinceMicros, f.UntilMicros, zone, 400)
		if !ok {
			t.Fatal("too many periods")
		}
		return starts
	}
	a, b := query.Filter{EventNames: []string{"event_a"}}, query.Filter{EventNames: []string{"event_b"}, Errors: query.WithError}
	pro := query.Filter{EventNames: []string{"event_c"}, Metadata: []query.MetadataFilter{{Key: "plan", Op: query.Exists}}}
	questions := map[string]query.Retention{
		"days":           {Did: a, Returned: b, PeriodSeconds: periods(query.Day)},
		"weeks":          {Did: b, Returned: a, PeriodSeconds: periods(query.Week)},
		"the same":       {Did: a, Returned: a, PeriodSeconds: periods(query.Week)},
		"of values":      {Did: pro, Returned: a, Subject: query.Subject{MetadataKey: "plan"}, PeriodSeconds: periods(query.Day)},
		"of numbers":     {Did: a, Returned: pro, Subject: query.Subject{MetadataKey: "n"}, PeriodSeconds: periods(query.Month)},
		"of no subjects": {Did: a, Returned: a, Subject: query.Subject{MetadataKey: "none"}, PeriodSeconds: periods(query.Week)},
	}
	for name, q := range questions {
		q.Filter = f
		questions[name] = q
	}
	return questions
}

func (w *world) checkRetention(t *testing.T, store *clickhouse.Store, f query.Filter) {
	for name, q := range retentionQuestions(t, f) {
		t.Run(name, func(t *testing.T) {
			got, err := store.Retention(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(w.retention(q), got); diff != "" {
				t.Error("rows (-want +got):\n" + diff)
			}
		})
	}
}
