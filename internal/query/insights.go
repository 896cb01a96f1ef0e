package query

// Insights asks for measures of events, by group and by time.
type Insights struct {
	Filter
	// Measures are the columns of the answer, at least one.
	Measures []Measure
	// GroupBy are what events are grouped by; without any, all events are one group.
	GroupBy []Group
	// BucketSeconds are the beginnings of the buckets of time in Unix seconds, ascending. The
	// first is not after the filter's time. Nil asks for no buckets.
	BucketSeconds []int64
	// OrderBy is the index of the measure by which the rows are ordered, or
	// [OrderByTime]. Rows without a value come last in either direction; equal rows come in
	// the order of time, then of their groups.
	OrderBy int
	// Descending puts the highest value first.
	Descending bool
	LimitRows  int
	// BytesMax bounds the memory of the answer. An answer beyond it is
	// [event.ErrQueryTooLarge].
	BytesMax int
}

// OrderByTime orders the rows of [Insights] by their bucket.
const OrderByTime = -1

// Measure is a number that is made of all events of a group.
type Measure struct {
	Function Function
	// MetadataKey is the member of the metadata that [Sum] and the functions after it are about;
	// empty for the latency. Events whose member is not a number do not count, nor do events
	// without a latency.
	MetadataKey string
	// Level is the level of a [Quantile], in (0, 1).
	Level float64
}

// Function makes a number of events.
type Function uint8

// The functions.
const (
	CountEvents Function = iota
	CountErrors
	// ErrorRate is errors per event, 0 without events.
	ErrorRate
	// CountConversations counts the distinct conversations of the events.
	CountConversations
	// Sum is exact as long as all numbers are integers of at most 64 bits. Other numbers are
	// added as float64. The sum of nothing is 0.
	Sum
	// Average, Minimum, Maximum and Quantile compute with float64. They have no value where no
	// event counts. Quantiles are exact, and linear between neighbours.
	Average
	Minimum
	Maximum
	Quantile
)

// Group is what events are grouped by.
type Group struct {
	By GroupBy
	// MetadataKey is the member of the metadata for [ByMetadata].
	MetadataKey string
}

// GroupBy is a property of events.
type GroupBy uint8

// The properties.
const (
	ByEventName GroupBy = iota
	ByConversation
	// ByMetadata groups by the JSON value of a member. Numbers are equal by their value:
	// integers of at most 64 bits exactly, others as float64. A string is never equal to a
	// number. Events whose member is null or absent are the group null.
	ByMetadata
)

// InsightsRow is one group, in one bucket of time.
type InsightsRow struct {
	// Micros is the beginning of the bucket, 0 without buckets.
	Micros int64
	// Groups are JSON values, in the order of the question's groups.
	Groups []string
	// Measures are in the order of the question's measures.
	Measures []Number
}

// Number is the value of a measure.
type Number struct {
	// Float is NaN where there is no value.
	Float float64
	// Digits is the exact integer, if the number is known to be one.
	Digits string
}
