package sluice_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func TestTrace(t *testing.T) {
	failure := errors.New("rate limited")
	for _, tt := range []struct {
		name string
		fn   func(ctx context.Context, span *sluice.Span) error
		want item // beside id, conversation and latency
		err  error
	}{
		{"success", func(_ context.Context, span *sluice.Span) error {
			span.SetInput("hi")
			span.SetOutput([]string{"ho"})
			span.SetConversationMetadata(map[string]any{"plan": "pro"})
			span.SetOutputEmbeddings([]float32{1})
			span.SetEventName("event_b")
			return nil
		}, item{"event_name": "event_b", "input": "hi"}, nil},
		{"failure", func(context.Context, *sluice.Span) error { return failure }, item{"event_name": "event_c", "error": "rate limited"}, failure},
		{"an error of its own", func(_ context.Context, span *sluice.Span) error {
			span.SetError("worse")
			return failure
		}, item{"event_name": "event_c", "error": "worse"}, failure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := new(fakeAPI)
				client := open(t, api, sluice.Options{TraceEventName: "event_c"})
				var span *sluice.Span
				id, err := client.Trace(t.Context(), "c1", func(ctx context.Context, s *sluice.Span) error {
					<-time.After(1500 * time.Millisecond)
					span = s
					return tt.fn(ctx, s)
				})
				span.SetInput("too late")
				if err != tt.err { //nolint:errorlint // unchanged
					t.Errorf("returned %v", err)
				}
				mustFlush(t, client)
				got := api.items()[0]
				tt.want["id"], tt.want["conversation_id"], tt.want["latency"] = id, "c1", 1500.0
				for name, want := range tt.want {
					if got[name] != want {
						t.Errorf("%s is %v, want %v", name, got[name], want)
					}
				}
				if tt.name == "success" && (got["output"] == nil || got["conversation_metadata"] == nil || got["output_embeddings"] == nil) {
					t.Errorf("the item is %v", got)
				}
				// The id has the time of the start: 2000-01-01T00:00:00Z in this test.
				if id[:13] != "00dc6acf-ac00" {
					t.Errorf("the id is %s", id)
				}
			})
		})
	}
}

func TestTraceOfAPanic(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	func() {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v", v)
			}
		}()
		_, _ = client.Trace(t.Context(), "c1", func(context.Context, *sluice.Span) error { panic("boom") })
		t.Error("the panic ended in Trace")
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = client.Trace(t.Context(), "c1", func(context.Context, *sluice.Span) error { runtime.Goexit(); return nil })
	}()
	<-done
	mustFlush(t, client)
	items := api.items()
	if len(items) != 2 || items[0]["error"] != "boom" || items[1]["error"] != "the function did not return" {
		t.Errorf("the items are %v", items)
	}
}

// Tracing never makes a call fail, and reports events that could not be queued.
func TestTraceThatCannotTrack(t *testing.T) {
	var reported errorLog
	client := open(t, new(fakeAPI), sluice.Options{OnError: reported.add})
	id, err := client.Trace(t.Context(), "", func(context.Context, *sluice.Span) error { return nil })
	if id != "" || err != nil {
		t.Errorf("returned %q, %v", id, err)
	}
	var refused *sluice.FieldError
	if errs := reported.all(); len(errs) != 1 || !errors.As(errs[0], &refused) || refused.Field != "conversation_id" {
		t.Errorf("reported %v", errs)
	}
}
