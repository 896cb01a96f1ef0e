package api_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func TestRetention(t *testing.T) {
	h := newHarness(t)
	kolkata := time.FixedZone("", 5*3600+1800)
	day := func(day int, zone *time.Location) int64 { return time.Date(2026, 5, day, 0, 0, 0, 0, zone).Unix() }
	h.retention = []query.RetentionRow{{Subjects: 4, Returned: []uint64{4, 2, 0}}, {Subjects: 1, Returned: []uint64{0, 1}}, {Returned: []uint64{0}}}
	// It is 17:30 in Kolkata, on the third of the days.
	h.do(t, "GET", "/analytics/retention?did=event_a&returned=event_b%3Berror=true&per=metadata.user&tz=Asia/Kolkata&since=2d", "").expect(t, 200,
		`{"rows":[{"time":"2026-05-29T18:30:00Z","complete":true,"subjects":4,"returned":[4,2,0]},`+
			`{"time":"2026-05-30T18:30:00Z","complete":true,"subjects":1,"returned":[0,1]},`+
			`{"time":"2026-05-31T18:30:00Z","complete":false,"subjects":0,"returned":[0]}]}`)
	want := query.Retention{
		Filter: query.Filter{SinceMicros: day(30, kolkata) * 1e6, UntilMicros: micros(now)},
		Did:    query.Filter{EventNames: []string{"event_a"}}, Returned: query.Filter{EventNames: []string{"event_b"}, Errors: query.WithError},
		Subject:       query.Subject{MetadataKey: "user"},
		PeriodSeconds: []int64{day(30, kolkata), day(31, kolkata), day(32, kolkata)},
	}
	if diff := cmp.Diff(want, h.last(t)); diff != "" {
		t.Error(diff)
	}
	// Without another event, the same one counts as a return; weeks begin on Monday, which 1 June is.
	h.retention = []query.RetentionRow{{Returned: []uint64{0, 0}}, {Returned: []uint64{0}}}
	h.do(t, "GET", "/analytics/retention?did=event_a&interval=1w&until=2027-01-01T00:00:00Z&since=2026-12-21T00:00:00.000001Z", "").expect(t, 200,
		`{"rows":[{"time":"2026-12-21T00:00:00Z","complete":false,"subjects":0,"returned":[0,0]},{"time":"2026-12-28T00:00:00Z","complete":false,"subjects":0,"returned":[0]}]}`)
	if q := h.last(t).(query.Retention); !cmp.Equal(q.Did, q.Returned) || q.SinceMicros != micros(time.Date(2026, 12, 21, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("asked %+v", q)
	}
	// The bound is the same as until.
	h.retention = []query.RetentionRow{{Returned: []uint64{0}}}
	h.do(t, "GET", "/analytics/retention?did=event_a&since=2026-05-01T12:00:00Z&until=2026-05-02T00:00:00Z", "").expect(t, 200,
		`{"rows":[{"time":"2026-05-01T00:00:00Z","complete":true,"subjects":0,"returned":[0]}]}`)
}

func TestRefusedRetention(t *testing.T) {
	for _, tt := range []struct {
		query  string
		status int
		code   event.Code
		field  string
	}{
		{"", 422, "required", "did"},
		{"did=", 422, "invalid_value", "did"},
		{"did=a&did=b", 422, "invalid_value", "did"},
		{"did=a%3Bcolour=red", 400, "unknown_field", "did"},
		{"did=a&returned=", 422, "invalid_value", "returned"},
		{"did=a&returned=b%3Bsince=1d", 422, "invalid_value", "returned"},
		{"did=a&interval=1h", 422, "invalid_value", "interval"},
		{"did=a&interval=day", 422, "invalid_value", "interval"},
		{"did=a&since=366d", 422, "invalid_value", "interval"},
		{"did=a&tz=Mars", 422, "invalid_value", "tz"},
		{"did=a&per=user", 422, "invalid_value", "per"},
		{"did=a&limit=1", 400, "unknown_field", "limit"},
		{"did=a&step=b", 400, "unknown_field", "step"},
	} {
		t.Run(tt.query, func(t *testing.T) {
			h := newHarness(t)
			h.do(t, "GET", "/analytics/retention?"+tt.query, "").problem(t, tt.status, tt.code, tt.field)
			if len(h.asked) > 0 {
				t.Error("asked for something")
			}
		})
	}
}
