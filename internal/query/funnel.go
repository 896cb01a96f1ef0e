package query

// Funnel asks how many subjects did a series of steps. A subject is a conversation, or a value of a
// member of the metadata.
//
// A subject reaches step n if it has events of the steps 1 to n in this order, the last of them at
// most the window after the first. Events are ordered by timestamp, then by id, and
// each is of one step of the series. If there are several such series, the one with the most steps counts,
// of these the one that ends first, and in it the latest events that make a series.
type Funnel struct {
	// Filter narrows the events of all steps.
	Filter
	// Steps choose the events of each step by what is not about their time or conversation.
	Steps        []Filter
	WindowMicros int64
	Subject      Subject
	// GroupBy groups the subjects by a property of their first event of step 1; nil does not
	// group them.
	GroupBy *Group
	// LimitRows bounds the groups. The one with the most subjects comes first, equal ones in
	// the order of their values.
	LimitRows int
	// BytesMax is Insights.BytesMax.
	BytesMax int
}

// Subject is what events are counted for: a conversation, or the value of the member of
// the metadata that MetadataKey names. Values are equal as for [ByMetadata]; events without the
// member, or with null, belong to no subject.
type Subject struct {
	MetadataKey string
}

// FunnelRow has the steps of one group.
type FunnelRow struct {
	// Group is a JSON value, empty if the question does not group.
	Group string
	Steps []FunnelStep
}

// FunnelStep is a step of a group.
type FunnelStep struct {
	// Subjects have reached the step.
	Subjects uint64
	// MedianMicros is the median time since the step before, NaN for the first step and without
	// subjects.
	MedianMicros float64
}
