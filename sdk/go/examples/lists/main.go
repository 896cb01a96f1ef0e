// Lists tracks a few events, and lists, searches and counts them by filters.
//
//	SLUICE_URL=http://127.0.0.1:8080 go run ./examples/lists
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() (err error) {
	ctx := context.Background()
	client, err := sluice.New(sluice.Options{URL: os.Getenv("SLUICE_URL"), APIKey: os.Getenv("SLUICE_API_KEY")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(ctx)) }()

	for tokens, failure := range map[int]string{200: "", 1500: "tool timeout", 3000: "tool timeout"} {
		_, err := client.TrackEvent(ctx, sluice.Event{
			ConversationID:       "lists-go",
			ConversationMetadata: map[string]any{"plan": "pro", "tokens": tokens},
			EventName:            "event_a",
			Input:                "Where is my order?",
			Error:                failure,
		})
		if err != nil {
			return err
		}
	}

	// The errors of the last hour that used many tokens, the newest first. Wait makes the list have the events above.
	expensive := sluice.Filter{
		Since:      time.Now().Add(-time.Hour),
		Errors:     sluice.WithError,
		Metadata:   map[string]string{"plan": "pro"},
		Conditions: []sluice.Condition{{Key: "tokens", Op: sluice.Greater, Value: "1000"}},
	}
	n := 0
	for event, err := range client.AllEvents(ctx, sluice.EventsQuery{Filter: expensive}, sluice.Wait(10*time.Second)) {
		if err != nil {
			return err
		}
		n++
		fmt.Fprintf(os.Stdout, "%s %s: %s\n", event.Timestamp.Format(time.RFC3339), event.ConversationID, event.Error)
	}
	if n < 2 {
		return fmt.Errorf("the list has %d events, want the two errors above", n)
	}

	// The conversations that had these errors, the one with the latest error first.
	list, err := client.ListConversations(ctx, sluice.ConversationListQuery{Filter: expensive, Limit: 20})
	if err != nil {
		return err
	}
	for _, c := range list.Conversations {
		fmt.Fprintf(os.Stdout, "%s: %d errors since %s, first asked %q\n", c.ConversationID, c.Errors, c.First.Format(time.RFC3339), c.FirstInput)
	}

	// Those of them that have all words of a text.
	found, err := client.Search(ctx, sluice.SearchQuery{Filter: expensive, Text: "order where"})
	if err != nil {
		return err
	}
	if len(found.Results) < 2 {
		return fmt.Errorf("the search found %d events, want the two errors above", len(found.Results))
	}

	// How many tokens each kind of error took.
	insights, err := client.Insights(ctx, sluice.InsightsQuery{
		Filter: expensive, Measures: []sluice.Measure{sluice.CountEvents, "sum(metadata.tokens)"}, GroupBy: []sluice.Group{sluice.ByEventName},
	})
	if err != nil {
		return err
	}
	for _, row := range insights.Rows {
		fmt.Fprintf(os.Stdout, "%s: %s events, %s tokens\n", row.EventName, row.Measures[sluice.CountEvents], row.Measures["sum(metadata.tokens)"])
	}
	return nil
}
