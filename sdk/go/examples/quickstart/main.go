// Quickstart tracks an event, updates it, and reads it again.
//
//	SLUICE_URL=http://127.0.0.1:8080 go run ./examples/quickstart
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

	id, err := client.TrackEvent(ctx, sluice.Event{
		ConversationID:       "support-42",
		ConversationMetadata: map[string]any{"plan": "free"},
		EventName:            "event_a",
		Latency:              sluice.Millis(412 * time.Millisecond),
		Input:                []map[string]any{{"role": "user", "content": "Where is my order?"}},
		Error:                "tool timeout",
	})
	if err != nil {
		return err
	}
	err = client.UpdateEvent(ctx, id, sluice.Fields{Output: "On its way: it arrives on Monday.", Clear: sluice.ClearError})
	if err != nil {
		return err
	}

	// Wait until the writes above are applied, and read them.
	event, err := client.Event(ctx, id, sluice.Wait(10*time.Second))
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "%s of %s answers %s in %g ms\n", event.ID, event.ConversationID, event.Output, *event.Latency)

	n := 0
	for _, err := range client.ConversationEvents(ctx, "support-42", sluice.ConversationQuery{}) {
		if err != nil {
			return err
		}
		n++
	}
	count, err := client.Errors(ctx, sluice.Filter{EventName: "event_a", Since: time.Now().Add(-24 * time.Hour)})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "the conversation has %d events; %d of %d events of a day are errors\n", n, count.Errors, count.Events)
	return nil
}
