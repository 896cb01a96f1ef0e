package api_test

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func TestInsights(t *testing.T) {
	h := newHarness(t)
	week := query.Filter{SinceMicros: micros(now.Add(-week)), UntilMicros: micros(now)}
	h.do(t, "GET", "/analytics/insights?measure=events", "").expect(t, 200, `{"rows":[],"truncated":false}`)
	want := query.Insights{Filter: week, Measures: []query.Measure{{}}, Descending: true, LimitRows: 101}
	asked := func() query.Insights {
		t.Helper()
		q := h.last(t).(query.Insights)
		if q.BytesMax < 100*q.LimitRows {
			t.Errorf("room for %d bytes in %d rows", q.BytesMax, q.LimitRows)
		}
		q.BytesMax = 0
		return q
	}
	if diff := cmp.Diff(want, asked()); diff != "" {
		t.Error(diff)
	}
	h.insights = []query.InsightsRow{
		{
			Groups:   []string{`"free"`, `"c\"1"`, `null`},
			Measures: []query.Number{{Float: 12, Digits: "12"}, {Float: 410.25}, {Float: 9007199254740992, Digits: "9007199254740993"}, {Float: math.NaN()}, {Float: 0.5}},
		},
		{Groups: []string{`1`, `"c"`, `{"a":[]}`}, Measures: []query.Number{{}, {}, {}, {}, {}}},
	}
	target := "/analytics/insights?measure=events&measure=p95(latency)&measure=sum(metadata.tokens)&measure=min(metadata.a(%22b),c)&measure=error_rate" +
		"&group_by=metadata.plan&group_by=conversation&group_by=metadata.a%20%22b&error=true"
	h.do(t, "GET", target+"&limit=1&order_by=p95(latency)&order=asc", "").expect(t, 200,
		`{"rows":[{"metadata.plan":"free","conversation_id":"c\"1","metadata.a \"b":null,"events":12,"p95(latency)":410.25,"sum(metadata.tokens)":9007199254740993,`+
			`"min(metadata.a(\"b),c)":null,"error_rate":0.5}],"truncated":true}`)
	want = query.Insights{
		Filter: week,
		Measures: []query.Measure{
			{Function: query.CountEvents},
			{Function: query.Quantile, Level: 0.95},
			{Function: query.Sum, MetadataKey: "tokens"},
			{Function: query.Minimum, MetadataKey: `a("b),c`},
			{Function: query.ErrorRate},
		},
		GroupBy: []query.Group{{By: query.ByMetadata, MetadataKey: "plan"}, {By: query.ByConversation}, {By: query.ByMetadata, MetadataKey: `a "b`}},
		OrderBy: 1, LimitRows: 2,
	}
	want.Errors = query.WithError
	if diff := cmp.Diff(want, asked()); diff != "" {
		t.Error(diff)
	}
	h.insights = []query.InsightsRow{{Micros: micros(now), Groups: []string{`"event_a"`}, Measures: []query.Number{{Float: 1, Digits: "1"}, {Float: 2}}}}
	h.do(t, "GET", "/analytics/insights?measure=conversations&measure=avg(latency)&group_by=event_name&interval=1d&tz=Asia/Kolkata&since=2026-05-30T00:00:00Z", "").expect(t, 200,
		`{"rows":[{"time":"2026-06-01T12:00:00Z","event_name":"event_a","conversations":1,"avg(latency)":2}],"truncated":false}`)
	var days []int64
	for _, day := range []int{30, 31, 32} {
		days = append(days, time.Date(2026, 5, day, 0, 0, 0, 0, time.FixedZone("", 5*3600+1800)).Unix())
	}
	want = query.Insights{
		Filter:   query.Filter{SinceMicros: micros(time.Date(2026, 5, 30, 0, 0, 0, 0, time.UTC)), UntilMicros: micros(now)},
		Measures: []query.Measure{{Function: query.CountConversations}, {Function: query.Average}}, GroupBy: []query.Group{{By: query.ByEventName}},
		BucketSeconds: days, OrderBy: query.OrderByTime, LimitRows: 10_001,
	}
	if diff := cmp.Diff(want, asked()); diff != "" {
		t.Error(diff)
	}
	// Without groups there are as many rows as buckets.
	h.insights = nil
	h.do(t, "GET", "/analytics/insights?measure=max(latency)&interval=6h&since=1d&order_by=time&order=desc", "").expect(t, 200, "")
	if q := asked(); len(q.BucketSeconds) != 4 || q.LimitRows != 5 || q.OrderBy != query.OrderByTime || !q.Descending || q.Measures[0].Function != query.Maximum {
		t.Errorf("asked %+v", q)
	}
	h.do(t, "GET", "/analytics/insights?measure=errors&measure=p99.9(metadata.a.b)&interval=1d&order_by=errors", "").expect(t, 200, "")
	if q := asked(); q.OrderBy != 0 || !q.Descending || q.Measures[1] != (query.Measure{Function: query.Quantile, MetadataKey: "a.b", Level: 0.999}) {
		t.Errorf("asked %+v", q)
	}
	// Times after all dates have no buckets.
	h.do(t, "GET", "/analytics/insights?measure=errors&interval=1mo&since=2149-05-01T00:00:00Z&until=9000-01-01T00:00:00Z", "").expect(t, 200, "")
	if q := asked(); len(q.BucketSeconds) != 2 {
		t.Errorf("%d buckets", len(q.BucketSeconds))
	}
}

func TestRefusedInsights(t *testing.T) {
	measures := func(n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("measure=sum(metadata.%d)", i))
		}
		return strings.Join(names, "&")
	}
	for _, tt := range []struct {
		query  string
		status int
		code   event.Code
		field  string
	}{
		{"", 422, "required", "measure"},
		{"measure=", 422, "invalid_value", "measure"},
		{"measure=event", 422, "invalid_value", "measure"},
		{"measure=events()", 422, "invalid_value", "measure"},
		{"measure=sum", 422, "invalid_value", "measure"},
		{"measure=sum()", 422, "invalid_value", "measure"},
		{"measure=sum(latency", 422, "invalid_value", "measure"},
		{"measure=sumlatency)", 422, "invalid_value", "measure"},
		{"measure=sum(events)", 422, "invalid_value", "measure"},
		{"measure=sum(metadata.)", 422, "invalid_value", "measure"},
		{"measure=sum(metadata.a%00)", 422, "invalid_value", "measure"},
		{"measure=median(latency)", 422, "invalid_value", "measure"},
		{"measure=p0(latency)", 422, "invalid_value", "measure"},
		{"measure=p100(latency)", 422, "invalid_value", "measure"},
		{"measure=p(latency)", 422, "invalid_value", "measure"},
		{"measure=p-5(latency)", 422, "invalid_value", "measure"},
		{"measure=p1e1(latency)", 422, "invalid_value", "measure"},
		{"measure=pNaN(latency)", 422, "invalid_value", "measure"},
		{"measure=events&measure=events", 422, "invalid_value", "measure"},
		{measures(17), 413, "too_large", "measure"},
		{"measure=events&group_by=", 422, "invalid_value", "group_by"},
		{"measure=events&group_by=plan", 422, "invalid_value", "group_by"},
		{"measure=events&group_by=metadata.", 422, "invalid_value", "group_by"},
		{"measure=events&group_by=metadata.a%00b", 422, "invalid_value", "group_by"},
		{"measure=events&group_by=event_name&group_by=event_name", 422, "invalid_value", "group_by"},
		{"measure=events&group_by=metadata.a&group_by=metadata.b&group_by=metadata.c&group_by=metadata.d", 413, "too_large", "group_by"},
		{"measure=events&interval=1", 422, "invalid_value", "interval"},
		{"measure=events&interval=0d", 422, "invalid_value", "interval"},
		{"measure=events&interval=1y", 422, "invalid_value", "interval"},
		{"measure=events&interval=-1d", 422, "invalid_value", "interval"},
		{"measure=events&interval=99999999999999999999w", 422, "invalid_value", "interval"},
		{"measure=events&interval=500000000d&interval=1d", 422, "invalid_value", "interval"},
		{"measure=events&interval=1s&since=3h", 422, "invalid_value", "interval"},
		{"measure=events&tz=Mars/Olympus", 422, "invalid_value", "tz"},
		{"measure=events&tz=", 422, "invalid_value", "tz"},
		{"measure=events&tz=Local", 422, "invalid_value", "tz"},
		{"measure=events&tz=../../etc/passwd", 422, "invalid_value", "tz"},
		{"measure=events&tz=" + strings.Repeat("a", 65), 422, "invalid_value", "tz"},
		{"measure=events&order_by=errors", 422, "invalid_value", "order_by"},
		{"measure=events&order_by=time", 422, "invalid_value", "order_by"},
		{"measure=events&order=down", 422, "invalid_value", "order"},
		{"measure=events&limit=10001", 422, "invalid_value", "limit"},
		{"measure=events&q=0.5", 400, "unknown_field", "q"},
	} {
		t.Run(tt.query, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, "GET", "/analytics/insights?"+tt.query, "").problem(t, tt.status, tt.code, tt.field)
			if len(h.asked) > 0 {
				t.Error("asked for something")
			}
		})
	}
}

// Every filter of the other questions narrows these too.
func TestInsightsFilters(t *testing.T) {
	h := newHarness(t)
	filters := "conversation_id=c&event_name=a&event_name=b&error=false&latency_min=1&latency_max=2&metadata.a!=1&metadata.b>2&since=2d&until=1d"
	h.do(t, "GET", "/analytics/errors?"+filters, "").expect(t, 200, "")
	want := h.last(t).(query.Filter)
	h.do(t, "GET", "/analytics/insights?measure=events&"+filters, "").expect(t, 200, "")
	if diff := cmp.Diff(want, h.last(t).(query.Insights).Filter); diff != "" {
		t.Error(diff)
	}
}

func FuzzMeasures(f *testing.F) {
	for _, seed := range []string{"events", "p95(latency)", "sum(metadata.tokens)", "p99.9(metadata.a)b)", "min((", "p.5(latency)", "p" + strings.Repeat("9", 400) + "(latency)"} {
		f.Add(seed, "metadata."+seed, "1d", "UTC")
	}
	f.Fuzz(func(t *testing.T, measure, group, interval, zone string) {
		h := newHarness(t)
		values := url.Values{"measure": {measure}, "group_by": {group}, "interval": {interval}, "tz": {zone}}
		a := h.do(t, "GET", "/analytics/insights?"+values.Encode(), "")
		if a.status == 200 {
			for _, m := range h.last(t).(query.Insights).Measures {
				if m.Function == query.Quantile && !(m.Level > 0 && m.Level < 1) {
					t.Errorf("%q is level %v", measure, m.Level)
				}
			}
		} else if !slices.Contains([]int{400, 413, 422}, a.status) {
			t.Errorf("%d: %s", a.status, a.body)
		}
	})
}
