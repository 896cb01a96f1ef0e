package sluice_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// waitFor polls until a condition that another goroutine makes true.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not come")
		}
	}
}

const storedEvent = `{"id":"order-1","conversation_id":"c1","conversation_metadata":{"plan":"pro"},"event_name":"event_a",` +
	`"timestamp":"2026-01-02T03:04:05.678901Z","error":"late","latency":12.5,"input":"hi","output":null,` +
	`"input_embeddings":[0.5,1],"output_embeddings":null}`

func TestReads(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.FixedZone("", 3600))
	filter := sluice.Filter{
		Since: since, Until: since.Add(time.Hour), ConversationID: "a b&c", EventName: "event_a",
		Metadata: map[string]string{"plan": "pro", "x y": "1"},
	}
	const filtered = "conversation_id=a+b%26c&event_name=event_a&metadata.plan=pro&metadata.x+y=1&since=2026-01-02T02%3A04%3A05.678901Z&until=2026-01-02T03%3A04%3A05.678901Z"
	wide := sluice.Filter{
		EventName: "event_a", EventNames: []string{"event_b"}, Errors: sluice.WithoutError, LatencyMin: sluice.Millis(0), LatencyMax: sluice.Millis(2500 * time.Microsecond),
		Metadata: map[string]string{"plan": "pro"},
		Conditions: []sluice.Condition{
			{Key: "plan", Op: sluice.NotEqual, Value: "a"},
			{Key: "plan", Op: sluice.NotEqual, Value: "b"},
			{Key: "tokens", Op: sluice.Greater, Value: "5"},
			{Key: "trial", Op: sluice.Missing},
			{Key: "x", Value: "y"},
		},
	}
	const widely = "error=false&event_name=event_a&event_name=event_b&latency_max=2.5&latency_min=0&" +
		"metadata.plan=pro&metadata.plan%21%3D=a&metadata.plan%21%3D=b&metadata.tokens%3E5=&metadata.trial.exists=false&metadata.x=y"
	ctx := context.Background()
	for _, tt := range []struct {
		name, body  string
		read        func(*sluice.Client) (any, error)
		path, query string
		want        string // as %+v, or a part of it
	}{
		{
			"event", storedEvent, func(c *sluice.Client) (any, error) { return c.Event(ctx, "order 2%x?") },
			"/event/order%202%25x%3F", "", "",
		},
		{"event with a slash", storedEvent, func(c *sluice.Client) (any, error) { return c.Event(ctx, "order 2/x?") }, "/event", "id=order+2%2Fx%3F", ""},
		{"event named like a directory", storedEvent, func(c *sluice.Client) (any, error) { return c.Event(ctx, "..") }, "/event", "id=..", ""},
		{
			"conversation", `{"events":[` + storedEvent + `],"next_cursor":"n"}`,
			func(c *sluice.Client) (any, error) {
				return c.Conversation(ctx, "漢字", sluice.ConversationQuery{Limit: 5, Cursor: "k", Embeddings: true})
			},
			"/conversations/%E6%BC%A2%E5%AD%97/events", "cursor=k&embeddings=true&limit=5", "",
		},
		{
			"conversation with a slash", `{"events":[` + storedEvent + `],"next_cursor":"n"}`,
			func(c *sluice.Client) (any, error) {
				return c.Conversation(ctx, "漢/字", sluice.ConversationQuery{Limit: 5})
			},
			"/conversation/events", "id=%E6%BC%A2%2F%E5%AD%97&limit=5", "",
		},
		{
			"conversation by a filter", `{"events":[` + storedEvent + `],"next_cursor":"n"}`,
			func(c *sluice.Client) (any, error) {
				return c.Conversation(ctx, "c1", sluice.ConversationQuery{Filter: sluice.Filter{Since: since, Errors: sluice.WithError}, Order: sluice.NewestFirst})
			},
			"/conversations/c1/events", "error=true&order=-timestamp&since=2026-01-02T02%3A04%3A05.678901Z", "",
		},
		{
			"events", `{"events":[` + storedEvent + `],"next_cursor":"n"}`,
			func(c *sluice.Client) (any, error) { return c.ListEvents(ctx, sluice.EventsQuery{}) },
			"/events", "", "",
		},
		{
			"events by a filter", `{"events":[` + storedEvent + `],"next_cursor":"n"}`,
			func(c *sluice.Client) (any, error) {
				return c.ListEvents(ctx, sluice.EventsQuery{Filter: filter, Order: sluice.OldestFirst, Limit: 2, Cursor: "k", Embeddings: true})
			},
			"/events", "conversation_id=a+b%26c&cursor=k&embeddings=true&event_name=event_a&limit=2&metadata.plan=pro&metadata.x+y=1&order=timestamp&" +
				"since=2026-01-02T02%3A04%3A05.678901Z&until=2026-01-02T03%3A04%3A05.678901Z", "",
		},
		{
			"errors by a wide filter", `{"event_name":null,"events":0,"errors":0,"error_rate":0,"since":"2026-01-02T03:04:05Z","until":"2026-01-02T03:04:06Z"}`,
			func(c *sluice.Client) (any, error) { return c.Errors(ctx, wide) },
			"/analytics/errors", widely, "",
		},
		{
			"errors", `{"event_name":null,"events":4,"errors":1,"error_rate":0.25,"since":"2026-01-02T03:04:05Z","until":"2026-01-02T03:04:06Z"}`,
			func(c *sluice.Client) (any, error) { return c.Errors(ctx, filter) },
			"/analytics/errors", filtered,
			"&{EventName: Events:4 Errors:1 ErrorRate:0.25 Since:2026-01-02 03:04:05 +0000 UTC Until:2026-01-02 03:04:06 +0000 UTC}",
		},
		{
			"latency", `{"rows":[{"conversation_id":null,"event_name":"event_a","events":3,"quantiles":{"0.95":12.5,"0.5":null}}]}`,
			func(c *sluice.Client) (any, error) {
				return c.Latency(ctx, sluice.LatencyQuery{Quantiles: []float64{0.95, 0.5}, GroupBy: []sluice.Group{sluice.ByEventName}, Limit: 7})
			},
			"/analytics/latency", "group_by=event_name&limit=7&q=0.95&q=0.5",
			"[{ConversationID: EventName:event_a Events:3 Quantiles:map[0.5:NaN 0.95:12.5]}]",
		},
		{
			"conversations", `{"rows":[{"conversation_id":"c1","events":3,"errors":1,"error_rate":0.5,"first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:06Z"}]}`,
			func(c *sluice.Client) (any, error) {
				return c.Conversations(ctx, sluice.ConversationsQuery{OrderBy: sluice.OrderByEvents, MinEvents: 2, Limit: 7})
			},
			"/analytics/conversations", "limit=7&min_events=2&order_by=events",
			"[{ConversationID:c1 Events:3 Errors:1 ErrorRate:0.5 First:2026-01-02 03:04:05 +0000 UTC Last:2026-01-02 03:04:06 +0000 UTC}]",
		},
		{
			"time series", `{"rows":[{"time":"2026-01-02T03:00:00Z","events":3,"errors":1,"error_rate":0.5,"quantiles":{"0.95":null}}]}`,
			func(c *sluice.Client) (any, error) {
				return c.TimeSeries(ctx, sluice.TimeSeriesQuery{Interval: 5 * time.Minute})
			},
			"/analytics/timeseries", "interval=300s",
			"[{Time:2026-01-02 03:00:00 +0000 UTC Events:3 Errors:1 ErrorRate:0.5 Quantiles:map[0.95:NaN]}]",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := &fakeAPI{answer: func(int, request) answer { return answer{status: 200, body: tt.body} }}
			client := serve(t, api, sluice.Options{})
			got, err := tt.read(client)
			if err != nil {
				t.Fatal(err)
			}
			r := api.got()[0]
			if r.path != tt.path || r.query != tt.query {
				t.Errorf("read %s?%s, want %s?%s", r.path, r.query, tt.path, tt.query)
			}
			if text := fmt.Sprintf("%+v", got); tt.want != "" && text != tt.want {
				t.Errorf("got  %s\nwant %s", text, tt.want)
			}
			if e, ok := got.(*sluice.StoredEvent); ok && (e.ID != "order-1" || string(e.ConversationMetadata) != `{"plan":"pro"}` ||
				e.Error != "late" || *e.Latency != 12.5 || e.Output != nil || !slices.Equal(e.InputEmbeddings, []float32{0.5, 1})) {
				t.Errorf("got %+v", e)
			}
			if p, ok := got.(*sluice.Page); ok && (len(p.Events) != 1 || p.NextCursor != "n") {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestUnknownEvent(t *testing.T) {
	api := &fakeAPI{answer: func(int, request) answer {
		return answer{status: 404, body: `{"type":"urn:sluice:problem:unknown_event","status":404,"detail":"names no event","code":"unknown_event","field":"id"}`}
	}}
	client := serve(t, api, sluice.Options{})
	event, err := client.Event(context.Background(), "x")
	var refusal *sluice.APIError
	if event != nil || !errors.As(err, &refusal) || refusal.Code != sluice.CodeUnknownEvent || refusal.Status != 404 || refusal.Field != "id" {
		t.Errorf("returned %v, %v", event, err)
	}
	if n := len(api.got()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestConversationEvents(t *testing.T) {
	api := &fakeAPI{answer: func(n int, _ request) answer {
		cursor := fmt.Sprintf(`"p%d"`, n+1)
		if n == 2 || n == 5 {
			cursor = "null"
		}
		if n == 4 {
			return answer{status: 422, body: `{"status":422,"code":"invalid_value"}`}
		}
		return answer{status: 200, body: `{"events":[` + storedEvent + `,` + storedEvent + `],"next_cursor":` + cursor + `}`}
	}}
	client := serve(t, api, sluice.Options{})
	events := client.ConversationEvents(context.Background(), "c1", sluice.ConversationQuery{Limit: 2})
	n := 0
	for e, err := range events {
		if err != nil || e.ID != "order-1" {
			t.Fatalf("event %d is %v, %v", n, e, err)
		}
		n++
	}
	var queries []string
	for _, r := range api.got() {
		queries = append(queries, r.query)
	}
	if n != 6 || !slices.Equal(queries, []string{"limit=2", "cursor=p1&limit=2", "cursor=p2&limit=2"}) {
		t.Errorf("%d events by %v", n, queries)
	}
	// Again, with an error on the second page.
	n = 0
	var last error
	for _, err := range events {
		n, last = n+1, err
	}
	if n != 3 || last == nil {
		t.Errorf("%d events, %v", n, last)
	}
	for _, err := range events { // and left early
		if err != nil {
			t.Error(err)
		}
		break
	}
}

func TestReadsAreRetriedForHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &fakeAPI{answer: func(n int, _ request) answer {
			if n == 2 {
				return answer{status: 200, body: storedEvent}
			}
			return answer{status: 503, body: `{"status":503,"code":"unavailable"}`}
		}}
		client := open(t, api, sluice.Options{})
		if _, err := client.Event(context.Background(), "x"); err != nil {
			t.Error(err)
		}
		start := time.Now()
		_, err := client.Event(context.Background(), "x")
		var refusal *sluice.APIError
		if took := time.Since(start); !errors.As(err, &refusal) || refusal.Status != 503 || took > 30*time.Second || took < 15*time.Second {
			t.Errorf("returned %v after %s", err, took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = client.Event(ctx, "x")
		if took := time.Since(start); err == nil || took > time.Second {
			t.Errorf("returned %v after %s", err, took)
		}
	})
}

func TestReadYourWrites(t *testing.T) {
	receipts := []string{"1.0.7", "1.1.5", "1.0.9", "2.1.3", "1.1.99", "1.0.8"}
	api := &fakeAPI{}
	api.answer = func(_ int, r request) answer {
		if r.path == "/events" {
			a := answer{status: 202}
			for i := range r.items {
				a.results = append(a.results, fmt.Sprintf(`{"id":"x","receipt":%q}`, receipts[i]))
			}
			return a
		}
		return answer{status: 200, body: storedEvent}
	}
	client := serve(t, api, sluice.Options{BatchAgeMax: time.Hour})
	for range receipts {
		mustTrack(t, client, event("c1"))
	}
	ctx := context.Background()
	if _, err := client.Event(ctx, "x", sluice.Wait(1500*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Errors(ctx, sluice.Filter{EventName: "event_a"}, sluice.Wait(30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Event(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	requests := api.got()[1:]
	for i, want := range []struct{ prefer, query string }{
		{"wait=2", "after=1.0.9&after=2.1.3"}, {"wait=30", "after=1.0.9&after=2.1.3&event_name=event_a"}, {"", ""},
	} {
		if got := requests[i]; got.header.Get("Prefer") != want.prefer || got.query != want.query {
			t.Errorf("read %d has Prefer %q and ?%s, want %q and ?%s", i, got.header.Get("Prefer"), got.query, want.prefer, want.query)
		}
	}
	for _, wait := range []time.Duration{-1, time.Millisecond, 31 * time.Second} {
		var refused *sluice.FieldError
		if _, err := client.Event(ctx, "x", sluice.Wait(wait)); !errors.As(err, &refused) || refused.Field != "wait" {
			t.Errorf("a wait of %s returned %v", wait, err)
		}
	}
}

// A wait that timed out is not repeated.
func TestNotYetApplied(t *testing.T) {
	api := &fakeAPI{}
	api.answer = func(_ int, r request) answer {
		if r.path == "/events" {
			return answer{status: 202}
		}
		return answer{status: 503, body: `{"status":503,"code":"not_yet_applied"}`}
	}
	client := serve(t, api, sluice.Options{})
	mustTrack(t, client, event("c1"))
	_, err := client.Event(context.Background(), "x", sluice.Wait(time.Second))
	var refusal *sluice.APIError
	if !errors.As(err, &refusal) || refusal.Code != "not_yet_applied" || len(api.got()) != 2 {
		t.Errorf("returned %v after %d requests", err, len(api.got()))
	}
}

// One request takes 100 receipts.
func TestReadYourWritesOfManyPartitions(t *testing.T) {
	partition := 0
	api := &fakeAPI{}
	api.answer = func(_ int, r request) answer {
		if r.path == "/events" {
			a := answer{status: 202}
			for range r.items {
				a.results = append(a.results, fmt.Sprintf(`{"id":"x","receipt":"1.%d.0"}`, partition))
				partition++
			}
			return a
		}
		if q, _ := url.ParseQuery(r.query); len(q["after"]) == 100 {
			return answer{status: 404, body: `{"status":404,"code":"unknown_event"}`}
		}
		return answer{status: 200, body: storedEvent}
	}
	client := serve(t, api, sluice.Options{})
	for range 250 {
		mustTrack(t, client, event("c1"))
	}
	if _, err := client.Event(context.Background(), "x", sluice.Wait(time.Second)); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, r := range api.got() {
		q, _ := url.ParseQuery(r.query)
		for _, receipt := range q["after"] {
			seen[receipt] = true
		}
	}
	if len(seen) != 250 {
		t.Errorf("waited for %d receipts", len(seen))
	}
}

func TestQuantiles(t *testing.T) {
	q := sluice.Quantiles{0.5: 1.5, 0.99: math.NaN()}
	b, err := q.MarshalJSON()
	if err != nil || string(b) != `{"0.5":1.5,"0.99":null}` {
		t.Errorf("written as %s, %v", b, err)
	}
	if err := q.UnmarshalJSON([]byte(`{"x":1}`)); err == nil {
		t.Error("a quantile x was taken")
	}
}
