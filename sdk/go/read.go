package sluice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// get reads a resource into answer. It may add parameters to values.
func (c *Client) get(ctx context.Context, path string, values url.Values, answer any, opts []ReadOption) error {
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
	if o.wait == 0 {
		return c.tryGet(ctx, path+query(values, nil), 0, answer)
	}

	if err := c.Flush(ctx); err != nil {
		return err
	}
	// The log hardly ever has more partitions than one request takes receipts. If
	// it has, all requests but the last only wait.
	receipts := c.receipts.all()
	for len(receipts) > receiptsMax {
		err := c.tryGet(ctx, path+query(values, receipts[:receiptsMax]), o.wait, answer)
		if err != nil && !hasCode(err, CodeUnknownEvent) {
			return err
		}
		receipts = receipts[receiptsMax:]
	}
	return c.tryGet(ctx, path+query(values, receipts), o.wait, answer)
}

// query returns the query string with the parameters and the receipts to wait for.
func query(values url.Values, receipts []string) string {
	if len(receipts) > 0 {
		values["after"] = receipts
	}
	if len(values) == 0 {
		return ""
	}
	return "?" + values.Encode()
}

// tryGet sends the request with retries until it succeeds or readFor is over.
func (c *Client) tryGet(ctx context.Context, path string, wait time.Duration, answer any) error {
	for failures := 0; ; failures++ {
		retryAfter, err := c.getOnce(ctx, path, wait, answer)
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

func (c *Client) getOnce(ctx context.Context, path string, wait time.Duration, answer any) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.opts.URL+path, nil)
	if err != nil {
		return 0, err
	}
	if wait > 0 {
		req.Header.Set("Prefer", preferWait(wait))
	}
	got, err := c.do(req, c.opts.RequestTimeout+wait)
	if err != nil {
		return 0, err
	}
	if got.status >= 300 {
		err := got.err()
		if isSluices(err) {
			c.observe(got.date, 0)
		}
		return got.retryAfter, plain(err)
	}
	if err := json.Unmarshal(got.body, answer); err != nil {
		return got.retryAfter, fmt.Errorf("%w: %w", errBadAnswer, err)
	}
	c.observe(got.date, 0)
	return got.retryAfter, nil
}

func hasCode(err error, code string) bool {
	var refusal *APIError
	return errors.As(err, &refusal) && refusal.Code == code
}
