package event_test

import (
	"errors"
	"math"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

// TestValidateStrayValues has writes that no record can hold.
func TestValidateStrayValues(t *testing.T) {
	id := event.MakeID(now.UnixMicro(), event.ConversationHash("c1"), 1)
	for _, c := range []struct {
		name  string
		alter func(w *event.Write)
		field string
	}{
		{"value of a field that is not set", func(w *event.Write) { w.Latency = 1 }, "latency"},
		{"NaN of a field that is not set", func(w *event.Write) { w.Latency = math.NaN() }, "latency"},
		{"data without kind", func(w *event.Write) { w.Input.Data = []byte("x") }, "input"},
		{"kind out of range", func(w *event.Write) {
			w.Set, w.Output = w.Set.With(event.FieldOutput), event.Content{Kind: 3}
		}, "output"},
		{"value beside null", func(w *event.Write) {
			w.Set, w.Null, w.Error = w.Set.With(event.FieldError), event.Fields(0).With(event.FieldError), "x"
		}, "error"},
		{"null of a field that is not set", func(w *event.Write) { w.Null = event.Fields(0).With(event.FieldError) }, ""},
		{"field out of range", func(w *event.Write) { w.Set |= 1 << 8 }, ""},
		{"merge patch of nothing", func(w *event.Write) { w.MergeMetadata = true }, "conversation_metadata"},
		{"merge patch that clears", func(w *event.Write) {
			metadata := event.Fields(0).With(event.FieldMetadata)
			w.MergeMetadata, w.Set, w.Null = true, w.Set|metadata, metadata
		}, "conversation_metadata"},
		{"op out of range", func(w *event.Write) { w.Op = 4 }, "op"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := event.Write{Op: event.OpUpdate, ID: id, Set: 1, EventName: "a"}
			if err := w.Validate(now); err != nil {
				t.Fatal(err)
			}
			c.alter(&w)
			var got *event.Error
			if err := w.Validate(now); !errors.As(err, &got) || got.Field != c.field {
				t.Errorf("got %v, want field %q", err, c.field)
			}
		})
	}
}
