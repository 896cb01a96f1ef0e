package sluice_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func TestVectorsOfFilters(t *testing.T) {
	var vectors struct {
		Conditions []struct {
			Name, Key, Value  string
			Op                sluice.Comparison
			Parameter, Member []string
			Refused           bool
		}
	}
	text, err := os.ReadFile("../spec/vectors/filters.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Conditions) == 0 {
		t.Fatal(err, "or no vectors")
	}
	api := &fakeAPI{answer: func(int, request) answer { return answer{status: 200, body: `{"events":[],"next_cursor":null}`} }}
	client := serve(t, api, sluice.Options{})
	expectRefused := func(name, key string, err error, sent []request) {
		t.Helper()
		field := "metadata"
		if key != "" {
			field = "metadata." + key
		}
		var refused *sluice.FieldError
		if !errors.As(err, &refused) || refused.Field != field || len(sent) != 0 {
			t.Errorf("%s: error %v after %d requests, want an error of %s", name, err, len(sent), field)
		}
	}
	for _, v := range vectors.Conditions {
		filters := []sluice.Filter{{Conditions: []sluice.Condition{{Key: v.Key, Op: v.Op, Value: v.Value}}}}
		if v.Op == sluice.Equal {
			filters = append(filters, sluice.Filter{Metadata: map[string]string{v.Key: v.Value}})
		}
		for _, filter := range filters {
			before := len(api.got())
			_, err := client.ListEvents(context.Background(), sluice.EventsQuery{Filter: filter})
			sent := api.got()[before:]
			if v.Refused {
				expectRefused(v.Name, v.Key, err, sent)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", v.Name, err)
				continue
			}
			values, err := url.ParseQuery(sent[0].query)
			if err != nil || len(values) != 1 || !slices.Equal(values[v.Parameter[0]], v.Parameter[1:]) {
				t.Errorf("%s: sent ?%s, want the parameter %q, error %v", v.Name, sent[0].query, v.Parameter, err)
			}
		}
		for _, filter := range filters {
			before := len(api.got())
			_, err := client.Search(context.Background(), sluice.SearchQuery{Text: "a", Filter: filter})
			sent := api.got()[before:]
			if v.Member == nil {
				expectRefused(v.Name, v.Key, err, sent)
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", v.Name, err)
				continue
			}
			var body struct{ Filter map[string]string }
			if err := json.Unmarshal([]byte(sent[0].text), &body); err != nil || len(body.Filter) != 1 || body.Filter[v.Member[0]] != v.Member[1] {
				t.Errorf("%s: sent %s, want the member %q, error %v", v.Name, sent[0].text, v.Member, err)
			}
		}
	}
}

// Every read refuses a filter that cannot be sent, and sends nothing.
func TestRefusedFilters(t *testing.T) {
	api := &fakeAPI{answer: func(int, request) answer { return answer{status: 200, body: `{}`} }}
	client := serve(t, api, sluice.Options{})
	ctx := context.Background()
	filter := sluice.Filter{Conditions: []sluice.Condition{{Key: "plan", Op: "~", Value: "pro"}}}
	for name, read := range map[string]func() error{
		"errors":  func() error { _, err := client.Errors(ctx, filter); return err },
		"latency": func() error { _, err := client.Latency(ctx, sluice.LatencyQuery{Filter: filter}); return err },
		"conversations": func() error {
			_, err := client.Conversations(ctx, sluice.ConversationsQuery{Filter: filter})
			return err
		},
		"time series": func() error {
			_, err := client.TimeSeries(ctx, sluice.TimeSeriesQuery{Filter: filter, Interval: time.Hour})
			return err
		},
		"events": func() error { _, err := client.ListEvents(ctx, sluice.EventsQuery{Filter: filter}); return err },
		"all events": func() error {
			for _, err := range client.AllEvents(ctx, sluice.EventsQuery{Filter: filter}) {
				return err
			}
			return nil
		},
		"conversation list": func() error {
			_, err := client.ListConversations(ctx, sluice.ConversationListQuery{Filter: filter})
			return err
		},
		"all conversations": func() error {
			for _, err := range client.AllConversations(ctx, sluice.ConversationListQuery{Filter: filter}) {
				return err
			}
			return nil
		},
		"conversation": func() error {
			_, err := client.Conversation(ctx, "c1", sluice.ConversationQuery{Filter: filter})
			return err
		},
		"search": func() error { _, err := client.Search(ctx, sluice.SearchQuery{Filter: filter}); return err },
		"search all": func() error {
			for _, err := range client.SearchAll(ctx, sluice.SearchQuery{Filter: filter}) {
				return err
			}
			return nil
		},
		"export": func() error {
			for _, err := range client.ExportEvents(ctx, sluice.ExportQuery{Filter: filter}) {
				return err
			}
			return nil
		},
		"insights":  func() error { _, err := client.Insights(ctx, sluice.InsightsQuery{Filter: filter}); return err },
		"funnel":    func() error { _, err := client.Funnel(ctx, sluice.FunnelQuery{Filter: filter}); return err },
		"retention": func() error { _, err := client.Retention(ctx, sluice.RetentionQuery{Filter: filter}); return err },
		"retention, the step": func() error {
			_, err := client.Retention(ctx, sluice.RetentionQuery{Did: sluice.Step{Conditions: filter.Conditions}})
			return err
		},
		"retention, the later step": func() error {
			_, err := client.Retention(ctx, sluice.RetentionQuery{Returned: &sluice.Step{Conditions: filter.Conditions}})
			return err
		},
		"funnel, a step": func() error {
			_, err := client.Funnel(ctx, sluice.FunnelQuery{Steps: []sluice.Step{{Conditions: filter.Conditions}}})
			return err
		},
	} {
		var refused *sluice.FieldError
		if err := read(); !errors.As(err, &refused) || refused.Field != "metadata.plan" {
			t.Errorf("%s: returned %v", name, err)
		}
	}
	_, err := client.Conversation(ctx, "c1", sluice.ConversationQuery{Filter: sluice.Filter{ConversationID: "c1"}})
	var refused *sluice.FieldError
	if !errors.As(err, &refused) || refused.Field != "conversation_id" {
		t.Errorf("a conversation within a conversation: returned %v", err)
	}
	if n := len(api.got()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestConversationLists(t *testing.T) {
	const first = `{"conversation_id":"c1","first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:06Z","events":4,"errors":1,"error_rate":0.25,` +
		`"event_names":["event_a","event_b"],"first_input":"hi","last_output":null}`
	api := &fakeAPI{answer: func(n int, _ request) answer {
		cursor := `"p2"`
		if n == 1 {
			cursor = "null"
		}
		return answer{status: 200, body: `{"conversations":[` + first + `],"next_cursor":` + cursor + `}`}
	}}
	client := serve(t, api, sluice.Options{})
	query := sluice.ConversationListQuery{Filter: sluice.Filter{Errors: sluice.WithError}, Limit: 1}
	n := 0
	for got, err := range client.AllConversations(context.Background(), query, sluice.Wait(time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
		if got.ConversationID != "c1" || got.Last.Sub(got.First) != time.Second || got.Events != 4 || got.Errors != 1 || got.ErrorRate != 0.25 ||
			!slices.Equal(got.EventNames, []string{"event_a", "event_b"}) || got.FirstInput != "hi" || got.LastOutput != "" {
			t.Errorf("got %+v", got)
		}
		n++
	}
	var requests []string
	for _, r := range api.got() {
		requests = append(requests, r.path+"?"+r.query+" "+r.header.Get("Prefer"))
	}
	want := []string{"/conversations?error=true&limit=1 wait=1", "/conversations?cursor=p2&error=true&limit=1 "}
	if n != 2 || !slices.Equal(requests, want) {
		t.Errorf("%d conversations by %q, want 2 by %q", n, requests, want)
	}
}

func TestAllEvents(t *testing.T) {
	api := &fakeAPI{answer: func(n int, _ request) answer {
		cursor := `"p2"`
		if n%2 == 1 {
			cursor = "null"
		}
		return answer{status: 200, body: `{"events":[` + storedEvent + `,` + storedEvent + `],"next_cursor":` + cursor + `}`}
	}}
	client := serve(t, api, sluice.Options{})
	events := client.AllEvents(context.Background(), sluice.EventsQuery{
		Filter: sluice.Filter{EventNames: []string{"event_a", "event_b"}}, Order: sluice.OldestFirst, Limit: 2,
	})
	for range 2 { // the sequence can be ranged over again
		n := 0
		for e, err := range events {
			if err != nil || e.ID != "order-1" {
				t.Fatalf("event %d is %v, %v", n, e, err)
			}
			n++
		}
		if n != 4 {
			t.Errorf("%d events, want 4", n)
		}
	}
	var queries []string
	for _, r := range api.got() {
		queries = append(queries, r.query)
	}
	one := []string{"event_name=event_a&event_name=event_b&limit=2&order=timestamp", "cursor=p2&event_name=event_a&event_name=event_b&limit=2&order=timestamp"}
	if want := append(one, one...); !slices.Equal(queries, want) {
		t.Errorf("asked %q, want %q", queries, want)
	}
}
