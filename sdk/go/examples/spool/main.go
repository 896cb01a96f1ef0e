// Spool tracks events while the server cannot be reached, and lets the next
// client send them.
//
//	SLUICE_URL=http://127.0.0.1:8080 go run ./examples/spool
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
	dir, err := os.MkdirTemp("", "sluice-spool-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	// Nothing listens on port 1, so the events stay in the spool.
	offline, err := sluice.New(sluice.Options{URL: "http://127.0.0.1:1", SpoolDir: dir})
	if err != nil {
		return err
	}
	var ids []string
	for i := range 3 {
		id, err := offline.TrackEvent(ctx, sluice.Event{
			ConversationID: "field-9", EventName: "event_a", Input: fmt.Sprintf("reading %d", i),
		})
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	hurried, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	fmt.Fprintln(os.Stdout, offline.Close(hurried)) // 3 writes left

	client, err := sluice.New(sluice.Options{URL: os.Getenv("SLUICE_URL"), APIKey: os.Getenv("SLUICE_API_KEY"), SpoolDir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close(ctx)) }()
	for _, id := range ids {
		event, err := client.Event(ctx, id, sluice.Wait(10*time.Second))
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stdout, "%s is %s\n", event.ID, event.Input)
	}
	return nil
}
