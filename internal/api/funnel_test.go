package api_test

import (
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func TestFunnel(t *testing.T) {
	h := newHarness(t)
	asked := func() query.Funnel {
		t.Helper()
		q := h.last(t).(query.Funnel)
		if q.BytesMax < 100*q.LimitRows {
			t.Errorf("room for %d bytes in %d rows", q.BytesMax, q.LimitRows)
		}
		q.BytesMax = 0
		return q
	}
	h.funnel = []query.FunnelRow{{Steps: []query.FunnelStep{{MedianMicros: math.NaN()}, {MedianMicros: math.NaN()}}}}
	h.do(t, "GET", "/analytics/funnel?step=event_a&step=event_b", "").expect(t, 200,
		`{"rows":[{"steps":[{"event_name":"event_a","subjects":0,"conversion":null,"conversion_from_previous":null,"median_ms_from_previous":null},`+
			`{"event_name":"event_b","subjects":0,"conversion":null,"conversion_from_previous":null,"median_ms_from_previous":null}]}],"truncated":false}`)
	want := query.Funnel{
		Filter:       query.Filter{SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now)},
		Steps:        []query.Filter{{EventNames: []string{"event_a"}}, {EventNames: []string{"event_b"}}},
		WindowMicros: 24 * time.Hour.Microseconds(), LimitRows: 1,
	}
	if diff := cmp.Diff(want, asked()); diff != "" {
		t.Error(diff)
	}
	row := query.FunnelRow{Group: `"pro"`, Steps: []query.FunnelStep{{Subjects: 8, MedianMicros: math.NaN()}, {Subjects: 4, MedianMicros: 1500}, {Subjects: 1, MedianMicros: 0}}}
	h.funnel = []query.FunnelRow{row, row}
	steps := url.Values{"step": {"event_a", "event b;error=true;metadata.plan=a%3Bb%26c;metadata.n>5;latency_min=7", "c%3B&metadata.plan!=x&metadata.plan!=y&metadata.m.exists=false"}}
	h.do(t, "GET", "/analytics/funnel?window=90s&per=metadata.user&group_by=metadata.plan&limit=1&error=false&since=1d&"+steps.Encode(), "").expect(t, 200,
		`{"rows":[{"metadata.plan":"pro","steps":[{"event_name":"event_a","subjects":8,"conversion":1,"conversion_from_previous":1,"median_ms_from_previous":null},`+
			`{"event_name":"event b","subjects":4,"conversion":0.5,"conversion_from_previous":0.5,"median_ms_from_previous":1.5},`+
			`{"event_name":"c;","subjects":1,"conversion":0.125,"conversion_from_previous":0.25,"median_ms_from_previous":0}]}],"truncated":true}`)
	want = query.Funnel{
		Filter: query.Filter{SinceMicros: micros(now.Add(-24 * time.Hour)), UntilMicros: micros(now), Errors: query.WithoutError},
		Steps: []query.Filter{
			{EventNames: []string{"event_a"}},
			{
				EventNames: []string{"event b"}, Errors: query.WithError, LatencyMin: new(7.0),
				Metadata: []query.MetadataFilter{{Key: "n", Op: query.Greater, Value: "5"}, {Key: "plan", Value: "a;b&c"}},
			},
			{EventNames: []string{"c;"}, Metadata: []query.MetadataFilter{{Key: "m", Op: query.Missing}, {Key: "plan", Op: query.NotEqual, Value: "x"}, {Key: "plan", Op: query.NotEqual, Value: "y"}}},
		},
		WindowMicros: 90_000_000, Subject: query.Subject{MetadataKey: "user"}, GroupBy: &query.Group{By: query.ByMetadata, MetadataKey: "plan"}, LimitRows: 2,
	}
	if diff := cmp.Diff(want, asked()); diff != "" {
		t.Error(diff)
	}
	h.funnel = nil
	h.do(t, "GET", "/analytics/funnel?step=a&step=b&per=conversation&group_by=event_name", "").expect(t, 200, `{"rows":[],"truncated":false}`)
	if q := asked(); q.Subject.MetadataKey != "" || *q.GroupBy != (query.Group{By: query.ByEventName}) || q.LimitRows != 101 {
		t.Errorf("asked %+v", q)
	}
}

func TestRefusedFunnels(t *testing.T) {
	for _, tt := range []struct {
		steps  []string
		other  string
		status int
		code   event.Code
		field  string
	}{
		{nil, "", 422, "required", "step"},
		{[]string{"a"}, "", 422, "required", "step"},
		{strings.Split("a b c d e f g h i j k", " "), "", 413, "too_large", "step"},
		{[]string{"a", ""}, "", 422, "invalid_value", "step"},
		{[]string{"a", ";error=true"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "%zz"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;error=%zz"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;error=maybe"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;colour=red"}, "", 400, "unknown_field", "step"},
		{[]string{"a", "b;latency_min=2;latency_max=1"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;since=1d"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;event_name=c"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;conversation_id=c"}, "", 422, "invalid_value", "step"},
		{[]string{"a", "b;metadata.x=" + strings.Repeat("x", 2048)}, "", 413, "too_large", "step"},
		{[]string{"a", strings.Repeat("x", 129)}, "", 413, "too_large", "step"},
		{[]string{"a", "b"}, "window=1", 422, "invalid_value", "window"},
		{[]string{"a", "b"}, "window=367d", 413, "too_large", "window"},
		{[]string{"a", "b"}, "per=user", 422, "invalid_value", "per"},
		{[]string{"a", "b"}, "per=metadata.", 422, "invalid_value", "per"},
		{[]string{"a", "b"}, "per=", 422, "invalid_value", "per"},
		{[]string{"a", "b"}, "group_by=metadata.a&group_by=metadata.b", 413, "too_large", "group_by"},
		{[]string{"a", "b"}, "group_by=plan", 422, "invalid_value", "group_by"},
		{[]string{"a", "b"}, "interval=1d", 400, "unknown_field", "interval"},
	} {
		target := "/analytics/funnel?" + url.Values{"step": tt.steps}.Encode() + "&" + tt.other
		t.Run(target, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, "GET", target, "").problem(t, tt.status, tt.code, tt.field)
			if len(h.asked) > 0 {
				t.Error("asked for something")
			}
		})
	}
}
