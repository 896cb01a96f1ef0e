package sluice

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// An ErrorCount is the number of events and errors.
type ErrorCount struct {
	// EventName is the event name of the filter; empty if the filter has none or
	// several.
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
	values, err := f.values()
	if err != nil {
		return nil, err
	}
	count := new(ErrorCount)
	if err := c.get(ctx, "/analytics/errors", values, count, opts); err != nil {
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

// A Group is a field by which events are grouped: one of the constants, or [ByMetadata].
type Group string

// The groups that all queries with groups have.
const (
	ByConversation Group = "conversation"
	ByEventName    Group = "event_name"
)

// ByMetadata is the group by the values of a member of the metadata. [Client.Latency] does
// not have it.
func ByMetadata(key string) Group { return Group(metadataPrefix + key) }

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
	values, err := q.values()
	if err != nil {
		return nil, err
	}
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

// The orders of [Client.Conversations].
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
	values, err := q.values()
	if err != nil {
		return nil, err
	}
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
	values, err := q.values()
	if err != nil {
		return nil, err
	}
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

func setQuantiles(values url.Values, quantiles []float64) {
	for _, q := range quantiles {
		values.Add("q", strconv.FormatFloat(q, 'f', -1, 64))
	}
}
