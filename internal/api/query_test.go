package api_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func stored() *event.Event {
	latency := 12.5
	return &event.Event{
		ID: "a", ConversationID: "c1", EventName: "event_a", Micros: now.UnixMicro() + 1,
		Metadata: `{"plan":"pro"}`, Error: "e", Latency: &latency,
		Input: event.Content{Kind: event.KindString, Data: []byte("hi")}, Output: event.Content{Kind: event.KindJSON, Data: []byte(`[1]`)},
		InputEmbeddings: event.VectorOf(0.5, -1),
	}
}

func TestGetEvent(t *testing.T) {
	h := newHarness(t)
	h.do(t, "GET", "/event/a", "").problem(t, 404, "unknown_event", "id")
	h.event = stored()
	a := h.do(t, "GET", "/event/a", "")
	a.expect(t, 200, `{"id":"a","conversation_id":"c1","conversation_metadata":{"plan":"pro"},"event_name":"event_a",`+
		`"timestamp":"2026-06-01T12:00:00.000001Z","error":"e","latency":12.5,"input":"hi","output":[1],`+
		`"input_embeddings":[0.5,-1],"output_embeddings":null}`)
	if diff := cmp.Diff(event.Ref{Alias: "a"}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	id := event.NewID(now.UnixMicro(), "c1")
	h.do(t, "GET", "/event/"+id.String(), "").expect(t, 200, "")
	if diff := cmp.Diff(event.Ref{ID: id}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	h.do(t, "GET", "/event/"+id.AsInternal().String(), "").problem(t, 422, "invalid_value", "id")
	h.do(t, "GET", "/event?id="+id.String(), "").expect(t, 200, "")
	if diff := cmp.Diff(event.Ref{ID: id}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	h.do(t, "GET", "/event", "").problem(t, 422, "required", "id")
	h.do(t, "GET", "/event?id=", "").problem(t, 422, "required", "id")
	h.do(t, "GET", "/event?id=a&id=a", "").problem(t, 422, "invalid_value", "id")
	h.do(t, "GET", "/event?id=%C3%A9", "").problem(t, 422, "invalid_value", "id")
	h.do(t, "GET", "/event?id=a&embeddings=true", "").problem(t, 400, "unknown_field", "embeddings")
	h.do(t, "GET", "/event/a?id=a", "").problem(t, 400, "unknown_field", "id")
	h.do(t, "GET", "/event/a?embeddings=true", "").problem(t, 400, "unknown_field", "embeddings")
	h.do(t, "GET", "/event/a?after=x", "").problem(t, 422, "invalid_value", "after")
	h.do(t, "GET", "/event/a?"+strings.Repeat("after=1.1.1&", 101), "").problem(t, 413, "too_large", "after")
	h.do(t, "GET", "/event/a?a;b", "").problem(t, 400, "invalid_request", "")
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", a.header)
	}
}

func TestListConversation(t *testing.T) {
	h := newHarness(t)
	a := h.do(t, "GET", "/conversations/c%2F1/events", "")
	a.expect(t, 200, `{"events":[],"next_cursor":null}`)
	if diff := cmp.Diff(query.List{Filter: query.OfConversation("c/1"), LimitEvents: 100}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	for _, id := range []string{"/", "//", ".", "..", "%2F"} {
		target := "/conversations/" + strings.NewReplacer("%", "%25", "/", "%2f", ".", "%2E").Replace(id) + "/events"
		serve(h, request("GET", target, "")).expect(t, 200, `{"events":[],"next_cursor":null}`)
		if diff := cmp.Diff(query.List{Filter: query.OfConversation(id), LimitEvents: 100}, h.last(t)); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
		h.do(t, "GET", "/conversation/events?limit=7&id="+url.QueryEscape(id), "").expect(t, 200, "")
		if diff := cmp.Diff(query.List{Filter: query.OfConversation(id), LimitEvents: 7}, h.last(t)); diff != "" {
			t.Errorf("%s as a parameter: %s", id, diff)
		}
	}
	next := event.NewID(now.UnixMicro(), "c/1")
	h.page = query.Page{Events: []event.Event{*stored(), *stored()}, Next: &next}
	a = h.do(t, "GET", "/conversations/c%2F1/events?limit=2&embeddings=true", "")
	a.expect(t, 200, "")
	if n := strings.Count(a.body, `"input_embeddings":[0.5,-1]`); n != 2 {
		t.Errorf("%d embeddings in %s", n, a.body)
	}
	var got struct {
		NextCursor string `json:"next_cursor"`
	}
	decode(t, a.body, &got)
	a = h.do(t, "GET", "/conversations/c%2F1/events?embeddings=false&cursor="+got.NextCursor, "")
	a.expect(t, 200, "")
	if strings.Contains(a.body, "embeddings") {
		t.Errorf("embeddings in %s", a.body)
	}
	if diff := cmp.Diff(query.List{Filter: query.OfConversation("c/1"), LimitEvents: 100, After: &next}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	changed := base64.RawURLEncoding.EncodeToString(append(next[:], "12345678"...))
	for _, tt := range []struct {
		target string
		status int
		code   event.Code
		field  string
	}{
		{"/conversations/other/events?cursor=" + got.NextCursor, 422, "invalid_value", "cursor"},
		{"/conversations/c%2F1/events?cursor=" + changed, 422, "invalid_value", "cursor"},
		{"/conversations/c%2F1/events?cursor=" + got.NextCursor + "AA", 422, "invalid_value", "cursor"},
		{"/conversations/c%2F1/events?cursor=", 422, "invalid_value", "cursor"},
		{"/conversations/c%2F1/events?cursor=***", 422, "invalid_value", "cursor"},
		{"/conversations/c/events?limit=0", 422, "invalid_value", "limit"},
		{"/conversations/c/events?limit=1001", 422, "invalid_value", "limit"},
		{"/conversations/c/events?limit=-1", 422, "invalid_value", "limit"},
		{"/conversations/c/events?limit=ten", 422, "invalid_value", "limit"},
		{"/conversations/c/events?limit=1&limit=2", 422, "invalid_value", "limit"},
		{"/conversations/c/events?embeddings=1", 422, "invalid_value", "embeddings"},
		{"/conversations/c/events?offset=1", 400, "unknown_field", "offset"},
		{"/conversations/" + strings.Repeat("x", 257) + "/events", 413, "too_large", "conversation_id"},
		{"/conversations/%ff/events", 422, "invalid_value", "conversation_id"},
		{"/conversation/events", 422, "required", "id"},
		{"/conversation/events?id=", 422, "required", "id"},
		{"/conversation/events?id=%ff", 422, "invalid_value", "conversation_id"},
		{"/conversation/events?id=c&offset=1", 400, "unknown_field", "offset"},
	} {
		t.Run(tt.target, func(t *testing.T) {
			h.do(t, "GET", tt.target, "").problem(t, tt.status, tt.code, tt.field)
		})
	}
}

func TestListEvents(t *testing.T) {
	h := newHarness(t)
	everything := query.Filter{UntilMicros: query.MicrosMax}
	h.do(t, "GET", "/events", "").expect(t, 200, `{"events":[],"next_cursor":null}`)
	if diff := cmp.Diff(query.List{Filter: everything, Newest: true, LimitEvents: 100}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	next := event.NewID(now.UnixMicro(), "c")
	h.page = query.Page{Events: []event.Event{*stored()}, Next: &next}
	a := h.do(t, "GET", "/events?order=timestamp&error=true&since=1h&conversation_id=c&limit=1", "")
	a.expect(t, 200, "")
	var got struct {
		Events     []map[string]any `json:"events"`
		NextCursor string           `json:"next_cursor"`
	}
	decode(t, a.body, &got)
	want := query.List{
		Filter:      query.Filter{SinceMicros: micros(now.Add(-time.Hour)), UntilMicros: query.MicrosMax, ConversationID: "c", Errors: query.WithError},
		LimitEvents: 1,
	}
	if diff := cmp.Diff(want, h.last(t)); diff != "" || len(got.Events) != 1 {
		t.Errorf("%d events, %s", len(got.Events), diff)
	}
	// The order of the parameters, the limit and the embeddings may change from page to page.
	h.do(t, "GET", "/events?since=1h&conversation_id=c&error=true&order=timestamp&embeddings=true&limit=7&cursor="+got.NextCursor, "").expect(t, 200, "")
	want.After, want.LimitEvents, want.WithEmbeddings = &next, 7, true
	if diff := cmp.Diff(want, h.last(t)); diff != "" {
		t.Error(diff)
	}
	for target, field := range map[string]string{
		"/events?order=timestamp&error=false&since=1h&conversation_id=c&cursor=" + got.NextCursor: "cursor",
		"/events?error=true&since=1h&conversation_id=c&cursor=" + got.NextCursor:                  "cursor",
		"/events?order=newest": "order",
		"/events?limit=1001":   "limit",
		"/events?since=2026-06-01T00:00:00Z&until=2026-05-01T00:00:00Z": "since",
		"/conversations/c/events?order=latency":                         "order",
	} {
		h.do(t, "GET", target, "").problem(t, 422, "invalid_value", field)
	}
	for target, field := range map[string]string{
		"/events?id=a": "id", "/events?q=0.5": "q", "/conversations/c/events?conversation_id=c": "conversation_id",
	} {
		h.do(t, "GET", target, "").problem(t, 400, "unknown_field", field)
	}
	h.page = query.Page{}
	h.do(t, "GET", "/conversations/c/events?order=-timestamp&event_name=x&latency_max=9", "").expect(t, 200, "")
	filtered := query.OfConversation("c")
	filtered.EventNames, filtered.LatencyMax = []string{"x"}, new(9.0)
	if diff := cmp.Diff(query.List{Filter: filtered, Newest: true, LimitEvents: 100}, h.last(t)); diff != "" {
		t.Error(diff)
	}
}

func TestListConversations(t *testing.T) {
	h := newHarness(t)
	h.do(t, "GET", "/conversations", "").expect(t, 200, `{"conversations":[],"next_cursor":null}`)
	if diff := cmp.Diff(query.ConversationList{Filter: query.Filter{UntilMicros: query.MicrosMax}, LimitRows: 51, PreviewChars: 200}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	h.summaries = []query.ConversationSummary{
		{ConversationID: "c\"1", ErrorCount: query.ErrorCount{Events: 4, Errors: 1}, FirstMicros: 1, LastMicros: micros(now), EventNames: []string{"a", "b"}, FirstInput: "h\xff", LastOutput: "é"},
		{ConversationID: "c2", ErrorCount: query.ErrorCount{Events: 1}},
	}
	a := h.do(t, "GET", "/conversations?limit=1&error=true", "")
	var got struct {
		NextCursor string `json:"next_cursor"`
	}
	decode(t, a.body, &got)
	a.expect(t, 200, `{"conversations":[{"conversation_id":"c\"1","first":"1970-01-01T00:00:00.000001Z","last":"`+now.UTC().Format(time.RFC3339Nano)+
		`","events":4,"errors":1,"error_rate":0.25,"event_names":["a","b"],"first_input":"h�","last_output":"é"}],"next_cursor":"`+got.NextCursor+`"}`)
	h.do(t, "GET", "/conversations?error=true&cursor="+got.NextCursor, "").expect(t, 200, "")
	if q := h.last(t).(query.ConversationList); q.After == nil || *q.After != (query.ConversationPlace{LastMicros: micros(now), ConversationID: "c\"1"}) {
		t.Errorf("after %v", q.After)
	}
	for _, target := range []string{
		"/conversations?error=false&cursor=" + got.NextCursor, "/conversations?error=true&cursor=A" + got.NextCursor, "/conversations?error=true&cursor=AAAA", "/conversations?cursor=",
	} {
		h.do(t, "GET", target, "").problem(t, 422, "invalid_value", "cursor")
	}
	h.do(t, "GET", "/conversations?limit=1001", "").problem(t, 422, "invalid_value", "limit")
}

const week = 7 * 24 * time.Hour

func micros(t time.Time) int64 { return t.UnixMicro() }

func TestFilters(t *testing.T) {
	for _, tt := range []struct {
		query string
		want  query.Filter
	}{
		{"", query.Filter{SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now)}},
		{"since=30m", query.Filter{SinceMicros: micros(now.Add(-30 * time.Minute)), UntilMicros: micros(now)}},
		{"since=24h&until=90s", query.Filter{SinceMicros: micros(now.Add(-24 * time.Hour)), UntilMicros: micros(now.Add(-90 * time.Second))}},
		{"since=2d", query.Filter{SinceMicros: micros(now.Add(-48 * time.Hour)), UntilMicros: micros(now)}},
		{"since=100000d", query.Filter{SinceMicros: 0, UntilMicros: micros(now)}},
		{"since=1700000000000&until=1700000000001", query.Filter{SinceMicros: 1700000000000000, UntilMicros: 1700000000001000}},
		{"since=2026-05-01T00:00:00.000001Z", query.Filter{SinceMicros: micros(time.Date(2026, 5, 1, 0, 0, 0, 1000, time.UTC)), UntilMicros: micros(now)}},
		{"since=2026-05-01T02:00:00%2B02:00", query.Filter{SinceMicros: micros(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)), UntilMicros: micros(now)}},
		{"since=2026-05-01T02:00:00+02:00", query.Filter{SinceMicros: micros(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)), UntilMicros: micros(now)}},
		{"since=2026-05-01t02:00:00.5z", query.Filter{SinceMicros: micros(time.Date(2026, 5, 1, 2, 0, 0, 500_000_000, time.UTC)), UntilMicros: micros(now)}},
		{"since=2026-05-01t02:00:00.1234567-01:30", query.Filter{SinceMicros: micros(time.Date(2026, 5, 1, 3, 30, 0, 123_456_000, time.UTC)), UntilMicros: micros(now)}},
		{"since=0", query.Filter{SinceMicros: 0, UntilMicros: micros(now)}},
		{"since=86400000", query.Filter{SinceMicros: 86400e6, UntilMicros: micros(now)}},
		{"until=2027-01-01T00:00:00Z", query.Filter{SinceMicros: micros(now.Add(-week)), UntilMicros: micros(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))}},
		{
			"conversation_id=c%201&event_name=event_x&metadata.b=2&metadata.a.b=&metadata.a=%27",
			query.Filter{
				SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now), ConversationID: "c 1", EventNames: []string{"event_x"},
				Metadata: []query.MetadataFilter{{Key: "a", Value: "'"}, {Key: "a.b", Value: ""}, {Key: "b", Value: "2"}},
			},
		},
		{
			"event_name=b&event_name=a&event_name=b&error=true&latency_min=0&latency_max=2.5e3",
			query.Filter{
				SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now), EventNames: []string{"a", "b"},
				Errors: query.WithError, LatencyMin: new(0.0), LatencyMax: new(2500.0),
			},
		},
		{"error=false", query.Filter{SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now), Errors: query.WithoutError}},
		{
			"metadata.a!=1&metadata.a!=2&metadata.b>1&metadata.c>=2&metadata.d<3&metadata.e%3C%3D4&metadata.f.exists=true&metadata.g.exists=false&metadata.h.exists=yes" +
				"&metadata.i%21%3Dx%3Dy&metadata.j%3E=5&metadata.k!x=6&metadata.l<m=7",
			query.Filter{
				SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now),
				Metadata: []query.MetadataFilter{
					{Key: "a", Op: query.NotEqual, Value: "1"},
					{Key: "a", Op: query.NotEqual, Value: "2"},
					{Key: "b", Op: query.Greater, Value: "1"},
					{Key: "c", Op: query.GreaterOrEqual, Value: "2"},
					{Key: "d", Op: query.Less, Value: "3"},
					{Key: "e", Op: query.LessOrEqual, Value: "4"},
					{Key: "f", Op: query.Exists},
					{Key: "g", Op: query.Missing},
					{Key: "h.exists", Value: "yes"},
					{Key: "i", Op: query.NotEqual, Value: "x=y"},
					{Key: "j", Op: query.GreaterOrEqual, Value: "5"},
					{Key: "k!x", Value: "6"},
					{Key: "l<m", Value: "7"},
				},
			},
		},
	} {
		t.Run(tt.query, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, "GET", "/analytics/errors?"+tt.query, "").expect(t, 200, "")
			if diff := cmp.Diff(tt.want, h.last(t)); diff != "" {
				t.Error(diff)
			}
			h.do(t, "GET", "/analytics/latency?"+tt.query, "").expect(t, 200, "")
			latency := query.Latency{Filter: tt.want, Quantiles: []float64{0.95}, ByConversation: true, ByEventName: true, LimitRows: 100}
			if diff := cmp.Diff(latency, h.last(t)); diff != "" {
				t.Error(diff)
			}
			h.do(t, "GET", "/analytics/conversations?"+tt.query, "").expect(t, 200, "")
			if diff := cmp.Diff(query.Conversations{Filter: tt.want, EventsMin: 1, LimitRows: 100}, h.last(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// vectorCondition is a condition of the shared vectors.
type vectorCondition struct {
	Name, Key, Op, Value string
	Parameter, Member    []string
	Refused              bool
}

func readVectors(t *testing.T, file string, v any) {
	t.Helper()
	text, err := os.ReadFile("../../sdk/spec/vectors/" + file)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, string(text), v)
}

// TestConditionsOfClients reads the conditions that the client libraries send. What they
// refuse to send as a parameter would be read as another condition.
func TestConditionsOfClients(t *testing.T) {
	var vectors struct{ Conditions []vectorCondition }
	readVectors(t, "filters.json", &vectors)
	if len(vectors.Conditions) == 0 {
		t.Fatal("no vectors")
	}
	ops := queryOps()
	h := newHarness(t)
	for _, v := range vectors.Conditions {
		op, ok := ops[v.Op]
		if !ok {
			t.Errorf("%s: no operator is named %q", v.Name, v.Op)
			continue
		}
		want := query.MetadataFilter{Key: v.Key, Op: op, Value: v.Value}
		if v.Member != nil {
			body, err := json.Marshal(map[string]any{"text": "a", "filter": map[string]string{v.Member[0]: v.Member[1]}})
			if err != nil {
				t.Fatal(err)
			}
			h.do(t, "POST", "/search", string(body), "Content-Type", "application/json").expect(t, 200, "")
			if diff := cmp.Diff([]query.MetadataFilter{want}, h.last(t).(query.TextSearch).Metadata); diff != "" {
				t.Errorf("%s, as a member: %s", v.Name, diff)
			}
		}
		if v.Refused {
			// This is how the condition would be sent.
			switch op {
			case query.Equal:
				v.Parameter = []string{"metadata." + v.Key, v.Value}
			case query.Exists:
				v.Parameter = []string{"metadata." + v.Key + ".exists", "true"}
			case query.Missing:
				v.Parameter = []string{"metadata." + v.Key + ".exists", "false"}
			case query.Less, query.Greater:
				v.Parameter = []string{"metadata." + v.Key + v.Op + v.Value, ""}
			case query.NotEqual, query.LessOrEqual, query.GreaterOrEqual:
				v.Parameter = []string{"metadata." + v.Key + v.Op, v.Value}
			}
		}
		a := serve(h, request("GET", "/events?"+url.Values{v.Parameter[0]: {v.Parameter[1]}}.Encode(), ""))
		if a.status != 200 {
			if !v.Refused {
				t.Errorf("%s: answered %d: %s", v.Name, a.status, a.body)
			}
			continue
		}
		if diff := cmp.Diff([]query.MetadataFilter{want}, h.last(t).(query.List).Metadata); (diff != "") != v.Refused {
			t.Errorf("%s: refused: %t: %s", v.Name, v.Refused, diff)
		}
	}
}

// TestReadsOfClients answers the reads that the client libraries send. The filters of a step
// are read as the same filters of the whole question would be.
func TestReadsOfClients(t *testing.T) {
	var vectors struct {
		Reads []struct {
			Name, Call   string
			Query        map[string]json.RawMessage
			Method, Path string
			Parameters   [][2]string
			Body         map[string]any
			Text         string
			Refused      string
		}
	}
	readVectors(t, "reads.json", &vectors)
	if len(vectors.Reads) == 0 {
		t.Fatal("no vectors")
	}
	h, sql := newSQLHarness(t)
	h.event = stored()
	h.event.OutputEmbeddings = h.event.InputEmbeddings
	sql.answer = sqlText("[\"a\"]\n[\"UInt8\"]\n[1]\n")
	for _, v := range vectors.Reads {
		if v.Refused != "" {
			continue
		}
		values := make(url.Values)
		for _, p := range v.Parameters {
			values.Add(p[0], p[1])
		}
		body, contentType := v.Text, "text/plain"
		if v.Body != nil {
			delete(v.Body, "cursor") // it is of no search
			text, err := json.Marshal(v.Body)
			if err != nil {
				t.Fatal(err)
			}
			body, contentType = string(text), "application/json"
		}
		target := v.Path
		if len(values) > 0 {
			target += "?" + values.Encode()
		}
		var headers []string
		if v.Method == "POST" {
			headers = []string{"Content-Type", contentType}
		}
		a := serve(h, request(v.Method, target, body, headers...))
		if a.status != 200 {
			t.Errorf("%s: answered %d: %s", v.Name, a.status, a.body)
			continue
		}
		switch v.Call {
		case "sql", "write_sql":
			if sql.asked.Text != v.Text {
				t.Errorf("%s: asked %q, want %q", v.Name, sql.asked.Text, v.Text)
			}
		case "funnel":
			var steps []json.RawMessage
			decode(t, string(v.Query["steps"]), &steps)
			q := h.last(t).(query.Funnel)
			for i, step := range steps {
				expectStep(t, v.Name, step, q.Steps[i])
			}
		case "retention":
			q := h.last(t).(query.Retention)
			expectStep(t, v.Name, v.Query["did"], q.Did)
			if returned, ok := v.Query["returned"]; ok {
				expectStep(t, v.Name, returned, q.Returned)
			}
		}
	}
}

// expectStep compares a step that was read with the caller's arguments.
func expectStep(t *testing.T, name string, arguments json.RawMessage, got query.Filter) {
	t.Helper()
	var step struct {
		EventName  string   `json:"event_name"`
		Error      *bool    `json:"error"`
		LatencyMin *float64 `json:"latency_min"`
		LatencyMax *float64 `json:"latency_max"`
		Metadata   map[string]string
		Conditions []vectorCondition
	}
	if arguments[0] == '"' {
		decode(t, string(arguments), &step.EventName)
	} else {
		decode(t, string(arguments), &step)
	}
	want := query.Filter{EventNames: []string{step.EventName}, LatencyMin: step.LatencyMin, LatencyMax: step.LatencyMax}
	if step.Error != nil {
		want.Errors = query.WithoutError
		if *step.Error {
			want.Errors = query.WithError
		}
	}
	for key, value := range step.Metadata {
		want.Metadata = append(want.Metadata, query.MetadataFilter{Key: key, Value: value})
	}
	for _, c := range step.Conditions {
		want.Metadata = append(want.Metadata, query.MetadataFilter{Key: c.Key, Op: queryOps()[c.Op], Value: c.Value})
	}
	byText := cmpopts.SortSlices(func(a, b query.MetadataFilter) bool { return fmt.Sprint(a) < fmt.Sprint(b) })
	if diff := cmp.Diff(want, got, byText); diff != "" {
		t.Errorf("%s: the step %s: %s", name, arguments, diff)
	}
}

// queryOps are the comparisons by the names that clients have for them.
func queryOps() map[string]query.Op {
	return map[string]query.Op{
		"=": query.Equal, "!=": query.NotEqual, "<": query.Less, "<=": query.LessOrEqual, ">": query.Greater, ">=": query.GreaterOrEqual,
		"exists": query.Exists, "missing": query.Missing,
	}
}

// TestTimesInOtherUnits tells callers whose times are not in milliseconds, which
// would else be answered about 1970.
func TestTimesInOtherUnits(t *testing.T) {
	h := newHarness(t)
	for value, hint := range map[string]string{
		"1769600000": "is it in seconds?", "1769600000.25": "is it in seconds?",
		"1769600000000000": "is it in microseconds?", "1769600000000000000": "is it in nanoseconds?",
	} {
		a := h.do(t, "GET", "/analytics/errors?since="+value, "")
		a.problem(t, 422, "invalid_value", "since")
		if !strings.Contains(a.body, hint) {
			t.Errorf("since=%s: %s", value, a.body)
		}
	}
}

func TestRefusedQueries(t *testing.T) {
	many := func(format string, n int) string {
		var parts []string
		for i := range n {
			parts = append(parts, strings.ReplaceAll(format, "%", string(rune('a'+i/26))+string(rune('a'+i%26))))
		}
		return strings.Join(parts, "&")
	}
	for _, tt := range []struct {
		target string
		status int
		code   event.Code
		field  string
	}{
		{"errors?since=yesterday", 422, "invalid_value", "since"},
		{"errors?since=", 422, "invalid_value", "since"},
		{"errors?since=d", 422, "invalid_value", "since"},
		{"errors?since=-1d", 422, "invalid_value", "since"},
		{"errors?since=1w", 422, "invalid_value", "since"},
		{"errors?since=99999999999999999999d", 422, "invalid_value", "since"},
		{"errors?since=999999999999999999", 422, "invalid_value", "since"},
		{"errors?until=0000-01-01T00:00:00Z", 422, "invalid_value", "until"},
		{"errors?since=1769600000", 422, "invalid_value", "since"},
		{"errors?until=1769600000.25", 422, "invalid_value", "until"},
		{"errors?since=2026-05-01T02:00:00,5Z", 422, "invalid_value", "since"},
		{"errors?since=2026-05-01T2:00:00Z", 422, "invalid_value", "since"},
		{"errors?since=2026-05-01T02:00:00%2B24:00", 422, "invalid_value", "since"},
		{"errors?since=2026-05-01+02:00:00Z", 422, "invalid_value", "since"},
		{"errors?since=1h&until=1h", 422, "invalid_value", "since"},
		{"errors?since=1h&until=2h", 422, "invalid_value", "since"},
		{"errors?since=1h&since=2h", 422, "invalid_value", "since"},
		{"errors?event_name=", 422, "invalid_value", "event_name"},
		{"errors?event_name=" + strings.Repeat("x", 129), 413, "too_large", "event_name"},
		{"errors?conversation_id=" + strings.Repeat("x", 257), 413, "too_large", "conversation_id"},
		{"errors?conversation_id=a&conversation_id=b", 422, "invalid_value", "conversation_id"},
		{"errors?" + strings.Repeat("event_name=x&", 101), 413, "too_large", "event_name"},
		{"errors?error=1", 422, "invalid_value", "error"},
		{"errors?latency_min=-1", 422, "invalid_value", "latency_min"},
		{"errors?latency_max=NaN", 422, "invalid_value", "latency_max"},
		{"errors?latency_max=1e999", 422, "invalid_value", "latency_max"},
		{"errors?latency_min=2&latency_max=1", 422, "invalid_value", "latency_min"},
		{"errors?metadata.=x", 422, "invalid_value", "metadata."},
		{"errors?metadata.!=x", 422, "invalid_value", "metadata.!"},
		{"errors?metadata.>5", 422, "invalid_value", "metadata.>5"},
		{"errors?metadata.a>=5&metadata.a>=6", 422, "invalid_value", "metadata.a>"},
		{"errors?metadata.plan%00x=pro", 422, "invalid_value", "metadata.plan\x00x"},
		{"errors?metadata.a=x&metadata.a=y", 422, "invalid_value", "metadata.a"},
		{"errors?" + many("metadata.%=x", 17), 413, "too_large", "metadata"},
		{"errors?limit=1", 400, "unknown_field", "limit"},
		{"errors?z=1&b=2&y=3", 400, "unknown_field", "b"},
		{"latency?q=1", 422, "invalid_value", "q"},
		{"latency?q=0", 422, "invalid_value", "q"},
		{"latency?q=NaN", 422, "invalid_value", "q"},
		{"latency?q=", 422, "invalid_value", "q"},
		{"latency?q=0.5&q=0.50", 422, "invalid_value", "q"},
		{"latency?" + strings.Repeat("q=0.5&", 17), 413, "too_large", "q"},
		{"latency?limit=10001", 422, "invalid_value", "limit"},
		{"latency?group_by=", 422, "invalid_value", "group_by"},
		{"latency?group_by=user", 422, "invalid_value", "group_by"},
		{"latency?group_by=conversation,conversation", 422, "invalid_value", "group_by"},
		{"latency?group_by=conversation&group_by=event_name", 422, "invalid_value", "group_by"},
		{"latency?interval=1h", 400, "unknown_field", "interval"},
		{"conversations?order_by=latency", 422, "invalid_value", "order_by"},
		{"conversations?min_events=0", 422, "invalid_value", "min_events"},
		{"conversations?min_events=9223372036854775808", 422, "invalid_value", "min_events"},
		{"conversations?q=0.5", 400, "unknown_field", "q"},
		{"timeseries?interval=0s", 422, "invalid_value", "interval"},
		{"timeseries?interval=1", 422, "invalid_value", "interval"},
		{"timeseries?interval=1.5h", 422, "invalid_value", "interval"},
		{"timeseries?interval=1s&since=3h", 422, "invalid_value", "interval"},
		{"timeseries?limit=1", 400, "unknown_field", "limit"},
	} {
		t.Run(tt.target, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, "GET", "/analytics/"+tt.target, "").problem(t, tt.status, tt.code, tt.field)
			if len(h.asked) > 0 {
				t.Error("asked for something")
			}
		})
	}
}

func TestAnalyticsAnswers(t *testing.T) {
	h := newHarness(t)
	h.count = query.ErrorCount{Events: 8, Errors: 1}
	h.do(t, "GET", "/analytics/errors?event_name=event_a&since=1h", "").expect(t, 200,
		`{"event_name":"event_a","events":8,"errors":1,"error_rate":0.125,"since":"2026-06-01T11:00:00Z","until":"2026-06-01T12:00:00Z"}`)
	h.count = query.ErrorCount{}
	h.do(t, "GET", "/analytics/errors?since=1h", "").expect(t, 200,
		`{"event_name":null,"events":0,"errors":0,"error_rate":0,"since":"2026-06-01T11:00:00Z","until":"2026-06-01T12:00:00Z"}`)

	h.do(t, "GET", "/analytics/latency", "").expect(t, 200, `{"rows":[]}`)
	h.latency = []query.LatencyRow{
		{ConversationID: "c\"1", EventName: "event_a", Events: 2, Quantiles: []float64{1500.25, 1e21}},
		{ConversationID: "c2", EventName: "event_b", Events: 1, Quantiles: []float64{0, math.NaN()}},
	}
	h.do(t, "GET", "/analytics/latency?q=0.990&q=1e-3&limit=7", "").expect(t, 200,
		`{"rows":[{"conversation_id":"c\"1","event_name":"event_a","events":2,"quantiles":{"0.99":1500.25,"0.001":1e+21}},`+
			`{"conversation_id":"c2","event_name":"event_b","events":1,"quantiles":{"0.99":0,"0.001":null}}]}`)
	if q := h.last(t).(query.Latency); !cmp.Equal(q.Quantiles, []float64{0.99, 0.001}) || q.LimitRows != 7 {
		t.Errorf("asked %+v", q)
	}
	h.latency = []query.LatencyRow{{ConversationID: "c1", Events: 2, Quantiles: []float64{1}}}
	h.do(t, "GET", "/analytics/latency?group_by=conversation", "").expect(t, 200,
		`{"rows":[{"conversation_id":"c1","event_name":null,"events":2,"quantiles":{"0.95":1}}]}`)
	if q := h.last(t).(query.Latency); !q.ByConversation || q.ByEventName {
		t.Errorf("asked %+v", q)
	}
	h.latency = []query.LatencyRow{{EventName: "event_a", Events: 2, Quantiles: []float64{1}}}
	h.do(t, "GET", "/analytics/latency?group_by=event_name", "").expect(t, 200,
		`{"rows":[{"conversation_id":null,"event_name":"event_a","events":2,"quantiles":{"0.95":1}}]}`)
	h.do(t, "GET", "/analytics/latency?group_by=event_name,conversation", "").expect(t, 200, "")
	if q := h.last(t).(query.Latency); !q.ByConversation || !q.ByEventName {
		t.Errorf("asked %+v", q)
	}

	h.conversations = []query.ConversationRow{
		{ConversationID: "c1", ErrorCount: query.ErrorCount{Events: 3, Errors: 1}, FirstMicros: 1, LastMicros: micros(now)},
		{ConversationID: "c2", ErrorCount: query.ErrorCount{Events: 1}},
	}
	h.do(t, "GET", "/analytics/conversations?order_by=errors&min_events=2&limit=10000", "").expect(t, 200,
		`{"rows":[{"conversation_id":"c1","events":3,"errors":1,"error_rate":0.3333333333333333,"first":"1970-01-01T00:00:00.000001Z","last":"2026-06-01T12:00:00Z"},`+
			`{"conversation_id":"c2","events":1,"errors":0,"error_rate":0,"first":"1970-01-01T00:00:00Z","last":"1970-01-01T00:00:00Z"}]}`)
	if q := h.last(t).(query.Conversations); q.OrderBy != query.OrderByErrors || q.EventsMin != 2 || q.LimitRows != 10000 {
		t.Errorf("asked %+v", q)
	}
	h.do(t, "GET", "/analytics/conversations?order_by=events", "").expect(t, 200, "")
	if q := h.last(t).(query.Conversations); q.OrderBy != query.OrderByEvents {
		t.Errorf("asked %+v", q)
	}

	h.series = []query.TimeSeriesRow{{Micros: micros(now), ErrorCount: query.ErrorCount{Events: 2, Errors: 2}, Quantiles: []float64{math.NaN(), 4}}}
	h.do(t, "GET", "/analytics/timeseries?interval=5m&q=0.5&q=0.9&since=1d&event_name=event_a", "").expect(t, 200,
		`{"rows":[{"time":"2026-06-01T12:00:00Z","events":2,"errors":2,"error_rate":1,"quantiles":{"0.5":null,"0.9":4}}]}`)
	want := query.TimeSeries{
		Filter:         query.Filter{SinceMicros: micros(now.Add(-24 * time.Hour)), UntilMicros: micros(now), EventNames: []string{"event_a"}},
		IntervalMicros: 300_000_000, Quantiles: []float64{0.5, 0.9},
	}
	if diff := cmp.Diff(want, h.last(t)); diff != "" {
		t.Error(diff)
	}
	// 10,000 buckets are allowed, one more is not.
	h.do(t, "GET", "/analytics/timeseries?interval=1s&since=10000s", "").expect(t, 200, "")
	h.do(t, "GET", "/analytics/timeseries?interval=1s&since=10001s", "").problem(t, 422, "invalid_value", "interval")
}

func TestStorageAway(t *testing.T) {
	targets := []string{"/event/a", "/conversations/c/events", "/analytics/errors", "/analytics/latency", "/analytics/conversations", "/analytics/timeseries", "/analytics/insights?measure=events", "/analytics/funnel?step=a&step=b", "/analytics/retention?did=a"}
	for _, target := range targets {
		t.Run(target, func(t *testing.T) {
			h := newHarness(t)
			h.queryErr = errors.New("dial: refused")
			a := h.do(t, "GET", target, "")
			a.problem(t, 503, "unavailable", "")
			if strings.Contains(a.body, "dial") || !strings.Contains(h.log.String(), "dial: refused") {
				t.Errorf("answer %s, log %s", a.body, h.log)
			}
			for _, missing := range []error{event.ErrSchemaMissing, event.ErrSchemaOld} {
				h.queryErr = fmt.Errorf("query: %w", missing)
				a := h.do(t, "GET", target, "")
				a.problem(t, 503, "unavailable", "")
				if !strings.Contains(a.body, "sluice migrate") {
					t.Errorf("%v is answered %s", missing, a.body)
				}
			}
			h.queryErr = fmt.Errorf("ClickHouse 25.8.2: %w", event.ErrDatabaseOld)
			a = h.do(t, "GET", target, "")
			a.problem(t, 503, "unavailable", "")
			if !strings.Contains(a.body, "older than the oldest version that works") || !strings.Contains(h.log.String(), "25.8.2") {
				t.Errorf("an old database is answered %s, log %s", a.body, h.log)
			}
			h.queryErr = fmt.Errorf("query: %w", context.DeadlineExceeded)
			h.do(t, "GET", target, "").problem(t, 503, "unavailable", "")
			h.queryErr = fmt.Errorf("query: %w", event.ErrQueryTooLarge)
			h.do(t, "GET", target, "").problem(t, 422, "query_too_large", "")
			// Only a question can be too large for its time.
			h.queryErr = fmt.Errorf("query: %w", event.ErrQueryTimeout)
			if strings.HasPrefix(target, "/analytics/") {
				h.do(t, "GET", target, "").problem(t, 422, "query_timeout", "")
			} else {
				h.do(t, "GET", target, "").problem(t, 503, "unavailable", "")
			}
		})
	}
}

func TestAfter(t *testing.T) {
	receipts := []event.Receipt{{Generation: 1, Partition: 2, Offset: 3}, {Generation: 1, Partition: 0, Offset: 9}}
	refusal := func(e *event.Error) func(context.Context, []event.Receipt) ([]*event.Error, error) {
		return func(context.Context, []event.Receipt) ([]*event.Error, error) { return []*event.Error{nil, e}, nil }
	}
	untilEnd := func(ctx context.Context, _ []event.Receipt) ([]*event.Error, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, tt := range []struct {
		name, prefer string
		wait         func(context.Context, []event.Receipt) ([]*event.Error, error)
		status       int
		code         event.Code
		field        string
		waited       time.Duration
		applied      string
	}{
		{name: "applied", status: 200},
		{name: "applied as preferred", prefer: "wait=3", status: 200, applied: "wait=3"},
		{name: "refused is nothing to wait for", wait: refusal(event.Errorf(event.CodeUnknownEvent, "", "x")), status: 200},
		{name: "not yet", wait: untilEnd, status: 503, code: "not_yet_applied", field: "after", waited: 5 * time.Second},
		{name: "not yet, longer", prefer: "wait=20", wait: untilEnd, status: 503, code: "not_yet_applied", field: "after", waited: 20 * time.Second},
		{name: "looks once at least", prefer: "wait=0", wait: untilEnd, status: 503, code: "not_yet_applied", field: "after", waited: 400 * time.Millisecond},
		{name: "cannot be", wait: func(context.Context, []event.Receipt) ([]*event.Error, error) {
			return nil, event.Errorf(event.CodeInvalidValue, "receipt", "x")
		}, status: 422, code: "invalid_value", field: "after"},
		{name: "nobody can tell", wait: func(context.Context, []event.Receipt) ([]*event.Error, error) {
			return nil, errors.New("no broker")
		}, status: 503, code: "unavailable"},
	} {
		for _, target := range []string{"/event/a", "/conversations/c/events", "/analytics/errors", "/analytics/timeseries"} {
			t.Run(tt.name+target, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := newHarness(t)
					h.event, h.wait = stored(), tt.wait
					var headers []string
					if tt.prefer != "" {
						headers = []string{"Prefer", tt.prefer}
					}
					start := time.Now()
					a := h.do(t, "GET", target+"?after=1.2.3&after=1.0.9", "", headers...)
					if waited := time.Since(start); waited != tt.waited {
						t.Errorf("waited %v, want %v", waited, tt.waited)
					}
					if got := a.header.Get("Preference-Applied"); got != tt.applied {
						t.Errorf("Preference-Applied %q", got)
					}
					if diff := cmp.Diff(receipts, h.asked[0]); diff != "" {
						t.Error(diff)
					}
					if tt.code != "" {
						a.problem(t, tt.status, tt.code, tt.field)
						if len(h.asked) > 1 {
							t.Error("read all the same")
						}
						return
					}
					a.expect(t, http.StatusOK, "")
				})
			})
		}
	}
}

func TestCursorsOfAllConversations(t *testing.T) {
	for _, conversation := range []string{"c", "\u00e9", strings.Repeat("x", 256), "a/b?c#d%", " "} {
		h := newHarness(t)
		next := event.NewID(now.UnixMicro(), conversation).AsInternal()
		h.page = query.Page{Events: []event.Event{*stored()}, Next: &next}
		path := "/conversations/" + url.PathEscape(conversation) + "/events"
		a := h.do(t, "GET", path+"?limit=1", "")
		var got struct {
			NextCursor string `json:"next_cursor"`
		}
		decode(t, a.body, &got)
		h.do(t, "GET", path+"?cursor="+got.NextCursor, "").expect(t, 200, "")
		if q := h.last(t).(query.List); q.After == nil || *q.After != next || q.ConversationID != conversation {
			t.Errorf("%q: asked %+v", conversation, q)
		}
	}
}
