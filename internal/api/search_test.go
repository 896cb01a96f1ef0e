package api_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

func search(t *testing.T, h *harness, body string) answer {
	t.Helper()
	return h.do(t, "POST", "/search", body, "Content-Type", "application/json")
}

func TestSearchText(t *testing.T) {
	h := newHarness(t)
	search(t, h, `{"text":"Refund \"not now\"","field":"input","limit":3,"filter":{"since":"1h","event_name":["b","a"],"error":true,"latency_min":1.5,
		"metadata.n>":9007199254740993,"metadata.m>=":"x","metadata.plan":"pro","metadata.k!=":1,"metadata.e.exists":false,"conversation_id":"c"}}`).
		expect(t, 200, `{"results":[],"next_cursor":null}`)
	want := query.TextSearch{
		Filter: query.Filter{
			SinceMicros: micros(now.Add(-time.Hour)), UntilMicros: query.MicrosMax, ConversationID: "c", EventNames: []string{"a", "b"},
			Errors: query.WithError, LatencyMin: new(1.5),
			Metadata: []query.MetadataFilter{
				{Key: "e", Op: query.Missing},
				{Key: "k", Op: query.NotEqual, Value: "1"},
				{Key: "m", Op: query.GreaterOrEqual, Value: "x"},
				{Key: "n", Op: query.Greater, Value: "9007199254740993"},
				{Key: "plan", Value: "pro"},
			},
		},
		Text:        fulltext.Query{Phrases: [][]string{{"refund"}, {"not", "now"}}},
		Fields:      query.SearchFields{Input: true},
		LimitEvents: 3,
	}
	if diff := cmp.Diff(want, h.last(t)); diff != "" {
		t.Error(diff)
	}
	next := event.NewID(now.UnixMicro(), "c")
	h.byText = query.Hits{Next: &next, Hits: []query.Hit{{
		Event: *stored(), Score: 1,
		Highlights: []query.Highlight{{Field: "input", Text: "a refund\xff, or two", Spans: []fulltext.Span{{Start: 2, End: 8}, {Start: 14, End: 17}}}},
	}}}
	a := search(t, h, `{"text":"refund"}`)
	a.expect(t, 200, "")
	var got struct {
		Results []struct {
			Event      map[string]any
			Score      float64
			Highlights []struct {
				Field     string
				Fragments []struct {
					Text  string
					Match bool
				}
			}
		}
		NextCursor string `json:"next_cursor"`
	}
	decode(t, a.body, &got)
	text := ""
	for _, f := range got.Results[0].Highlights[0].Fragments {
		if f.Match {
			text += "[" + f.Text + "]"
		} else {
			text += f.Text
		}
	}
	if text != "a [refund]\uFFFD, or [two]" {
		t.Errorf("highlight %q", text)
	}
	search(t, h, `{"limit":7,"cursor":"`+got.NextCursor+`","text":"refund"}`).expect(t, 200, "")
	if q := h.last(t).(query.TextSearch); q.After == nil || *q.After != next || q.LimitEvents != 7 {
		t.Errorf("the next page asked for %+v", q)
	}
	search(t, h, `{"text":"refunds","cursor":"`+got.NextCursor+`"}`).problem(t, 422, "invalid_value", "cursor")
}

func TestSearchSimilar(t *testing.T) {
	h := newHarness(t)
	search(t, h, `{"vector":[0.5,-1],"field":"output"}`).expect(t, 200, "")
	everything := query.Filter{UntilMicros: query.MicrosMax}
	if diff := cmp.Diff(query.SimilarSearch{Filter: everything, Vector: []float32{0.5, -1}, Output: true, LimitEvents: 10}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	search(t, h, `{"vector":[0.5,-1],"exact":true}`).expect(t, 200, "")
	if diff := cmp.Diff(query.SimilarSearch{Filter: everything, Vector: []float32{0.5, -1}, Input: true, Output: true, Exact: true, LimitEvents: 10}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	search(t, h, `{"vector":[1],"exact":1}`).problem(t, 400, "invalid_type", "exact")
	search(t, h, `{"text":"refund","exact":false}`).problem(t, 422, "invalid_value", "exact")
	h.event = stored()
	search(t, h, `{"like":"a"}`).expect(t, 200, "")
	want := query.SimilarSearch{Filter: everything, Vector: []float32{0.5, -1}, Input: true, Except: event.Ref{Alias: "a"}, LimitEvents: 10}
	if diff := cmp.Diff(want, h.last(t)); diff != "" {
		t.Error(diff)
	}
	h.event.InputEmbeddings, h.event.OutputEmbeddings = event.VectorOf(0, float32(math.Copysign(0, -1))), event.VectorOf(1, 0)
	search(t, h, `{"like":"a"}`).problem(t, 422, "invalid_value", "like")
	search(t, h, `{"like":"a","field":"input","text":"refund"}`).problem(t, 422, "invalid_value", "like")
	if q := h.last(t); q != any(event.Ref{Alias: "a"}) { // the event is read, and nothing is searched for
		t.Errorf("a zero vector was searched for: %+v", q)
	}
	search(t, h, `{"like":"a","field":"output"}`).expect(t, 200, "")
	h.event.InputEmbeddings, h.event.OutputEmbeddings = nil, nil
	search(t, h, `{"like":"a"}`).problem(t, 422, "invalid_value", "like")
	h.event = nil
	search(t, h, `{"like":"a"}`).problem(t, 404, "unknown_event", "like")
}

// TestSearchBoth fuses the ranks of two searches.
func TestSearchBoth(t *testing.T) {
	h := newHarness(t)
	hit := func(id string) query.Hit {
		e := *stored()
		e.ID = id
		return query.Hit{Event: e, Score: 0.9}
	}
	h.byText = query.Hits{Hits: []query.Hit{hit("t1"), hit("both"), hit("t3")}}
	h.bySimilarity = query.Hits{Hits: []query.Hit{hit("s1"), hit("s2"), hit("both")}}
	a := search(t, h, `{"text":"x","vector":[1],"limit":3}`)
	var got struct {
		Results []struct {
			Event struct{ ID string }
			Score float64
		}
	}
	decode(t, a.body, &got)
	var ids []string
	for _, r := range got.Results {
		ids = append(ids, r.Event.ID)
	}
	if diff := cmp.Diff([]string{"both", "t1", "s1"}, ids); diff != "" {
		t.Error(diff)
	}
	if want := 1.0/62 + 1.0/63; got.Results[0].Score != want {
		t.Errorf("score %v, want %v", got.Results[0].Score, want)
	}
}

// TestSearchTakesTooLong tells the caller to narrow a search, or a list, whose time is over.
func TestSearchTakesTooLong(t *testing.T) {
	for _, err := range []error{event.ErrQueryTimeout, context.DeadlineExceeded} {
		h := newHarness(t)
		h.queryErr = fmt.Errorf("search: %w", err)
		search(t, h, `{"text":"x"}`).problem(t, 422, "query_timeout", "")
		h.do(t, "GET", "/events", "").problem(t, 422, "query_timeout", "")
	}
}

func TestRefusedSearches(t *testing.T) {
	for _, tt := range []struct {
		body   string
		status int
		code   event.Code
		field  string
	}{
		{`{}`, 422, "required", "text"},
		{`{"text":""}`, 422, "invalid_value", "text"},
		{`{"text":"?! —"}`, 422, "invalid_value", "text"},
		{`{"text":5}`, 400, "invalid_type", "text"},
		{`{"text":"x","text":"y"}`, 400, "duplicate_field", ""},
		{`{"text":"x"`, 400, "invalid_json", ""},
		{`{"text":"x","q":1}`, 400, "unknown_field", "q"},
		{`{"text":"x","limit":0}`, 422, "invalid_value", "limit"},
		{`{"text":"x","limit":101}`, 422, "invalid_value", "limit"},
		{`{"text":"x","limit":1.5}`, 400, "invalid_type", "limit"},
		{`{"text":"x","field":"both"}`, 422, "invalid_value", "field"},
		{`{"vector":[1],"field":"error"}`, 422, "invalid_value", "field"},
		{`{"vector":[]}`, 422, "invalid_value", "vector"},
		{`{"vector":[0,0]}`, 422, "invalid_value", "vector"},
		{`{"vector":[1e39]}`, 422, "invalid_value", "vector"},
		{`{"vector":["a"]}`, 400, "invalid_type", "vector.0"},
		{`{"vector":[1,null]}`, 400, "invalid_type", "vector.1"},
		{`{"vector":[null,1]}`, 400, "invalid_type", "vector.0"},
		{`{"vector":[1,2,[3]]}`, 400, "invalid_type", "vector.2"},
		{`{"vector":[1,2,"a"],"text":"x"}`, 400, "invalid_type", "vector.2"},
		{`{"text":"x","vector":[1,}`, 400, "invalid_json", ""},
		{`{"text":"x","vector":[1,1e400]}`, 400, "invalid_type", "vector.1"},
		{`{"vector":[1],"like":"a"}`, 422, "invalid_value", "like"},
		{`{"like":""}`, 422, "invalid_value", "like"},
		{`{"text":"x","cursor":"AAAA"}`, 422, "invalid_value", "cursor"},
		{`{"text":"x","filter":{"since":"yesterday"}}`, 422, "invalid_value", "filter.since"},
		{`{"text":"x","filter":{"user":"a"}}`, 400, "unknown_field", "filter.user"},
		{`{"text":"x","filter":{"error":null}}`, 400, "invalid_type", "filter.error"},
		{`{"text":"x","filter":{"metadata.plan!=":["a",null]}}`, 400, "invalid_type", "filter.metadata.plan!="},
		{`{"text":"x","filter":{"error":1}}`, 422, "invalid_value", "filter.error"},
		{`{"text":"x","filter":{"event_name":[]}}`, 422, "invalid_value", "filter.event_name"},
		{`{"text":"x","filter":{"error":[]}}`, 422, "invalid_value", "filter.error"},
		{`{"text":"x","filter":{"metadata.a!=":[]}}`, 422, "invalid_value", "filter.metadata.a!="},
		{`{"text":"x","filter":{"metadata.":"a"}}`, 422, "invalid_value", "filter.metadata."},
		{`{"text":"x","filter":[]}`, 400, "invalid_type", "filter"},
	} {
		t.Run(tt.body, func(t *testing.T) {
			h := newHarness(t)
			search(t, h, tt.body).problem(t, tt.status, tt.code, tt.field)
			if len(h.asked) > 0 {
				t.Error("asked for something")
			}
		})
	}
}
