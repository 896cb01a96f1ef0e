package clickhouse_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// ordered are the events of a filter, by timestamp, then in the order that ClickHouse has for
// ids: by their second half first.
func (w *world) ordered(f query.Filter) []event.ID {
	var ids []event.ID
	matching := w.matching(f, nil)
	for id, e := range w.live {
		if slices.Contains(matching, e) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b event.ID) int {
		return cmp.Or(cmp.Compare(a.Micros(), b.Micros()), bytes.Compare(a[8:], b[8:]), bytes.Compare(a[:8], b[:8]))
	})
	return ids
}

// valueOf is the value of a group, as JSON.
func valueOf(e *event.Event, g query.Group) string {
	switch g.By {
	case query.ByConversation:
		quoted, _ := json.Marshal(e.ConversationID)
		return string(quoted)
	case query.ByEventName:
		return strconv.Quote(e.EventName)
	case query.ByMetadata:
	}
	value, _, _, _ := member(e.Metadata, g.MetadataKey)
	return value
}

// subjects are the events of each subject, in order.
func (w *world) subjects(f query.Filter, s query.Subject) map[string][]*event.Event {
	of := make(map[string][]*event.Event)
	for _, id := range w.ordered(f) {
		e := w.live[id]
		g := query.Group{By: query.ByMetadata, MetadataKey: s.MetadataKey}
		if s.MetadataKey == "" {
			g.By = query.ByConversation
		}
		if value := valueOf(e, g); value != "null" {
			of[value] = append(of[value], e)
		}
	}
	return of
}

func (w *world) isOf(e *event.Event, step query.Filter) bool {
	step.UntilMicros = query.MicrosMax
	one := world{live: map[event.ID]*event.Event{{}: e}}
	return len(one.matching(step, nil)) == 1
}

// series returns the latest events of the steps that end with an event and lie within the
// window: the definition of query.Funnel, by trying all of them.
func (w *world) series(q query.Funnel, events []*event.Event, last int, steps int, sinceMicros int64) []*event.Event {
	e := events[last]
	if !w.isOf(e, q.Steps[steps-1]) || e.Micros < sinceMicros {
		return nil
	}
	if steps == 1 {
		return []*event.Event{e}
	}
	for i := last - 1; i >= 0; i-- {
		if before := w.series(q, events, i, steps-1, sinceMicros); before != nil {
			return append(before, e)
		}
	}
	return nil
}

// funnel are the rows that query.Funnel documents.
func (w *world) funnel(q query.Funnel) []query.FunnelRow {
	type step struct {
		subjects uint64
		times    []float64
	}
	groups := make(map[string][]step)
	if q.GroupBy == nil {
		groups[""] = make([]step, len(q.Steps))
	}
	for _, events := range w.subjects(q.Filter, q.Subject) {
		var reached []*event.Event
		for steps := len(q.Steps); steps > 0 && reached == nil; steps-- {
			for last := 0; last < len(events) && reached == nil; last++ {
				reached = w.series(q, events, last, steps, events[last].Micros-q.WindowMicros)
			}
		}
		if reached == nil {
			continue
		}
		group := ""
		if q.GroupBy != nil {
			first := slices.IndexFunc(events, func(e *event.Event) bool { return w.isOf(e, q.Steps[0]) })
			group = valueOf(events[first], *q.GroupBy)
		}
		if groups[group] == nil {
			groups[group] = make([]step, len(q.Steps))
		}
		for i, e := range reached {
			s := &groups[group][i]
			s.subjects++
			if i > 0 {
				s.times = append(s.times, float64(e.Micros-reached[i-1].Micros))
			}
		}
	}
	var rows []query.FunnelRow
	for group, steps := range groups {
		row := query.FunnelRow{Group: group}
		for _, s := range steps {
			row.Steps = append(row.Steps, query.FunnelStep{Subjects: s.subjects, MedianMicros: quantile(s.times, 0.5)})
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b query.FunnelRow) int {
		return cmp.Or(-cmp.Compare(a.Steps[0].Subjects, b.Steps[0].Subjects), cmp.Compare(a.Group, b.Group))
	})
	return rows[:min(len(rows), q.LimitRows)]
}

func funnelQuestions(f query.Filter) map[string]query.Funnel {
	const hour = 3_600_000_000
	step := func(name string) query.Filter { return query.Filter{EventNames: []string{name}} }
	a, b, c := step("event_a"), step("event_b"), step("event_c")
	failed := query.Filter{EventNames: []string{"event_b"}, Errors: query.WithError, LatencyMin: new(7.0)}
	pro := query.Filter{EventNames: []string{"event_a"}, Metadata: []query.MetadataFilter{{Key: "plan", Value: "pro"}}}
	user := query.Subject{MetadataKey: "plan"}
	questions := map[string]query.Funnel{
		"an hour":             {Steps: []query.Filter{a, b, c}, WindowMicros: hour},
		"a microsecond":       {Steps: []query.Filter{a, b}, WindowMicros: 1},
		"no time at all":      {Steps: []query.Filter{a, b, a}, WindowMicros: 0},
		"days":                {Steps: []query.Filter{a, b, c, a, b}, WindowMicros: 100 * hour},
		"one step many times": {Steps: []query.Filter{a, a, a, a}, WindowMicros: 30 * hour},
		"the same and less":   {Steps: []query.Filter{b, failed, b}, WindowMicros: 20 * hour},
		"of values":           {Steps: []query.Filter{c, pro, a}, WindowMicros: 5 * hour, Subject: user},
		"of numbers, groups":  {Steps: []query.Filter{a, b}, WindowMicros: 500 * hour, Subject: query.Subject{MetadataKey: "n"}, GroupBy: &query.Group{By: query.ByConversation}},
		"groups":              {Steps: []query.Filter{a, failed, c}, WindowMicros: 50 * hour, GroupBy: &query.Group{By: query.ByMetadata, MetadataKey: "plan"}},
		"a few groups":        {Steps: []query.Filter{{}, failed}, WindowMicros: 3 * hour, Subject: user, GroupBy: &query.Group{By: query.ByEventName}, LimitRows: 1},
	}
	for name, q := range questions {
		q.Filter, q.LimitRows = f, cmp.Or(q.LimitRows, 1000)
		q.BytesMax = 500 * q.LimitRows
		questions[name] = q
	}
	return questions
}

func (w *world) checkFunnel(t *testing.T, store *clickhouse.Store, f query.Filter) {
	for name, q := range funnelQuestions(f) {
		t.Run(name, func(t *testing.T) {
			got, err := store.Funnel(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(w.funnel(q), got, equateNumbers); diff != "" {
				t.Error("rows (-want +got):\n" + diff)
			}
		})
	}
}
