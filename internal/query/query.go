// Package query holds the questions that readers ask about events, and their
// answers, as plain values. The API asks them and the database answers; the two
// import this package, because neither may import the other.
package query

import (
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
)

// MicrosMax bounds the time of a filter, in Unix microseconds. It is 2149-06-06, the last
// day of ClickHouse's Date, by which the tables are sorted. No event is as late,
// because a timestamp is at most a day ahead of the clock.
const MicrosMax = 5_662_224_000_000_000

// Filter narrows a question about many events. The zero value of a field does not
// filter, except for the times.
type Filter struct {
	// SinceMicros and UntilMicros bound the timestamp in Unix microseconds:
	// since ≤ timestamp < until. Both are always set. Times after MicrosMax are taken
	// for MicrosMax.
	SinceMicros, UntilMicros int64
	ConversationID           string
	// EventNames are the names of which an event has one.
	EventNames []string
	// Errors chooses events with an error, or without one.
	Errors Errors
	// LatencyMin and LatencyMax bound the latency in milliseconds; both bounds are
	// included. An event without a latency is outside of any bounds.
	LatencyMin, LatencyMax *float64
	// Metadata are conditions that must all hold.
	Metadata []MetadataFilter
}

// OfConversation returns the filter of all events of a conversation.
func OfConversation(id string) Filter {
	return Filter{ConversationID: id, UntilMicros: MicrosMax}
}

// Errors says which events a filter takes.
type Errors uint8

// The choices.
const (
	AnyErrors Errors = iota
	WithError
	WithoutError
)

// MetadataFilter is a condition on one top-level member of the metadata.
//
// Equal matches a string that is Value, and true, false or a number that Value spells
// in any way: 1.50 matches 1.5. NotEqual matches all that Equal does not, and so events
// without the member. The four others compare a number with the number that Value
// spells. If Value is not a number, they compare strings, byte by byte. Exists and Missing ask for
// the member alone; a member that is null exists.
//
// Integers are compared exactly, whatever their size, other numbers as float64.
type MetadataFilter struct {
	Key   string
	Op    Op
	Value string
}

// Op compares a member of the metadata with a value.
type Op uint8

// The operators.
const (
	Equal Op = iota
	NotEqual
	Less
	LessOrEqual
	Greater
	GreaterOrEqual
	Exists
	Missing
)

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

// List asks for a page of events, ordered by timestamp, then by id.
type List struct {
	Filter
	// Newest asks for the newest events first.
	Newest bool
	// After is the last event of the page before; nil asks for the first page.
	After          *event.ID
	LimitEvents    int
	WithEmbeddings bool
	// BytesMax bounds the memory of the page's events. A page ends early, with
	// Next set, before an event that does not fit. A first event that does not fit is
	// an [*event.LargeError]. Default: the storage's own bound.
	BytesMax int
}

// Page is a page of a list of events.
type Page struct {
	Events []event.Event
	// Next is the place to go on from; nil on the last page.
	Next *event.ID
	// Bytes is the memory of the events, at most List.BytesMax.
	Bytes int
}

const (
	// ExportsMax is how many exports are read at once.
	ExportsMax = 2
	// ExportBytes bounds the memory of an export, besides the events that it has returned.
	ExportBytes = 4 << 20
)

// Export asks for all events of a filter, ordered by timestamp, then by id.
type Export struct {
	Filter
	// After is the event after which the export goes on; nil begins with the first one.
	After          *event.ID
	WithEmbeddings bool
}

// Exported is an event of an export.
type Exported struct {
	// Key locates the event.
	Key event.ID
	// Event has nothing but its ID if LargeBytes is set.
	Event event.Event
	// LargeBytes is about the size of an event that is too large to be in the stream, and
	// must be read by its key.
	LargeBytes int
}

// ConversationList asks for the conversations that have events of the filter, the
// one with the latest event first.
type ConversationList struct {
	Filter
	// After is the last conversation of the page before; nil asks for the first page.
	After     *ConversationPlace
	LimitRows int
	// PreviewChars bounds the characters of each preview.
	PreviewChars int
}

// ConversationPlace is a place in a list of conversations.
type ConversationPlace struct {
	// LastMicros is the timestamp of the conversation's last event.
	LastMicros     int64
	ConversationID string
}

// ConversationSummary is one conversation of a list. All of it is about the events of
// the filter alone.
type ConversationSummary struct {
	ConversationID string
	ErrorCount
	// FirstMicros and LastMicros are the timestamps of its first and last event.
	FirstMicros, LastMicros int64
	// EventNames are in alphabetical order.
	EventNames []string
	// FirstInput and LastOutput are the beginnings of the first input among its first
	// events, and of the last output among its last events; empty where there is none.
	FirstInput, LastOutput string
}

// TextSearch asks for the newest events in which a text is found.
type TextSearch struct {
	Filter
	Text fulltext.Query
	// Fields are searched, each on its own: all phrases must be in one of them.
	Fields SearchFields
	// After is the last event of the page before; nil asks for the first page.
	After       *event.ID
	LimitEvents int
	// BytesMax bounds the memory of the hits' events, as in List.
	BytesMax int
}

// SearchFields are the fields of an event that are searched.
type SearchFields struct{ Input, Output, Error bool }

// Hits is a page of what was found, best first.
type Hits struct {
	Hits []Hit
	// Next is the place to go on from; nil on the last page.
	Next *event.ID
	// Bytes is the memory of the events, at most the BytesMax of the search.
	Bytes int
}

// Hit is an event that was found.
type Hit struct {
	Event event.Event
	// Score is higher for a better hit.
	Score      float64
	Highlights []Highlight
}

// Highlight is a piece of a field's text with the places of the words that were found.
type Highlight struct {
	Field string
	Text  string
	// Spans are places in Text, in bytes.
	Spans []fulltext.Span
}

// SimilarSearch asks for the events with the embeddings nearest to a vector, by cosine
// similarity. Only vectors with as many dimensions are compared.
type SimilarSearch struct {
	Filter
	Vector []float32
	// Input and Output say which embeddings are compared. If both are, the nearer one
	// of an event counts.
	Input, Output bool
	// Except is left out; the zero value leaves out none.
	Except event.Ref
	// Exact has all vectors of the time range compared, however many there are.
	Exact       bool
	LimitEvents int
	// BytesMax bounds the memory of the hits' events, as in List.
	BytesMax int
}
