// Package sluice is the client library of Sluice. It tracks the events of
// conversations, and reads them back.
//
//	client, err := sluice.New(sluice.Options{URL: "http://127.0.0.1:8080"})
//	if err != nil {
//		return err
//	}
//	defer client.Close(context.Background())
//
//	id, err := client.TrackEvent(ctx, sluice.Event{
//		ConversationID: "support-42",
//		EventName:      "event_a",
//		Latency:        sluice.Millis(took),
//		Input:          "Where is my order?",
//		Output:         "On its way: it arrives on Monday.",
//	})
//
// A call checks a write and queues it. A goroutine of the client sends the queue
// in batches, and retries a batch until the server has answered each of its
// writes. So a call never waits for the network, and never returns an error of
// the network: [Options].OnError is called for writes that the server refuses
// for good. [Client.Flush] waits for the answers. Writes of one event never
// overtake each other. The client mints the ids of events, so that a create that
// is sent twice is stored once.
//
// If the queue is full, writes wait for room, or fail with
// [Options].FailWhenFull. With [Options].SpoolDir, queued writes survive the
// process.
package sluice
