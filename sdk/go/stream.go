package sluice

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"
	"sync"
	"time"
)

const (
	// streamBytesMax is how many bytes of a stream are kept for its event. The rest
	// of a write is for the other fields.
	streamBytesMax = writeBytesMax - 64<<10
	// firstPart is the metadata key for the milliseconds from the start of the call
	// to the first part of its stream.
	firstPart = "time_to_first_token_ms"
)

// TraceSeq traces a function that returns a sequence. It returns a sequence that
// calls fn, yields the parts of fn's sequence, and tracks one event, as
// [Client.Trace] does. Each range over the sequence tracks an event of its own.
//
// The event's output, unless fn sets it, is the parts: strings joined, bytes
// joined and read as UTF-8 (base64 if they are not UTF-8), other parts as an
// array. About 1 MiB of the parts is kept; sluice_truncated states the original
// size. The latency is the time to the last part. time_to_first_token_ms in the
// metadata is the time to the first part.
//
// If the loop breaks off, or still runs when the client is closed, the event has
// the parts so far. The loop never waits for room in the queue: if there is none,
// [Options].OnError is called.
func TraceSeq[T any](ctx context.Context, c *Client, conversationID string, fn func(ctx context.Context, span *Span) iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		run(ctx, c, conversationID, func(s *stream) {
			seq := fn(ctx, s.span)
			if seq == nil {
				return
			}
			seq(func(part T) bool {
				s.add(part)
				return s.yield(func() bool { return yield(part) })
			})
		})
	}
}

// TraceSeq2 is [TraceSeq] for a sequence that yields parts and errors. The last
// error of the sequence becomes the event's error. A value that is yielded with an
// error is not a part.
func TraceSeq2[T any](ctx context.Context, c *Client, conversationID string, fn func(ctx context.Context, span *Span) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		run(ctx, c, conversationID, func(s *stream) {
			seq := fn(ctx, s.span)
			if seq == nil {
				return
			}
			seq(func(part T, err error) bool {
				if err != nil {
					s.fail(fmt.Sprint(err))
				} else {
					s.add(part)
				}
				return s.yield(func() bool { return yield(part, err) })
			})
		})
	}
}

// TraceReader traces a function that returns a reader, such as the body of an HTTP
// answer. It calls fn and returns a reader with the same content. It tracks one
// event, as [TraceSeq] does, when the reader is at its end, has failed, or is
// closed. The caller must close the reader. If fn returns an error, its event is
// tracked at once, and TraceReader returns the error.
func (c *Client) TraceReader(ctx context.Context, conversationID string, fn func(ctx context.Context, span *Span) (io.ReadCloser, error)) (io.ReadCloser, error) {
	s := c.newStream(ctx, conversationID)
	var reader io.ReadCloser
	err := s.call(func() (err error) {
		reader, err = fn(ctx, s.span)
		if err != nil {
			s.fail(fmt.Sprint(err))
		}
		return err
	})
	if err != nil || reader == nil {
		s.end()
		return reader, err
	}
	return &tracedReader{reader, s}, nil
}

// run calls fn with a new stream, and ends the stream when fn returns.
func run(ctx context.Context, c *Client, conversationID string, fn func(s *stream)) {
	s := c.newStream(ctx, conversationID)
	_ = s.call(func() error { fn(s); return nil }) // which returns none
	s.end()
}

// tracedReader is the reader that TraceReader returns.
type tracedReader struct {
	reader io.ReadCloser
	stream *stream
}

func (r *tracedReader) Read(p []byte) (int, error) {
	n, err := r.reader.Read(p)
	if n > 0 {
		r.stream.add(p[:n])
	}
	if err != nil {
		if err != io.EOF {
			r.stream.fail(fmt.Sprint(err))
		}
		r.stream.end()
	}
	return n, err
}

func (r *tracedReader) Close() error {
	err := r.reader.Close()
	r.stream.end()
	return err
}

// A stream is a traced call that returned a sequence or a reader. It ends with
// that. Its methods may be called concurrently.
type stream struct {
	client *Client
	ctx    context.Context // with its values alone
	span   *Span

	mu          sync.Mutex
	ended       bool
	yielding    bool
	first, last time.Time // when the first and the last part came; zero without parts
	failure     string
	failed      time.Time
	parts       parts
}

func (c *Client) newStream(ctx context.Context, conversationID string) *stream {
	// The reader of the stream must not wait for room in the queue.
	done, cancel := context.WithCancel(ctx)
	cancel()
	s := &stream{client: c, ctx: done, span: c.newSpan(conversationID)}
	c.streams.Store(s, struct{}{})
	return s
}

// call calls fn. A panic of fn becomes the stream's failure, and goes on.
func (s *stream) call(fn func() error) error {
	return watch(fn, func(failure string) {
		s.mu.Lock()
		mine := !s.yielding // whether fn did not return, and not the body of the caller's loop
		s.mu.Unlock()
		if mine {
			s.fail(failure)
		}
		s.end()
	})
}

// yield runs the body of the caller's loop.
func (s *stream) yield(body func() bool) bool {
	s.setYielding(true)
	goOn := body()
	s.setYielding(false)
	return goOn
}

func (s *stream) setYielding(yielding bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.yielding = yielding
}

// add records a part before the caller gets it.
func (s *stream) add(part any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.last = time.Now()
	if s.first.IsZero() {
		s.first = s.last
	}
	s.parts.add(part)
}

func (s *stream) fail(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure, s.failed = text, time.Now()
}

// end tracks the event with the parts so far. Only the first call has an effect.
func (s *stream) end() {
	if at, failure, first := s.finish(); first {
		s.client.trackSpan(s.ctx, s.span, failure, at)
	}
}

// finish ends the stream. It returns when the call ended, its failure, and whether
// this is the first call of finish.
func (s *stream) finish() (at time.Time, failure string, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return time.Time{}, "", false
	}
	s.ended = true
	s.client.streams.Delete(s)
	if at = s.last; s.failure != "" {
		at = s.failed
	}
	if at.IsZero() {
		at = time.Now()
	}
	if !s.first.IsZero() {
		output := s.parts.joined()
		s.span.set(func(e *Event) {
			if e.Output == nil {
				e.Output = output
			}
			e.ConversationMetadata = withFirst(e.ConversationMetadata, s.first.Sub(s.span.start))
		})
	}
	return at, s.failure, true
}

// withFirst adds the time to the first part to a span's metadata. It comes first,
// because metadata that is too large loses its last members. A member of the
// caller's with the same name wins.
func withFirst(metadata any, first time.Duration) any {
	member := strconv.AppendFloat([]byte(`{"`+firstPart+`":`), *Millis(first), 'g', -1, 64)
	raw, _ := metadata.(json.RawMessage)
	var own map[string]json.RawMessage
	if json.Unmarshal(raw, &own) != nil || len(own) == 0 {
		return json.RawMessage(append(member, '}'))
	}
	if own[firstPart] != nil {
		return metadata
	}
	return json.RawMessage(append(append(member, ','), raw[1:]...))
}
