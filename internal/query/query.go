// Package query holds the questions that readers ask about events, and their
// answers, as plain values. The API asks them and the database answers; the two
// import this package, because neither may import the other.
package query

import "github.com/sluicehq/sluice/internal/event"

// Filter narrows a question of analytics. The zero value of a field does not filter.
type Filter struct {
	// SinceMicros and UntilMicros bound the timestamp in Unix microseconds:
	// since ≤ timestamp < until. Both are always set.
	SinceMicros, UntilMicros int64
	ConversationID           string
	EventName                string
	Metadata                 []MetadataFilter
}

// MetadataFilter matches events whose metadata has the top-level member Key
// with a string equal to Value, or with true, false or a number that Value
// spells. Numbers match in any spelling: 1.50 matches 1.5.
type MetadataFilter struct{ Key, Value string }

// ErrorCount is how many events there were, and how many of them were errors.
type ErrorCount struct {
	Events, Errors uint64
}

// Rate is errors per event, 0 without events.
func (c ErrorCount) Rate() float64 {
	if c.Events == 0 {
		return 0
	}
	return float64(c.Errors) / float64(c.Events)
}

// Latency asks for the latency quantiles of events that have a latency.
type Latency struct {
	Filter
	// Quantiles are the wanted levels, each in (0, 1).
	Quantiles                   []float64
	ByConversation, ByEventName bool
	// LimitRows bounds the rows; the highest first quantile comes first.
	LimitRows int
}

// LatencyRow has one group's quantiles, in milliseconds, in the order asked for.
type LatencyRow struct {
	// ConversationID and EventName are set where the question groups by them.
	ConversationID, EventName string
	Events                    uint64
	Quantiles                 []float64
}

// Order is what conversations are ranked by, highest first.
type Order uint8

// The orders.
const (
	OrderByErrorRate Order = iota
	OrderByErrors
	OrderByEvents
)

// Conversations asks for the top conversations.
type Conversations struct {
	Filter
	OrderBy Order
	// EventsMin leaves out conversations with fewer events.
	EventsMin uint64
	LimitRows int
}

// ConversationRow is one conversation within the filter's time.
type ConversationRow struct {
	ConversationID string
	ErrorCount
	// FirstMicros and LastMicros are the timestamps of its first and last event.
	FirstMicros, LastMicros int64
}

// TimeSeries asks for events, errors and latency quantiles per interval.
type TimeSeries struct {
	Filter
	// IntervalMicros is the length of a bucket. Buckets begin at multiples of it
	// since 1970.
	IntervalMicros int64
	Quantiles      []float64
}

// TimeSeriesRow is one bucket that has events. Quantiles are in milliseconds,
// and NaN where no event of the bucket has a latency.
type TimeSeriesRow struct {
	Micros int64
	ErrorCount
	Quantiles []float64
}

// Conversation asks for a page of a conversation's events, ordered by timestamp,
// then by id.
type Conversation struct {
	ConversationID string
	// After is the last event of the page before; nil asks for the first page.
	After          *event.ID
	LimitEvents    int
	WithEmbeddings bool
	// BytesMax bounds the memory of the page's events. A page ends early, with
	// Next set, before an event that does not fit. A first event that does not fit is
	// an [*event.LargeError]. Default: the storage's own bound.
	BytesMax int
}

// Page is a page of a conversation's events.
type Page struct {
	Events []event.Event
	// Next is the place to go on from; nil on the last page.
	Next *event.ID
	// Bytes is the memory of the events, at most Conversation.BytesMax.
	Bytes int
}
