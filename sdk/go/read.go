package sluice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// readFor is how long a read is retried, without the time of its wait.
	readFor       = 30 * time.Second
	waitMin       = time.Second
	waitMax       = 30 * time.Second
	receiptsMax   = 100 // the server's limit for one request
	timeParameter = "2006-01-02T15:04:05.000000Z07:00"
)

// A ReadOption is an option of one read.
type ReadOption func(*readOptions)

type readOptions struct{ wait time.Duration }

// Wait makes a read see the earlier writes of this client. The read first flushes
// the queue, and then waits on the server until the flushed writes are applied,
// for at most d. d is 1 to 30 s, and is rounded up to whole seconds. If the wait
// times out, the read fails with an [*APIError] with the code not_yet_applied.
func Wait(d time.Duration) ReadOption {
	return func(o *readOptions) { o.wait = d }
}

// Event reads one event, with its embeddings. If there is no such event, the error
// is an [*APIError] with [CodeUnknownEvent].
//
// All reads are retried for up to 30 s, or until ctx ends, if the server cannot be
// reached or cannot answer. The error is that of the last attempt: an [*APIError],
// or an error of the network. A [*FieldError] and [ErrClosed] are returned at once.
func (c *Client) Event(ctx context.Context, id string, opts ...ReadOption) (*StoredEvent, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	event, values := new(StoredEvent), make(url.Values)
	if err := c.get(ctx, pathOf("/event", "/event/", id, "", values), values, event, opts); err != nil {
		return nil, err
	}
	return event, nil
}

// A ConversationQuery selects events of a conversation.
type ConversationQuery struct {
	Filter
	// Order defaults to OldestFirst.
	Order TimeOrder
	// Limit is the maximum number of events in a page, 1 to 1,000. Default 100.
	Limit int
	// Cursor is Page.NextCursor of the previous page, which must have had the same
	// filter and order. Default: the first page.
	Cursor string
	// Embeddings is whether the events have their embeddings. Default false.
	Embeddings bool
}

// Conversation reads one page of a conversation's events. The page of a
// conversation that does not exist is empty. The errors are those of
// [Client.Event].
func (c *Client) Conversation(ctx context.Context, id string, q ConversationQuery, opts ...ReadOption) (*Page, error) {
	if id == "" {
		return nil, &FieldError{Field: "conversation_id", Reason: "is required"}
	}
	if q.ConversationID != "" {
		return nil, &FieldError{Field: "conversation_id", Reason: "must be empty in the filter of a read of one conversation"}
	}
	values, err := (*EventsQuery)(&q).values()
	if err != nil {
		return nil, err
	}
	return c.eventPage(ctx, pathOf("/conversation/events", "/conversations/", id, "/events", values), values, opts)
}

// ConversationEvents iterates over all events of a conversation that match the filter,
// beginning at q.Cursor. It reads one page at a time; opts apply to the first page. It
// ends after the first error; the errors are those of [Client.Event].
func (c *Client) ConversationEvents(ctx context.Context, id string, q ConversationQuery, opts ...ReadOption) iter.Seq2[StoredEvent, error] {
	return over(q.Cursor, opts, func(cursor string, opts []ReadOption) ([]StoredEvent, string, error) {
		q := q
		q.Cursor = cursor
		page, err := c.Conversation(ctx, id, q, opts...)
		if err != nil {
			return nil, "", err
		}
		return page.Events, page.NextCursor, nil
	})
}

func set(values url.Values, name, value string) {
	if value != "" {
		values.Set(name, value)
	}
}

func setInt(values url.Values, name string, n int) {
	if n != 0 {
		values.Set(name, strconv.Itoa(n))
	}
}

// pathOf returns a path with the id in it. If the id has a slash or is "." or
// "..", it returns byID with the id as a query parameter, because proxies decode
// an escaped slash and resolve dots in a path.
func pathOf(byID, before, id, after string, values url.Values) string {
	if id == "." || id == ".." || strings.Contains(id, "/") {
		values.Set("id", id)
		return byID
	}
	return before + url.PathEscape(id) + after
}

// A question is the request of a read. Every read may be sent again, because it
// changes nothing.
type question struct {
	method, path string
	values       url.Values
	// body and contentType are empty for a GET. values is never nil.
	body        []byte
	contentType string
	// accept is the media type of an answer that is read while it comes.
	accept string
}

// get reads a resource into answer. It may add parameters to values.
func (c *Client) get(ctx context.Context, path string, values url.Values, answer any, opts []ReadOption) error {
	return c.read(ctx, question{method: http.MethodGet, path: path, values: values}, answer, opts)
}

// read asks the question, and decodes the answer, which is JSON. It may add parameters
// to the question's values.
func (c *Client) read(ctx context.Context, q question, answer any, opts []ReadOption) error {
	return c.ask(ctx, q, opts, func(ctx context.Context, wait time.Duration) (time.Duration, error) {
		return c.readOnce(ctx, q, wait, answer)
	})
}

// ask waits as the options say, and then tries until a try succeeds or readFor is over.
// A try gets a context that ends then, and returns how long the server asks to pause. The
// wait adds parameters to the question's values.
func (c *Client) ask(ctx context.Context, q question, opts []ReadOption, try func(ctx context.Context, wait time.Duration) (time.Duration, error)) error {
	if c.queue.isClosed() {
		return ErrClosed
	}
	var o readOptions
	for _, opt := range opts {
		opt(&o)
	}
	if o.wait != 0 && (o.wait < waitMin || o.wait > waitMax) {
		return &FieldError{Field: "wait", Reason: "must be 1 to 30 s"}
	}
	o.wait = (o.wait + time.Second - 1).Truncate(time.Second)
	ctx, cancel := context.WithTimeout(ctx, readFor+o.wait)
	defer cancel()
	if o.wait > 0 {
		if err := c.Flush(ctx); err != nil {
			return err
		}
		// The log hardly ever has more partitions than one request takes receipts. If
		// it has, all requests but the last only wait.
		receipts := c.receipts.all()
		for len(receipts) > receiptsMax {
			q.values["after"] = receipts[:receiptsMax]
			err := retry(ctx, func() (time.Duration, error) { return c.readOnce(ctx, q, o.wait, nil) })
			if err != nil && !hasCode(err, CodeUnknownEvent) {
				return err
			}
			receipts = receipts[receiptsMax:]
		}
		if len(receipts) > 0 {
			q.values["after"] = receipts
		}
	}
	return retry(ctx, func() (time.Duration, error) { return try(ctx, o.wait) })
}

// retry tries until a try succeeds or fails for good, or ctx, which has a deadline, is
// over.
func retry(ctx context.Context, try func() (time.Duration, error)) error {
	for failures := 0; ; failures++ {
		retryAfter, err := try()
		if err == nil || !retriable(err) || hasCode(err, codeNotYetApplied) {
			return err // the caller's wait timed out
		}
		pause := max(backoff(failures), retryAfter)
		if deadline, _ := ctx.Deadline(); ctx.Err() != nil || time.Until(deadline) < pause {
			return err
		}
		sleep(ctx, pause, nil)
	}
}

func (c *Client) newRequest(ctx context.Context, q question, wait time.Duration) (*http.Request, error) {
	target := c.opts.URL + q.path
	if len(q.values) > 0 {
		target += "?" + q.values.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, q.method, target, bytes.NewReader(q.body))
	if err != nil {
		return nil, err
	}
	if q.accept != "" {
		req.Header.Set("Accept", q.accept)
	}
	if q.contentType != "" {
		req.Header.Set("Content-Type", q.contentType)
	}
	if wait > 0 {
		req.Header.Set("Prefer", preferWait(wait))
	}
	return req, nil
}

// readOnce asks once, and decodes the answer unless answer is nil.
func (c *Client) readOnce(ctx context.Context, q question, wait time.Duration, answer any) (time.Duration, error) {
	req, err := c.newRequest(ctx, q, wait)
	if err != nil {
		return 0, err
	}
	got, err := c.do(req, c.opts.RequestTimeout+wait)
	if err != nil {
		return 0, err
	}
	if got.status >= 300 {
		return got.retryAfter, c.refused(got)
	}
	if answer != nil {
		if err := json.Unmarshal(got.body, answer); err != nil {
			return got.retryAfter, fmt.Errorf("%w: %w", errBadAnswer, err)
		}
	}
	c.observe(got.date, 0)
	return got.retryAfter, nil
}

// refused returns the error of an answer to a read whose status is not 2xx.
func (c *Client) refused(got *answer) error {
	err := got.err()
	if isSluices(err) {
		c.observe(got.date, 0)
	}
	return plain(err)
}

// open asks the question, and returns the body of the answer, which the caller closes.
// Only the beginning of the answer is retried. Afterwards a read of the body fails if
// nothing comes for [Options].RequestTimeout. It may add parameters to the question's
// values.
func (c *Client) open(ctx context.Context, q question, opts []ReadOption) (*body, error) {
	var opened *body
	err := c.ask(ctx, q, opts, func(asking context.Context, wait time.Duration) (time.Duration, error) {
		deadline, _ := asking.Deadline()
		var retryAfter time.Duration
		var err error
		opened, retryAfter, err = c.openOnce(ctx, q, wait, min(c.opts.RequestTimeout+wait, time.Until(deadline)))
		return retryAfter, err
	})
	return opened, err
}

// openOnce asks once. The answer must begin before the timeout.
func (c *Client) openOnce(ctx context.Context, q question, wait, timeout time.Duration) (*body, time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &body{ctx: ctx, cancel: cancel, timeout: c.opts.RequestTimeout}
	b.timer = time.AfterFunc(timeout, func() { cancel(errSilent) })
	req, err := c.newRequest(ctx, q, wait)
	if err != nil {
		_ = b.Close() // nothing is open
		return nil, 0, err
	}
	got, err := c.exchange(req)
	if err != nil {
		err = b.explain(err)
		_ = b.Close() // nothing is open
		return nil, 0, err
	}
	b.from = got.content
	if got.status >= 300 {
		defer func() { _ = b.Close() }() // the error is that of the status
		if err := got.readBody(); err != nil {
			return nil, 0, b.explain(err)
		}
		return nil, got.retryAfter, c.refused(got)
	}
	if got.mediaType != q.accept { // the page of a proxy
		_ = b.Close()
		return nil, got.retryAfter, errBadAnswer
	}
	b.timer.Stop()
	c.observe(got.date, 0)
	return b, 0, nil
}

// errSilent is the cause of the end of an answer of which nothing came for too long.
var errSilent = fmt.Errorf("sluice: the server sent nothing for too long: %w", context.DeadlineExceeded)

// A body is the body of an answer that is read while it comes.
type body struct {
	from    io.ReadCloser   // nil until the answer begins
	ctx     context.Context //nolint:containedctx // it is that of the request, which lasts as long as the body
	cancel  context.CancelCauseFunc
	timer   *time.Timer // runs while a read waits for the server
	timeout time.Duration
}

// Read reads from the answer. Its errors are [io.EOF] and those of the network.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.timeout)
	n, err := b.from.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF { //nolint:errorlint // the body returns io.EOF itself at its end
		err = fmt.Errorf("sluice: read the answer: %w", b.explain(err))
	}
	return n, err
}

// explain returns errSilent if that caused the error.
func (b *body) explain(err error) error {
	if cause := context.Cause(b.ctx); errors.Is(cause, errSilent) {
		return cause
	}
	return err
}

// Close ends the request.
func (b *body) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	if b.from == nil {
		return nil
	}
	return b.from.Close()
}

func hasCode(err error, code string) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Code == code
}
