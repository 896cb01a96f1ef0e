package sluice_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// A streamCase is a case of streams.json.
type streamCase struct {
	Name         string
	Parts        []any
	Repeat       int
	Bytes        bool
	Take         *int
	Fails        string
	Metadata     map[string]any
	Output       any
	OutputBegins string `json:"output_begins"`
	OutputEnds   string `json:"output_ends"`
	OutputFirst  any    `json:"output_first"`
	OutputLast   any    `json:"output_last"`
	Error        any
}

// parts returns the parts that the stream yields.
func (c *streamCase) parts(t *testing.T) (parts []any) {
	t.Helper()
	for range max(c.Repeat, 1) {
		for _, part := range c.Parts {
			if c.Bytes {
				b, err := base64.StdEncoding.DecodeString(part.(string))
				if err != nil {
					t.Fatal(err)
				}
				part = b
			}
			parts = append(parts, part)
		}
	}
	return parts
}

func (c *streamCase) check(t *testing.T, api *fakeAPI, taken int) {
	t.Helper()
	items := api.items()
	if len(items) != 1 {
		t.Fatalf("%d items", len(items))
	}
	item := items[0]
	if item["error"] != c.Error {
		t.Errorf("the error is %v, want %v", item["error"], c.Error)
	}
	metadata, _ := item["conversation_metadata"].(map[string]any)
	first, timed := metadata["time_to_first_token_ms"].(float64)
	delete(metadata, "time_to_first_token_ms")
	if timed != (taken > 0) || timed && (first < 0 || first > item["latency"].(float64)) {
		t.Errorf("the first part after %v ms of %v", first, item["latency"])
	}
	if len(metadata) != len(c.Metadata) || len(metadata) > 0 && !reflect.DeepEqual(metadata, c.Metadata) {
		t.Errorf("the metadata is %v", metadata)
	}
	switch output := item["output"].(type) {
	case string:
		if c.OutputEnds != "" {
			if !strings.HasPrefix(output, c.OutputBegins) || !strings.HasSuffix(output, c.OutputEnds) {
				t.Errorf("the output is %.20s … %s", output, output[len(output)-50:])
			}
			return
		}
	case []any:
		if c.OutputLast != nil {
			if !reflect.DeepEqual(output[0], c.OutputFirst) || !reflect.DeepEqual(output[len(output)-1], c.OutputLast) {
				t.Errorf("the output is %v … %v", output[0], output[len(output)-1])
			}
			return
		}
	}
	if got, ok := item["output"]; ok != (taken > 0) || !reflect.DeepEqual(got, c.Output) {
		t.Errorf("the output is %v, want %v", got, c.Output)
	}
}

func streamCases(t *testing.T) []streamCase {
	t.Helper()
	var vectors struct{ Streams []streamCase }
	text, err := os.ReadFile("../spec/vectors/streams.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Streams) == 0 {
		t.Fatal("no vectors")
	}
	return vectors.Streams
}

func setMetadata(span *sluice.Span, metadata map[string]any) {
	if metadata != nil {
		span.SetConversationMetadata(metadata)
	}
}

func TestVectorsOfStreams(t *testing.T) {
	for _, c := range streamCases(t) {
		parts := c.parts(t)
		want := parts
		if c.Take != nil {
			want = parts[:*c.Take]
		}
		t.Run(c.Name, func(t *testing.T) {
			api := new(fakeAPI)
			client := open(t, api, sluice.Options{})
			stream := sluice.TraceSeq2(t.Context(), client, "c1", func(_ context.Context, span *sluice.Span) iter.Seq2[any, error] {
				setMetadata(span, c.Metadata)
				return func(yield func(any, error) bool) {
					for _, part := range parts {
						if c.Take != nil && *c.Take == 0 {
							break // which a loop in Go cannot do itself before the first part
						}
						if !yield(part, nil) {
							return
						}
					}
					if c.Fails != "" {
						yield(nil, errors.New(c.Fails))
					}
				}
			})
			var taken []any
			var failed error
			for part, err := range stream {
				if err != nil {
					failed = err
					continue
				}
				taken = append(taken, part)
				if len(taken) == len(want) && c.Take != nil {
					break
				}
			}
			if !slices.EqualFunc(taken, want, reflect.DeepEqual) || (failed != nil) != (c.Fails != "") {
				t.Errorf("passed %d parts of %d, and %v", len(taken), len(want), failed)
			}
			mustFlush(t, client)
			c.check(t, api, len(taken))
		})
		t.Run(c.Name+"/reader", func(t *testing.T) {
			var chunks [][]byte
			for _, part := range parts {
				switch part := part.(type) {
				case string:
					chunks = append(chunks, []byte(part))
				case []byte:
					chunks = append(chunks, part)
				default:
					t.Skip("a reader has bytes")
				}
			}
			if c.Name == "one empty text" {
				t.Skip("a reader has no empty part")
			}
			api := new(fakeAPI)
			client := open(t, api, sluice.Options{})
			source := &chunkReader{chunks: chunks, err: io.EOF}
			if c.Fails != "" {
				source.err = errors.New(c.Fails)
			}
			reader, err := client.TraceReader(t.Context(), "c1", func(_ context.Context, span *sluice.Span) (io.ReadCloser, error) {
				setMetadata(span, c.Metadata)
				return source, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			buf, taken := make([]byte, 100), 0
			for c.Take == nil || taken < *c.Take {
				n, err := reader.Read(buf)
				if err != nil {
					break
				}
				if string(buf[:n]) != string(chunks[taken]) {
					t.Errorf("read %q", buf[:n])
				}
				taken++
			}
			if err := reader.Close(); err != nil || !source.closed {
				t.Errorf("close: %v", err)
			}
			mustFlush(t, client)
			c.check(t, api, taken)
		})
	}
}

// A chunkReader returns one chunk per Read, and then err.
type chunkReader struct {
	chunks [][]byte
	err    error
	closed bool
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.chunks) == 0 {
		return 0, r.err
	}
	n := copy(p, r.chunks[0])
	r.chunks = r.chunks[1:]
	return n, nil
}

func (r *chunkReader) Close() error { r.closed = true; return nil }

type delta string

func TestTraceSeq(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := new(fakeAPI)
		client := open(t, api, sluice.Options{})
		var id string
		words := sluice.TraceSeq(t.Context(), client, "c1", func(_ context.Context, span *sluice.Span) iter.Seq[delta] {
			id = span.EventID()
			span.SetInput("question")
			return func(yield func(delta) bool) {
				for _, word := range []delta{"a", "b", "c"} {
					<-time.After(time.Second)
					if !yield(word) {
						return
					}
				}
			}
		})
		for word := range words {
			<-time.After(time.Minute) // of the caller's own
			if word == "b" {
				break
			}
		}
		mustFlush(t, client)
		item := api.items()[0]
		metadata, _ := item["conversation_metadata"].(map[string]any)
		if item["id"] != id || item["output"] != "ab" || item["input"] != "question" || item["latency"] != 62_000.0 || metadata["time_to_first_token_ms"] != 1000.0 {
			t.Errorf("the item is %v", item)
		}
		for range words {
		}
		mustFlush(t, client)
		if items := api.items(); len(items) != 2 || items[1]["id"] == items[0]["id"] || items[1]["output"] != "abc" {
			t.Errorf("the items are %v", items)
		}
	})
}

func TestTraceSeqThatPanics(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	for _, inLoop := range []bool{false, true} {
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("recovered %v", v)
				}
			}()
			for range sluice.TraceSeq(t.Context(), client, "c1", func(context.Context, *sluice.Span) iter.Seq[string] {
				return func(yield func(string) bool) {
					yield("a")
					panic("boom")
				}
			}) {
				if inLoop {
					panic("boom")
				}
			}
		}()
	}
	mustFlush(t, client)
	items := api.items()
	if len(items) != 2 || items[0]["error"] != "boom" || items[0]["output"] != "a" || items[1]["error"] != nil || items[1]["output"] != "a" {
		t.Errorf("the items are %v", items)
	}
}

func TestTraceReaderThatFailsAtOnce(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	failure := errors.New("rate limited")
	reader, err := client.TraceReader(t.Context(), "c1", func(context.Context, *sluice.Span) (io.ReadCloser, error) { return nil, failure })
	if reader != nil || err != failure { //nolint:errorlint // unchanged
		t.Errorf("returned %v, %v", reader, err)
	}
	mustFlush(t, client)
	if items := api.items(); len(items) != 1 || items[0]["error"] != "rate limited" {
		t.Errorf("the items are %v", items)
	}
}

// A stream that is still open is tracked with its parts so far.
func TestCloseWithAnOpenStream(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	reader, err := client.TraceReader(t.Context(), "c1", func(context.Context, *sluice.Span) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("abc")), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(reader, make([]byte, 2))
	if err := client.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(reader); string(rest) != "c" || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
	if items := api.items(); len(items) != 1 || items[0]["output"] != "ab" {
		t.Errorf("the items are %v", items)
	}
}

// An output that the function sets takes precedence, and a full queue does not block the loop.
func TestTraceSeqThatSetsItsOutput(t *testing.T) {
	api := new(fakeAPI)
	var reported errorLog
	client := open(t, api, sluice.Options{QueueWritesMax: 1, BatchAgeMax: time.Hour, OnError: reported.add})
	parts := func(_ context.Context, span *sluice.Span) iter.Seq[map[string]int] {
		return func(yield func(map[string]int) bool) {
			part := map[string]int{"n": 1}
			yield(part)
			part["n"] = 2 // which does not show
			span.SetConversationMetadata(map[string]any{"time_to_first_token_ms": "mine"})
		}
	}
	for range 2 {
		n := 0
		for range sluice.TraceSeq(t.Context(), client, "c1", parts) {
			n++
		}
		if n != 1 {
			t.Errorf("passed %d", n)
		}
	}
	mustFlush(t, client)
	if errs := reported.all(); len(errs) != 1 || !errors.Is(errs[0], sluice.ErrQueueFull) {
		t.Errorf("reported %v", errs)
	}
	item := api.items()[0]
	if fmt.Sprint(item["output"]) != "[map[n:1]]" || fmt.Sprint(item["conversation_metadata"]) != "map[time_to_first_token_ms:mine]" {
		t.Errorf("the item is %v", item)
	}
}
