package sluice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// Limit is the maximum number of events in a page, 1 to 1,000. Default 100.
	Limit int
	// Cursor is Page.NextCursor of the previous page. Default: the first page.
	Cursor string
	// Embeddings is whether the events have their embeddings. Default false.
	Embeddings bool
}

// A Page is one page of a conversation's events, in order of time.
type Page struct {
	Events []StoredEvent `json:"events"`
	// NextCursor is the cursor of the next page; empty on the last page.
	NextCursor string `json:"next_cursor"`
}

// Conversation reads one page of a conversation's events. The page of a
// conversation that does not exist is empty. The errors are those of
// [Client.Event].
func (c *Client) Conversation(ctx context.Context, id string, q ConversationQuery, opts ...ReadOption) (*Page, error) {
	if id == "" {
		return nil, &FieldError{Field: "conversation_id", Reason: "is required"}
	}
	values := make(url.Values)
	setInt(values, "limit", q.Limit)
	set(values, "cursor", q.Cursor)
	if q.Embeddings {
		values.Set("embeddings", "true")
	}
	page := new(Page)
	path := pathOf("/conversation/events", "/conversations/", id, "/events", values)
	if err := c.get(ctx, path, values, page, opts); err != nil {
		return nil, err
	}
	return page, nil
}

// ConversationEvents iterates over all events of a conversation, in order of time,
// beginning at q.Cursor. It reads one page at a time. It ends after the first
// error; the errors are those of [Client.Event].
func (c *Client) ConversationEvents(ctx context.Context, id string, q ConversationQuery, opts ...ReadOption) iter.Seq2[StoredEvent, error] {
	return func(yield func(StoredEvent, error) bool) {
		q, opts := q, opts // copies, so that the sequence can be ranged over again
		for {
			page, err := c.Conversation(ctx, id, q, opts...)
			if err != nil {
				yield(StoredEvent{}, err)
				return
			}
			for _, event := range page.Events {
				if !yield(event, nil) {
					return
				}
			}
			if page.NextCursor == "" {
				return
			}
			q.Cursor, opts = page.NextCursor, nil
		}
	}
}

// A Filter selects the events of an analytics query. An empty field does not
// filter.
type Filter struct {
	// Since is the earliest timestamp, inclusive; default 7 days ago. Until is the
	// latest timestamp, exclusive; default now.
	Since, Until   time.Time
	ConversationID string
	EventName      string
	// Metadata has up to 16 members that conversation_metadata must have. A value
	// matches a string, or a number or boolean that is written like the value.
	Metadata map[string]string
}

func (f *Filter) values() url.Values {
	values := make(url.Values)
	for name, at := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !at.IsZero() {
			values.Set(name, at.UTC().Format(timeParameter))
		}
	}
	set(values, "conversation_id", f.ConversationID)
	set(values, "event_name", f.EventName)
	for key, value := range f.Metadata {
		values.Set("metadata."+key, value)
	}
	return values
}

// An ErrorCount is the number of events and errors.
type ErrorCount struct {
	// EventName is the event name of the filter.
	EventName string `json:"event_name"`
	Events    int64  `json:"events"`
	Errors    int64  `json:"errors"`
	// ErrorRate is errors per event, 0 to 1; 0 without events.
	ErrorRate float64   `json:"error_rate"`
	Since     time.Time `json:"since"`
	Until     time.Time `json:"until"`
}

// Errors counts events and errors. The errors are those of [Client.Event].
func (c *Client) Errors(ctx context.Context, f Filter, opts ...ReadOption) (*ErrorCount, error) {
	count := new(ErrorCount)
	if err := c.get(ctx, "/analytics/errors", f.values(), count, opts); err != nil {
		return nil, err
	}
	return count, nil
}

// Quantiles has the latency in milliseconds of each quantile, NaN if no event has
// a latency.
type Quantiles map[float64]float64

// UnmarshalJSON decodes the JSON of the API.
func (q *Quantiles) UnmarshalJSON(b []byte) error {
	var members map[string]*float64
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	*q = make(Quantiles, len(members))
	for name, latency := range members {
		quantile, err := strconv.ParseFloat(name, 64)
		if err != nil {
			return fmt.Errorf("quantile %q: %w", name, err)
		}
		(*q)[quantile] = math.NaN()
		if latency != nil {
			(*q)[quantile] = *latency
		}
	}
	return nil
}

// MarshalJSON encodes the quantiles as the API does.
func (q Quantiles) MarshalJSON() ([]byte, error) {
	members := make(map[string]*float64, len(q))
	for quantile, latency := range q {
		name := strconv.FormatFloat(quantile, 'f', -1, 64)
		members[name] = nil
		if !math.IsNaN(latency) {
			members[name] = &latency
		}
	}
	return json.Marshal(members)
}

// A Group is a field by which latencies are grouped.
type Group string

const (
	ByConversation Group = "conversation"
	ByEventName    Group = "event_name"
)

// A LatencyQuery is the query of [Client.Latency].
type LatencyQuery struct {
	Filter
	// Quantiles has up to 16 quantiles, each above 0 and below 1. Rows are ranked
	// by the first. Default 0.95.
	Quantiles []float64
	// GroupBy has one or both of the groups. Default: both.
	GroupBy []Group
	// Limit is the maximum number of rows, up to 10,000. Default 100.
	Limit int
}

// A LatencyRow has the latencies of one group.
type LatencyRow struct {
	// ConversationID and EventName are empty if the rows are not grouped by them.
	ConversationID string    `json:"conversation_id"`
	EventName      string    `json:"event_name"`
	Events         int64     `json:"events"`
	Quantiles      Quantiles `json:"quantiles"`
}

// Latency reads latency quantiles in milliseconds for each group, the highest
// first. Only events that have a latency count. The errors are those of
// [Client.Event].
func (c *Client) Latency(ctx context.Context, q LatencyQuery, opts ...ReadOption) ([]LatencyRow, error) {
	values := q.values()
	setQuantiles(values, q.Quantiles)
	setInt(values, "limit", q.Limit)
	groups := make([]string, len(q.GroupBy))
	for i, group := range q.GroupBy {
		groups[i] = string(group)
	}
	set(values, "group_by", strings.Join(groups, ","))
	return rows[LatencyRow](ctx, c, "/analytics/latency", values, opts)
}

// An Order is the count by which conversations are ranked, the highest first.
type Order string

const (
	OrderByErrorRate Order = "error_rate"
	OrderByErrors    Order = "errors"
	OrderByEvents    Order = "events"
)

// A ConversationsQuery is the query of [Client.Conversations].
type ConversationsQuery struct {
	Filter
	// OrderBy defaults to OrderByErrorRate.
	OrderBy Order
	// MinEvents leaves out conversations with fewer events than this. Default 1.
	MinEvents int
	// Limit is the maximum number of rows, up to 10,000. Default 100.
	Limit int
}

// A ConversationRow has the counts of one conversation.
type ConversationRow struct {
	ConversationID string  `json:"conversation_id"`
	Events         int64   `json:"events"`
	Errors         int64   `json:"errors"`
	ErrorRate      float64 `json:"error_rate"`
	// First and Last are the timestamps of the first and the last counted event.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Conversations ranks conversations by q.OrderBy, the highest first. The errors
// are those of [Client.Event].
func (c *Client) Conversations(ctx context.Context, q ConversationsQuery, opts ...ReadOption) ([]ConversationRow, error) {
	values := q.values()
	set(values, "order_by", string(q.OrderBy))
	setInt(values, "min_events", q.MinEvents)
	setInt(values, "limit", q.Limit)
	return rows[ConversationRow](ctx, c, "/analytics/conversations", values, opts)
}

// A TimeSeriesQuery is the query of [Client.TimeSeries].
type TimeSeriesQuery struct {
	Filter
	// Interval is the length of an interval, a whole number of seconds. At most
	// 10,000 intervals may lie between Since and Until. Default one hour.
	Interval time.Duration
	// Quantiles has up to 16 quantiles, each above 0 and below 1. Default 0.95.
	Quantiles []float64
}

// A TimeSeriesRow has the counts of one interval.
type TimeSeriesRow struct {
	// Time is the start of the interval.
	Time      time.Time `json:"time"`
	Events    int64     `json:"events"`
	Errors    int64     `json:"errors"`
	ErrorRate float64   `json:"error_rate"`
	Quantiles Quantiles `json:"quantiles"`
}

// TimeSeries reads events, errors and latency quantiles per interval, in order of
// time. Intervals without events have no row. The errors are those of
// [Client.Event].
func (c *Client) TimeSeries(ctx context.Context, q TimeSeriesQuery, opts ...ReadOption) ([]TimeSeriesRow, error) {
	if q.Interval < 0 || q.Interval%time.Second != 0 {
		return nil, &FieldError{Field: "interval", Reason: "must be a whole number of seconds"}
	}
	values := q.values()
	setQuantiles(values, q.Quantiles)
	if q.Interval > 0 {
		values.Set("interval", strconv.FormatInt(int64(q.Interval/time.Second), 10)+"s")
	}
	return rows[TimeSeriesRow](ctx, c, "/analytics/timeseries", values, opts)
}

func rows[T any](ctx context.Context, c *Client, path string, values url.Values, opts []ReadOption) ([]T, error) {
	var answer struct{ Rows []T }
	err := c.get(ctx, path, values, &answer, opts)
	return answer.Rows, err
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

func setQuantiles(values url.Values, quantiles []float64) {
	for _, q := range quantiles {
		values.Add("q", strconv.FormatFloat(q, 'f', -1, 64))
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

// receipts has the last receipt of each partition that has writes of this client.
type receipts struct {
	mu   sync.Mutex
	last map[int]receipt
}

// A receipt is a place in the log. Its text is generation.partition.offset.
type receipt struct{ generation, partition, offset int }

func (r *receipts) add(text string) {
	var (
		next receipt
		errs [3]error
	)
	generation, rest, _ := strings.Cut(text, ".")
	partition, offset, _ := strings.Cut(rest, ".")
	next.generation, errs[0] = strconv.Atoi(generation)
	next.partition, errs[1] = strconv.Atoi(partition)
	next.offset, errs[2] = strconv.Atoi(offset)
	if errors.Join(errs[:]...) != nil {
		return // the format of a later server, which cannot be compared
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[int]receipt)
	}
	last, ok := r.last[next.partition]
	if !ok || next.generation > last.generation || next.generation == last.generation && next.offset > last.offset {
		r.last[next.partition] = next
	}
}

func (r *receipts) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	texts := make([]string, 0, len(r.last))
	for _, last := range r.last {
		texts = append(texts, fmt.Sprintf("%d.%d.%d", last.generation, last.partition, last.offset))
	}
	slices.Sort(texts)
	return texts
}
