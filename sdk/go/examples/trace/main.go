// Trace tracks the calls of a language model with their latency, input, output and
// error.
//
//	SLUICE_URL=http://127.0.0.1:8080 go run ./examples/trace
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

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

var errRateLimited = errors.New("rate limited")

// complete stands in for the client of a model.
func complete(ctx context.Context, messages []message) (message, error) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
		return message{}, ctx.Err()
	}
	last := messages[len(messages)-1].Content
	if last == "" {
		return message{}, errRateLimited
	}
	return message{Role: "assistant", Content: "You said: " + last}, nil
}

// ask traces a call of complete.
func ask(ctx context.Context, client *sluice.Client, conversation string, messages []message) (reply message, id string, err error) {
	id, err = client.Trace(ctx, conversation, func(ctx context.Context, span *sluice.Span) error {
		span.SetInput(messages)
		var err error
		if reply, err = complete(ctx, messages); err != nil {
			return err // becomes the event's error, and ask returns it
		}
		span.SetOutput(reply)
		return nil
	})
	return reply, id, err
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() (err error) {
	ctx := context.Background()
	client, err := sluice.New(sluice.Options{
		URL: os.Getenv("SLUICE_URL"), APIKey: os.Getenv("SLUICE_API_KEY"), TraceEventName: "event_b",
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(ctx)) }()

	for _, question := range []string{"Hello!", ""} {
		_, id, err := ask(ctx, client, "chat-7", []message{{Role: "user", Content: question}})
		if err != nil && !errors.Is(err, errRateLimited) {
			return err
		}
		event, err := client.Event(ctx, id, sluice.Wait(10*time.Second))
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stdout, "%s took %.0f ms: output %s, error %q\n", event.ID, *event.Latency, event.Output, event.Error)
	}
	return nil
}
