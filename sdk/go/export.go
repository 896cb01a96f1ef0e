package sluice

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"time"
)

const (
	exportBufferBytes = 64 << 10
	// exportLineBytesMax bounds a line of an export. An event takes a few MiB at most.
	exportLineBytesMax = 16 << 20
)

// An ExportQuery is the query of [Client.ExportEvents].
type ExportQuery struct {
	Filter
	// Embeddings is whether the events have their embeddings. Default false.
	Embeddings bool
	// Cursor is the id of an event; the export begins after it. Default: the first event.
	Cursor string
}

// ExportEvents iterates over all events that match the filter, in order of time, however
// many there are. It reads them from one answer while it comes, and holds one event at a
// time. If the answer breaks off, also because the loop takes too long for the server, it
// goes on after the last event. It ends after the first error; the errors are those of
// [Client.Event]. opts apply to the beginning. A break of the loop ends the request.
func (c *Client) ExportEvents(ctx context.Context, q ExportQuery, opts ...ReadOption) iter.Seq2[StoredEvent, error] {
	return func(yield func(StoredEvent, error) bool) {
		values, err := q.values()
		if err != nil {
			yield(StoredEvent{}, err)
			return
		}
		if q.Embeddings {
			values.Set("embeddings", "true")
		}
		set(values, "cursor", q.Cursor)
		e := export{client: c, values: values, opts: opts, yield: yield}
		if err := e.run(ctx); err != nil {
			yield(StoredEvent{}, err)
		}
	}
}

// An export is one iteration over exported events.
type export struct {
	client *Client
	values url.Values // the cursor follows the events
	opts   []ReadOption
	yield  func(StoredEvent, error) bool
	events int  // that were yielded
	left   bool // whether the caller has left the loop
}

// run reads answers until one is whole. An answer that breaks off is like a failed try of
// a read: tries without a new event end after readFor.
func (e *export) run(ctx context.Context) error {
	progress := time.Now()
	for failures := 0; ; failures++ {
		before := e.events
		err := e.answer(ctx)
		if err == nil || e.left || !errors.Is(err, errBrokenOff) {
			return err
		}
		if e.events > before {
			failures, progress = 0, time.Now()
		}
		pause := backoff(failures)
		if ctx.Err() != nil || time.Since(progress)+pause > readFor {
			return err
		}
		sleep(ctx, pause, nil)
	}
}

// errBrokenOff is wrapped by the error of an answer that began and is not whole.
var errBrokenOff = errors.New("the export broke off")

// answer yields the events of one answer.
func (e *export) answer(ctx context.Context) error {
	// The parameters of a wait are for the first request only.
	q := question{method: http.MethodGet, path: "/export", values: maps.Clone(e.values), accept: "application/x-ndjson"}
	body, err := e.client.open(ctx, q, e.opts)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }() // it is only read
	e.opts = nil
	in := bufio.NewReaderSize(body, exportBufferBytes)
	for !e.left {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var event StoredEvent
		if err := json.Unmarshal(line, &event); err != nil || event.ID == "" {
			return fmt.Errorf("%w: %w: a line is no event", errBadAnswer, errBrokenOff)
		}
		e.events++
		e.values.Set("cursor", event.ID)
		e.left = !e.yield(event, nil)
	}
	return nil
}

// readLine reads a line. The error is [io.EOF] at the end.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		switch {
		case len(line)+len(piece) > exportLineBytesMax:
			return nil, fmt.Errorf("%w: a line is longer than %d bytes", errBadAnswer, exportLineBytesMax)
		case err == nil && line == nil:
			return piece, nil
		case errors.Is(err, io.EOF) && len(line)+len(piece) > 0:
			return nil, fmt.Errorf("sluice: %w: %w", errBrokenOff, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("%w: %w", err, errBrokenOff)
		}
		line = append(line, piece...)
		if err == nil {
			return bytes.TrimSuffix(line, []byte("\n")), nil
		}
	}
}
