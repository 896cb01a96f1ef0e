// Package sluice tracks events of conversations with Sluice, and reads them.
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
// A write is checked and queued by the call and sent by a goroutine of the
// client's, in batches that are tried again until the server has answered for
// each write. So a call never waits for the network, and its error never comes
// from there: what the server refuses for good is told to [Options].OnError.
// [Client.Flush] waits for the answers. Writes of one event never overtake each
// other, and as ids are minted by the client, one that is sent twice is one.
//
// A queue that is full makes writes wait, or fail if [Options].FailWhenFull is
// set. With [Options].SpoolDir, what is queued survives the process.
package sluice
