package clickhouse_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// equateNumbers allows what the order of additions changes.
var equateNumbers = gocmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateApprox(1e-12, 1e-9), cmpopts.EquateNaNs()}

// member returns a member of the metadata as query.ByMetadata groups it, and as a number: an
// integer of at most 64 bits, or a float64.
func member(metadata, key string) (group string, integer *big.Int, float float64, isNumber bool) {
	var members map[string]any
	decoder := json.NewDecoder(strings.NewReader(metadata))
	decoder.UseNumber()
	if metadata != "" && decoder.Decode(&members) != nil {
		panic("BUG: metadata " + metadata)
	}
	switch value := members[key].(type) {
	case json.Number:
		text := string(value)
		float, _ = strconv.ParseFloat(text, 64)
		integer, ok := new(big.Int).SetString(text, 10)
		if !ok || integer.Cmp(new(big.Int).SetUint64(math.MaxUint64)) > 0 || integer.Cmp(big.NewInt(math.MinInt64)) < 0 {
			// As a float64, which may be written as a short integer.
			text = strconv.FormatFloat(float, 'f', -1, 64)
			if math.Abs(float) >= 1e21 {
				text = strings.Replace(strconv.FormatFloat(float, 'e', -1, 64), "+", "", 1)
			}
			if integer, ok = new(big.Int).SetString(text, 10); ok && (integer.Cmp(new(big.Int).SetUint64(math.MaxUint64)) > 0 || integer.Cmp(big.NewInt(math.MinInt64)) < 0) {
				ok = false
			}
		}
		if ok {
			return integer.String(), integer, float, true
		}
		return text, nil, float, true
	case nil:
		return "null", nil, 0, false
	default:
		var text strings.Builder
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(value); err != nil {
			panic(err)
		}
		return strings.TrimSpace(text.String()), nil, 0, false
	}
}

// measured is the definition that query.Function documents.
func measured(events []*event.Event, m query.Measure) query.Number {
	whole := func(n int) query.Number { return query.Number{Float: float64(n), Digits: strconv.Itoa(n)} }
	var floats []float64
	integers, rest, others := new(big.Int), 0.0, 0
	conversations := make(map[string]bool)
	for _, e := range events {
		conversations[e.ConversationID] = true
		if m.MetadataKey == "" {
			if e.Latency != nil {
				floats = append(floats, *e.Latency)
				rest += *e.Latency
				others++
			}
			continue
		}
		_, integer, float, ok := member(e.Metadata, m.MetadataKey)
		switch {
		case !ok:
			continue
		case integer != nil:
			integers.Add(integers, integer)
		default:
			others++
			rest += float
		}
		floats = append(floats, float)
	}
	switch m.Function {
	case query.CountEvents:
		return whole(len(events))
	case query.CountErrors:
		return whole(int(count(events).Errors))
	case query.ErrorRate:
		return query.Number{Float: count(events).Rate()}
	case query.CountConversations:
		return whole(len(conversations))
	case query.Sum:
		float, _ := new(big.Float).SetInt(integers).Float64()
		if others > 0 || m.MetadataKey == "" {
			return query.Number{Float: float + rest}
		}
		return query.Number{Float: float, Digits: integers.String()}
	case query.Average:
		var sum float64
		for _, f := range floats {
			sum += f
		}
		return query.Number{Float: sum / float64(len(floats))}
	case query.Minimum:
		return query.Number{Float: quantile(floats, 0)}
	case query.Maximum:
		return query.Number{Float: quantile(floats, 1)}
	case query.Quantile:
		return query.Number{Float: quantile(floats, m.Level)}
	}
	panic("BUG: function")
}

// insights are the rows that query.Insights documents.
func (w *world) insights(q query.Insights) []query.InsightsRow {
	groups := make(map[string][]*event.Event)
	rows := make(map[string]query.InsightsRow)
	if len(q.GroupBy) == 0 && q.BucketSeconds == nil {
		rows["0 []"] = query.InsightsRow{}
	}
	for _, e := range w.matching(q.Filter, nil) {
		var row query.InsightsRow
		for _, start := range q.BucketSeconds {
			if start*1e6 <= e.Micros {
				row.Micros = start * 1e6
			}
		}
		for _, g := range q.GroupBy {
			var value string
			switch g.By {
			case query.ByConversation:
				quoted, _ := json.Marshal(e.ConversationID)
				value = string(quoted)
			case query.ByEventName:
				value = strconv.Quote(e.EventName)
			case query.ByMetadata:
				value, _, _, _ = member(e.Metadata, g.MetadataKey)
			}
			row.Groups = append(row.Groups, value)
		}
		key := fmt.Sprintf("%d %q", row.Micros, row.Groups)
		groups[key], rows[key] = append(groups[key], e), row
	}
	var want []query.InsightsRow
	for key, row := range rows {
		for _, m := range q.Measures {
			row.Measures = append(row.Measures, measured(groups[key], m))
		}
		want = append(want, row)
	}
	slices.SortFunc(want, func(a, b query.InsightsRow) int {
		order := 0
		if q.OrderBy == query.OrderByTime {
			order = cmp.Compare(a.Micros, b.Micros)
		} else if x, y := a.Measures[q.OrderBy].Float, b.Measures[q.OrderBy].Float; math.IsNaN(x) || math.IsNaN(y) {
			return cmp.Or(cmp.Compare(y, x), cmp.Compare(a.Micros, b.Micros), slices.Compare(a.Groups, b.Groups)) // NaN is the least of Compare
		} else {
			order = cmp.Compare(x, y)
		}
		if q.Descending {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.Micros, b.Micros), slices.Compare(a.Groups, b.Groups))
	})
	return want[:min(len(want), q.LimitRows)]
}

// insightsQuestions are questions with all measures, groups and orders.
func insightsQuestions(t *testing.T, f query.Filter) map[string]query.Insights {
	t.Helper()
	every := []query.Measure{
		{Function: query.CountEvents},
		{Function: query.CountErrors},
		{Function: query.ErrorRate},
		{Function: query.CountConversations},
	}
	for _, key := range []string{"", "n", "seats", "ratio", "a<b>&c", "big", "none"} {
		every = append(every, query.Measure{Function: query.Sum, MetadataKey: key}, query.Measure{Function: query.Average, MetadataKey: key},
			query.Measure{Function: query.Minimum, MetadataKey: key}, query.Measure{Function: query.Maximum, MetadataKey: key},
			query.Measure{Function: query.Quantile, MetadataKey: key, Level: 0.95}, query.Measure{Function: query.Quantile, MetadataKey: key, Level: 0.333})
	}
	zone, err := time.LoadLocation("Asia/Kolkata")
	if err != nil {
		t.Fatal(err)
	}
	buckets := func(unit query.Unit, count int64) []int64 {
		starts, _, ok := query.Interval{Unit: unit, Count: count}.Buckets(f.SinceMicros, min(f.UntilMicros, clickhousetest.At(t, "2026-12-01T00:00:00Z")), zone, 10_000)
		if !ok {
			t.Fatal("too many buckets")
		}
		return starts
	}
	of := func(key string) query.Group { return query.Group{By: query.ByMetadata, MetadataKey: key} }
	questions := map[string]query.Insights{
		"all":             {},
		"event names":     {GroupBy: []query.Group{{By: query.ByEventName}}, Descending: true},
		"conversations":   {GroupBy: []query.Group{{By: query.ByConversation}}, OrderBy: 6, LimitRows: 3},
		"plans":           {GroupBy: []query.Group{of("plan")}, OrderBy: 4, Descending: true},
		"numbers":         {GroupBy: []query.Group{of("n")}, Descending: true, OrderBy: 17},
		"escaped":         {GroupBy: []query.Group{of(`text \`), of("it's"), of(`say "7"`)}},
		"objects":         {GroupBy: []query.Group{of("nested"), {By: query.ByEventName}, of("beta")}, OrderBy: 8, LimitRows: 7},
		"no such member":  {GroupBy: []query.Group{of("none")}},
		"days":            {BucketSeconds: buckets(query.Day, 1), OrderBy: query.OrderByTime},
		"weeks of plans":  {BucketSeconds: buckets(query.Week, 1), GroupBy: []query.Group{of("plan")}, OrderBy: query.OrderByTime, Descending: true, LimitRows: 20},
		"conversations/h": {BucketSeconds: buckets(query.Hour, 6), GroupBy: []query.Group{{By: query.ByEventName}, {By: query.ByConversation}}, OrderBy: 0, Descending: true, LimitRows: 50},
	}
	for name, q := range questions {
		q.Filter, q.Measures, q.LimitRows = f, every, cmp.Or(q.LimitRows, 1000)
		// It bounds the answer, not the states that shards send.
		q.BytesMax = 2000 * q.LimitRows
		questions[name] = q
	}
	return questions
}

// checkInsights asks all questions, or the chosen ones.
func (w *world) checkInsights(t *testing.T, store *clickhouse.Store, f query.Filter, chosen ...string) {
	for name, q := range insightsQuestions(t, f) {
		if len(chosen) > 0 && !slices.Contains(chosen, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			got, err := store.Insights(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(w.insights(q), got, equateNumbers); diff != "" {
				t.Error("rows (-want +got):\n" + diff)
			}
		})
	}
}

// An answer that is larger than its bound is refused, and one with the most buckets is not.
func TestInsightsBounds(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	var rows event.Rows
	first := clickhousetest.At(t, "2026-03-01T00:00:00Z")
	for i := range 40 {
		position, version := clickhousetest.Created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{
			ID: event.NewID(first+int64(i)*1_000_000, "c"), ConversationID: "c", EventName: "event_a", Created: position, Version: version,
			Metadata: fmt.Sprintf(`{"user":"%02d%s"}`, i, strings.Repeat("x", 10_000)),
		})
	}
	clickhousetest.Insert(t, store, rows)
	q := query.Insights{
		Filter:    query.Filter{SinceMicros: first, UntilMicros: first + 10_000*1_000_000},
		Measures:  []query.Measure{{Function: query.CountEvents}},
		GroupBy:   []query.Group{{By: query.ByMetadata, MetadataKey: "user"}},
		LimitRows: 100, BytesMax: 100 * 1000,
	}
	if got, err := store.Insights(t.Context(), q); !errors.Is(err, event.ErrQueryTooLarge) {
		t.Errorf("an answer of 400 KB: %d rows, %v", len(got), err)
	}
	q.BytesMax *= 10
	if got, err := store.Insights(t.Context(), q); err != nil || len(got) != 40 {
		t.Errorf("%d rows, %v", len(got), err)
	}
	q.GroupBy = nil
	for i := range 10_000 {
		q.BucketSeconds = append(q.BucketSeconds, first/1_000_000+int64(i))
	}
	if got, err := store.Insights(t.Context(), q); err != nil || len(got) != 40 || got[39].Micros != first+39*1_000_000 {
		t.Errorf("%d buckets, %v", len(got), err)
	}
	q.Measures = []query.Measure{{Function: query.Quantile, Level: 1}}
	if _, err := store.Insights(t.Context(), q); err == nil {
		t.Error("the quantile 1 is not refused")
	}
}

// A number is that of the member itself, wherever the metadata has text that looks like it.
func TestInsightsReadTheMemberItself(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	first := clickhousetest.At(t, "2026-03-01T00:00:00Z")
	w := &world{live: make(map[event.ID]*event.Event)}
	var rows event.Rows
	for i, metadata := range []string{
		`{"x":{"n":2.5},"n":0.3}`, `{"x":{"n":2.5}}`, `{"x":"\"n\":7.25","n":0.1}`, `{"n":"0.3"}`, `{"n":[0.3]}`, `{"m":0.7,"n":1.5e-7}`, `{"\u006e":0.3}`, `{"x":{"n":1},"\u006e":-12.75}`,
		`{"n":123456789.123456789}`, `{"n":0.30000000000000004}`, `{"n":1e308}`, `{"n":5e-324}`, `{"n":1.0}`, `{"n":1}`, `{"n":true}`, `{"n":"\u0000\u001f\u007f\ud83d\ude00</é"}`, ``,
	} {
		position, version := clickhousetest.Created(int64(i))
		id := event.NewID(first+int64(i), "c")
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "c", EventName: "event_a", Metadata: metadata, Created: position, Version: version})
		w.live[id] = &event.Event{ConversationID: "c", EventName: "event_a", Metadata: metadata, Micros: first + int64(i)}
	}
	clickhousetest.Insert(t, store, rows)
	q := query.Insights{
		Filter:   query.Filter{UntilMicros: query.MicrosMax, Metadata: []query.MetadataFilter{{Key: "n", Op: query.NotEqual, Value: "1e308"}}},
		Measures: []query.Measure{{}, {Function: query.Sum, MetadataKey: "n"}, {Function: query.Minimum, MetadataKey: "n"}, {Function: query.Quantile, MetadataKey: "n", Level: 0.5}},
	}
	for _, groups := range [][]query.Group{nil, {{By: query.ByMetadata, MetadataKey: "n"}}} {
		q.GroupBy, q.LimitRows = groups, 100
		got, err := store.Insights(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		want := w.insights(q)
		for _, rows := range [][]query.InsightsRow{want, got} { // the text of strings and of floats may be written in several ways
			for _, row := range rows {
				for i, group := range row.Groups {
					var value any
					if err := json.Unmarshal([]byte(group), &value); err != nil {
						t.Fatalf("%q: %v", group, err)
					}
					row.Groups[i] = fmt.Sprintf("%#v", value)
				}
			}
			slices.SortFunc(rows, func(a, b query.InsightsRow) int { return slices.Compare(a.Groups, b.Groups) })
		}
		if diff := gocmp.Diff(want, got, equateNumbers); diff != "" {
			t.Error("rows (-want +got):\n" + diff)
		}
	}
}
