package sluice_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func Example() {
	ctx := context.Background()
	client, err := sluice.New(sluice.Options{URL: "http://127.0.0.1:8080", APIKey: os.Getenv("SLUICE_API_KEY")})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := client.Close(ctx); err != nil {
			log.Print(err)
		}
	}()

	id, err := client.TrackEvent(ctx, sluice.Event{
		ConversationID: "support-42",
		EventName:      "event_a",
		Latency:        sluice.Millis(412 * time.Millisecond),
		Input:          "Where is my order?",
		Output:         "On its way: it arrives on Monday.",
	})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(id)
}

func ExampleClient_UpdateEvent() {
	var client *sluice.Client // from New
	err := client.UpdateEvent(context.Background(), "order-7/turn-1", sluice.Fields{
		Output: "It is cancelled.",
		Clear:  sluice.ClearError | sluice.ClearLatency,
	})
	if err != nil {
		log.Print(err)
	}
}

func ExampleClient_Event() {
	var client *sluice.Client // from New
	event, err := client.Event(context.Background(), "order-7/turn-1", sluice.Wait(5*time.Second))
	var refusal *sluice.APIError
	if errors.As(err, &refusal) && refusal.Code == sluice.CodeUnknownEvent {
		fmt.Println("there is none")
		return
	}
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println(event.Timestamp, string(event.Output))
}

func ExampleClient_ConversationEvents() {
	var client *sluice.Client // from New
	for event, err := range client.ConversationEvents(context.Background(), "support-42", sluice.ConversationQuery{}) {
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Println(event.Timestamp, event.EventName)
	}
}

func ExampleClient_AllEvents() {
	var client *sluice.Client // from New
	failures := client.AllEvents(context.Background(), sluice.EventsQuery{Filter: sluice.Filter{
		Since:      time.Now().Add(-time.Hour),
		EventNames: []string{"event_a", "event_b"},
		Errors:     sluice.WithError,
		LatencyMin: sluice.Millis(2 * time.Second),
		Conditions: []sluice.Condition{
			{Key: "tokens", Op: sluice.Greater, Value: "1000"},
			{Key: "plan", Op: sluice.NotEqual, Value: "free"},
			{Key: "trial", Op: sluice.Missing},
		},
	}})
	for event, err := range failures { // the newest first
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Println(event.Timestamp, event.ConversationID, event.Error)
	}
}

func ExampleClient_ListConversations() {
	var client *sluice.Client // from New
	list, err := client.ListConversations(context.Background(), sluice.ConversationListQuery{Limit: 20})
	if err != nil {
		log.Print(err)
		return
	}
	for _, c := range list.Conversations { // the one with the latest event first
		fmt.Println(c.Last, c.ConversationID, c.Events, c.Errors, c.FirstInput)
	}
	fmt.Println("the next page begins at", list.NextCursor)
}

func ExampleClient_Latency() {
	var client *sluice.Client // from New
	rows, err := client.Latency(context.Background(), sluice.LatencyQuery{
		Filter:    sluice.Filter{Since: time.Now().Add(-24 * time.Hour), Metadata: map[string]string{"plan": "free"}},
		Quantiles: []float64{0.95, 0.5},
		GroupBy:   []sluice.Group{sluice.ByEventName},
	})
	if err != nil {
		log.Print(err)
		return
	}
	for _, row := range rows {
		fmt.Println(row.EventName, row.Events, row.Quantiles[0.95], row.Quantiles[0.5])
	}
}

func ExampleClient_SearchAll() {
	var client *sluice.Client // from New
	results := client.SearchAll(context.Background(), sluice.SearchQuery{
		Filter: sluice.Filter{Since: time.Now().Add(-24 * time.Hour)},
		Text:   `refund "not yet"`,
	})
	for result, err := range results { // the newest first
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Println(result.Event.Timestamp, result.Event.ConversationID, len(result.Highlights))
	}
}

func ExampleClient_ExportEvents() {
	var client *sluice.Client // from New
	var lines json.Encoder    // of a file
	for event, err := range client.ExportEvents(context.Background(), sluice.ExportQuery{Embeddings: true}) {
		if err != nil {
			log.Print(err)
			return
		}
		if err := lines.Encode(event); err != nil {
			log.Print(err)
			return
		}
	}
}

func ExampleClient_Insights() {
	var client *sluice.Client // from New
	insights, err := client.Insights(context.Background(), sluice.InsightsQuery{
		Measures: []sluice.Measure{sluice.CountEvents, "p95(latency)", "sum(metadata.tokens)"},
		GroupBy:  []sluice.Group{sluice.ByMetadata("plan")},
		Interval: sluice.Daily,
		TimeZone: "Europe/Berlin",
	})
	if err != nil {
		log.Print(err)
		return
	}
	for _, row := range insights.Rows {
		fmt.Println(row.Time, string(row.Metadata["plan"]), row.Measures[sluice.CountEvents], row.Measures["sum(metadata.tokens)"])
	}
}

func ExampleClient_Funnel() {
	var client *sluice.Client // from New
	funnel, err := client.Funnel(context.Background(), sluice.FunnelQuery{
		Steps: []sluice.Step{
			{EventName: "event_a"},
			{EventName: "event_b", Errors: sluice.WithoutError, Metadata: map[string]string{"plan": "pro"}},
		},
		Window: time.Hour,
		Per:    sluice.ByMetadata("user"),
	})
	if err != nil {
		log.Print(err)
		return
	}
	for _, step := range funnel.Rows[0].Steps {
		fmt.Println(step.EventName, step.Subjects, step.ConversionFromPrevious)
	}
}

func ExampleClient_WriteSQL() {
	var client *sluice.Client // from New
	err := client.WriteSQL(context.Background(), os.Stdout, sluice.CSV, "SELECT event_name, count() FROM live_events GROUP BY event_name")
	if err != nil {
		log.Print(err)
	}
}

func ExampleClient_Trace() {
	var (
		client   *sluice.Client // from New
		complete func(ctx context.Context, prompt string) (string, error)
		reply    string
	)
	id, err := client.Trace(context.Background(), "support-42", func(ctx context.Context, span *sluice.Span) error {
		span.SetInput("Where is my order?")
		var err error
		if reply, err = complete(ctx, "Where is my order?"); err != nil {
			return err
		}
		span.SetOutput(reply)
		return nil
	})
	fmt.Println(id, reply, err)
}

func ExampleOptions_onError() {
	options := sluice.Options{OnError: func(e sluice.WriteError) {
		var refusal *sluice.APIError
		if errors.As(e, &refusal) {
			log.Printf("%s of %s was refused: %s", e.Op, e.ID, refusal.Code)
		}
	}}
	if _, err := sluice.New(options); err != nil {
		log.Print(err)
	}
}
