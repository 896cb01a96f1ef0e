package sluice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicehq/sluice/sdk/go/internal/id"
)

// A Span is a traced call. The fields that are set on it become the fields of the
// call's event. Its methods may be called concurrently. They have no effect after
// the call has ended.
type Span struct {
	start time.Time // has the monotonic time, for the latency
	id    string

	mu    sync.Mutex
	ended bool
	event Event
}

// newSpan begins a call.
func (c *Client) newSpan(conversationID string) *Span {
	start := time.Now()
	// The time is later than that of any call traced before.
	micros := id.Current().Time(start)
	return &Span{start: start, id: id.Current().Mint(conversationID, micros), event: Event{
		ConversationID: conversationID, EventName: c.opts.TraceEventName, Timestamp: time.UnixMicro(micros),
	}}
}

// EventID returns the id of the event, for later updates.
func (s *Span) EventID() string { return s.id }

// SetEventName replaces [Options].TraceEventName for this event.
func (s *Span) SetEventName(name string) { s.set(func(e *Event) { e.EventName = name }) }

// SetInput sets the event's input. The value is encoded at once, so that later
// changes to it do not show.
func (s *Span) SetInput(v any) {
	v = snapshot(v)
	s.set(func(e *Event) { e.Input = v })
}

// SetOutput sets the event's output. The value is encoded at once.
func (s *Span) SetOutput(v any) {
	v = snapshot(v)
	s.set(func(e *Event) { e.Output = v })
}

// SetConversationMetadata sets the event's metadata: a value that encodes as a
// JSON object of up to 16 KiB. The value is encoded at once.
func (s *Span) SetConversationMetadata(v any) {
	v = snapshot(v)
	if raw, ok := v.(json.RawMessage); ok && raw[0] != '{' && string(raw) != "null" {
		v = json.RawMessage(`{"value":` + string(raw) + "}") // metadata must be an object
	}
	s.set(func(e *Event) { e.ConversationMetadata = v })
}

// snapshot returns the encoding of a value as the value is now.
func snapshot(v any) any {
	if v == nil {
		return nil
	}
	e := newEncoder()
	_ = e.appendJSON(v) // fails only if strict
	return json.RawMessage(e.line)
}

// SetInputEmbeddings sets the embeddings of the input: 1 to 4,096 finite numbers.
func (s *Span) SetInputEmbeddings(v []float32) {
	v = slices.Clone(v)
	s.set(func(e *Event) { e.InputEmbeddings = v })
}

// SetOutputEmbeddings sets the embeddings of the output: 1 to 4,096 finite numbers.
func (s *Span) SetOutputEmbeddings(v []float32) {
	v = slices.Clone(v)
	s.set(func(e *Event) { e.OutputEmbeddings = v })
}

// SetError sets the event's error. It takes precedence over the error that the
// function returns.
func (s *Span) SetError(text string) { s.set(func(e *Event) { e.Error = text }) }

func (s *Span) set(set func(*Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		set(&s.event)
	}
}

// Trace calls fn and tracks one event of the conversation for the call. The event's
// timestamp is the start of the call, and its latency the duration in milliseconds.
// Its error is the error that fn returned or panicked with, unless fn sets one on
// the span. The other fields are those that fn sets on the span.
//
// Trace returns the event's id and the error of fn, unchanged; a panic of fn goes
// on. If the event cannot be queued, the call does not fail: eventID is empty, and
// [Options].OnError is called. [TraceSeq], [TraceSeq2] and [Client.TraceReader]
// trace calls that return a stream.
func (c *Client) Trace(ctx context.Context, conversationID string, fn func(ctx context.Context, span *Span) error) (eventID string, err error) {
	span := c.newSpan(conversationID)
	err = watch(func() error { return fn(ctx, span) }, func(failure string) {
		c.trackSpan(ctx, span, failure, time.Now())
	})
	if err != nil {
		return c.trackSpan(ctx, span, fmt.Sprint(err), time.Now()), err // fmt.Sprint survives an Error method that panics
	}
	return c.trackSpan(ctx, span, "", time.Now()), nil
}

// watch calls fn. If fn does not return, because it panics or ends the goroutine by
// runtime.Goexit, watch calls left with a description. A panic goes on.
func watch(fn func() error, left func(failure string)) error {
	returned := false
	defer func() {
		if returned {
			return
		}
		v := recover()
		if v == nil { // runtime.Goexit
			left("the function did not return")
			return
		}
		left(fmt.Sprint(v))
		panic(v)
	}()
	err := fn()
	returned = true
	return err
}

// trackSpan ends the span and tracks its event. The call ended at the time at.
func (c *Client) trackSpan(ctx context.Context, span *Span, failure string, at time.Time) (eventID string) {
	span.mu.Lock()
	span.ended = true
	event := span.event
	span.mu.Unlock()
	event.Latency = Millis(at.Sub(span.start))
	if event.Error == "" {
		event.Error = failure
	}
	id, err := c.track(ctx, &event, span.id, false)
	var refused *FieldError
	if errors.As(err, &refused) && strings.Contains(refused.Field, "_embeddings") {
		c.opts.Logger.Warn("the embeddings of a traced event are left out", slog.Any("error", err))
		event.InputEmbeddings, event.OutputEmbeddings = nil, nil
		id, err = c.track(ctx, &event, span.id, false)
	}
	if err != nil {
		c.report(WriteError{Op: OpCreate, Err: err})
	}
	return id
}
