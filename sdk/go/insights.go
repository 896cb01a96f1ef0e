package sluice

import (
	"context"
	"encoding/json"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A Measure is a number that [Client.Insights] computes of the events of a row: one of the
// constants, or sum, avg, min, max or a quantile such as p50, p95 or p99.9 of the latency
// or of a member of the metadata, such as "p95(latency)" and "sum(metadata.tokens)".
//
// A measure of a member uses only events in which the member is a number. The sum of
// integers of at most 64 bits is exact.
type Measure string

// The measures that count.
const (
	// CountEvents is the number of events, and CountErrors that of those with an error.
	CountEvents Measure = "events"
	CountErrors Measure = "errors"
	// ErrorRate is errors per event, 0 to 1.
	ErrorRate Measure = "error_rate"
	// CountConversations is the number of distinct conversations.
	CountConversations Measure = "conversations"
)

// An Interval is a length of time in the calendar of a time zone: a number and s, m, h, d,
// w (weeks from Monday) or mo (months), such as "15m" or one of the constants.
type Interval string

// Frequent intervals.
const (
	Hourly  Interval = "1h"
	Daily   Interval = "1d"
	Weekly  Interval = "1w"
	Monthly Interval = "1mo"
)

// A SortOrder is an order of rows.
type SortOrder string

// The values of a [SortOrder].
const (
	Ascending  SortOrder = "asc"
	Descending SortOrder = "desc"
)

// An InsightsQuery is the query of [Client.Insights].
type InsightsQuery struct {
	Filter
	// Measures has 1 to 16 measures.
	Measures []Measure
	// GroupBy has up to three groups. Default: all events are one group.
	GroupBy []Group
	// Interval is the length of the buckets of time, of which there may be 10,000 between
	// Since and Until. Days, weeks and months are those of TimeZone. Default: no buckets.
	Interval Interval
	// TimeZone is the name of a time zone, such as Europe/Berlin. Default UTC.
	TimeZone string
	// OrderBy is one of the measures, or "time" with an interval. Rows without a value
	// come last. Default: time with an interval, otherwise the first measure.
	OrderBy Measure
	// Order defaults to Ascending for time, and to Descending for a measure.
	Order SortOrder
	// Limit is the maximum number of rows, up to 10,000. Default 100; with an interval
	// 10,000.
	Limit int
}

// Insights are the rows of [Client.Insights].
type Insights struct {
	Rows []InsightsRow `json:"rows"`
	// Truncated is whether there are more rows than the limit.
	Truncated bool `json:"truncated"`
}

// GroupValues are the values by which the events of a row are grouped.
type GroupValues struct {
	// ConversationID and EventName are empty if the rows are not grouped by them.
	ConversationID string
	EventName      string
	// Metadata has the JSON value of each member of the metadata by which the rows are
	// grouped, by its key. The value is null in the group of the events without the
	// member.
	Metadata map[string]json.RawMessage
}

// An InsightsRow has the measures of one group of events in one bucket of time.
type InsightsRow struct {
	GroupValues
	// Time is the start of the bucket; zero without an interval.
	Time time.Time
	// Measures has the value of each measure, with all digits. A measure without a value,
	// such as the average of no numbers, is absent.
	Measures map[Measure]json.Number
}

// UnmarshalJSON decodes a row of the API.
func (r *InsightsRow) UnmarshalJSON(b []byte) error {
	*r = InsightsRow{Measures: make(map[Measure]json.Number)}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	for name, value := range members {
		if isGroup, err := r.take(name, value); isGroup || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if name == "time" {
			if err := json.Unmarshal(value, &r.Time); err != nil {
				return err
			}
			continue
		}
		var number *json.Number
		if err := json.Unmarshal(value, &number); err != nil {
			return err
		}
		if number != nil {
			r.Measures[Measure(name)] = *number
		}
	}
	return nil
}

// MarshalJSON encodes the row as the API does, without the measures that have no value.
func (r InsightsRow) MarshalJSON() ([]byte, error) {
	members := r.members()
	if !r.Time.IsZero() {
		members["time"] = r.Time
	}
	for name, value := range r.Measures {
		members[string(name)] = value
	}
	return json.Marshal(members)
}

// take decodes a member of a row, if it is the value of a group.
func (g *GroupValues) take(name string, value json.RawMessage) (isGroup bool, err error) {
	switch name {
	case "conversation_id":
		return true, json.Unmarshal(value, &g.ConversationID)
	case "event_name":
		return true, json.Unmarshal(value, &g.EventName)
	}
	key, ok := strings.CutPrefix(name, metadataPrefix)
	if !ok {
		return false, nil
	}
	if g.Metadata == nil {
		g.Metadata = make(map[string]json.RawMessage)
	}
	g.Metadata[key] = value
	return true, nil
}

// members returns the members that the groups have in a row of the API.
func (g *GroupValues) members() map[string]any {
	members := make(map[string]any)
	if g.ConversationID != "" {
		members["conversation_id"] = g.ConversationID
	}
	if g.EventName != "" {
		members["event_name"] = g.EventName
	}
	for key, value := range g.Metadata {
		members[metadataPrefix+key] = value
	}
	return members
}

// Insights computes measures of events, by group and by interval. Groups and intervals
// without events have no row. Without both there is exactly one row. The errors are those
// of [Client.Event].
func (c *Client) Insights(ctx context.Context, q InsightsQuery, opts ...ReadOption) (*Insights, error) {
	values, err := q.values()
	if err != nil {
		return nil, err
	}
	for _, measure := range q.Measures {
		values.Add("measure", string(measure))
	}
	addGroups(values, q.GroupBy)
	set(values, "interval", string(q.Interval))
	set(values, "tz", q.TimeZone)
	set(values, "order_by", string(q.OrderBy))
	set(values, "order", string(q.Order))
	setInt(values, "limit", q.Limit)
	insights := new(Insights)
	if err := c.get(ctx, "/analytics/insights", values, insights, opts); err != nil {
		return nil, err
	}
	return insights, nil
}

func addGroups(values url.Values, groups []Group) {
	for _, group := range groups {
		values.Add("group_by", string(group))
	}
}

// A Step selects the events of a step of [Client.Funnel], or of [Client.Retention]: those
// that have the name and match all other fields, which are as in [Filter].
type Step struct {
	EventName              string
	Errors                 ErrorFilter
	LatencyMin, LatencyMax *float64
	Metadata               map[string]string
	Conditions             []Condition
}

// text returns the step as the API writes it: the name and the filters, separated by
// semicolons. What has a meaning there is percent-encoded.
func (s *Step) text() (string, error) {
	filter := Filter{Errors: s.Errors, LatencyMin: s.LatencyMin, LatencyMax: s.LatencyMax, Metadata: s.Metadata, Conditions: s.Conditions}
	parameters, err := filter.parameters()
	if err != nil {
		return "", err
	}
	escape := strings.NewReplacer("%", "%25", ";", "%3B", "&", "%26", "+", "%2B", "=", "%3D")
	text := escape.Replace(s.EventName)
	for _, p := range parameters {
		text += ";" + escape.Replace(p.name) + "=" + escape.Replace(p.value)
	}
	return text, nil
}

// addStep adds a step to the parameters.
func addStep(values url.Values, name string, s *Step) error {
	text, err := s.text()
	if err != nil {
		return err
	}
	values.Add(name, text)
	return nil
}

// A FunnelQuery is the query of [Client.Funnel].
type FunnelQuery struct {
	// Filter selects the events of all steps.
	Filter
	// Steps has 2 to 10 steps, in their order.
	Steps []Step
	// Window is the longest time from the first to the last step, inclusive: a whole
	// number of seconds, up to 366 days. Default 24 hours.
	Window time.Duration
	// Per is what is counted: ByConversation, or the values of a member of the metadata,
	// such as ByMetadata("user"). Default ByConversation.
	Per Group
	// GroupBy breaks the answer down by a property of the first event of step 1. Default:
	// there is one row.
	GroupBy Group
	// Limit is the maximum number of rows, up to 10,000. Default 100.
	Limit int
}

// A Funnel has the rows of [Client.Funnel].
type Funnel struct {
	// Rows has the group with the most subjects first.
	Rows []FunnelRow `json:"rows"`
	// Truncated is whether there are more groups than the limit.
	Truncated bool `json:"truncated"`
}

// A FunnelRow has the counts of one group.
type FunnelRow struct {
	GroupValues
	// Steps has a count for each step.
	Steps []FunnelStep
}

// A FunnelStep says how many subjects reach a step.
type FunnelStep struct {
	EventName string
	Subjects  int64
	// Conversion is the share of the subjects of the first step, and
	// ConversionFromPrevious that of the step before, 0 to 1; NaN if there are none.
	Conversion             float64
	ConversionFromPrevious float64
	// MedianFromPrevious is the median time since the step before in milliseconds; NaN
	// for the first step, and if nobody reaches the step.
	MedianFromPrevious float64
}

// funnelStep is a [FunnelStep] in JSON.
type funnelStep struct {
	EventName              string   `json:"event_name"`
	Subjects               int64    `json:"subjects"`
	Conversion             *float64 `json:"conversion"`
	ConversionFromPrevious *float64 `json:"conversion_from_previous"`
	MedianFromPrevious     *float64 `json:"median_ms_from_previous"`
}

// UnmarshalJSON decodes a step of the API.
func (s *FunnelStep) UnmarshalJSON(b []byte) error {
	var step funnelStep
	if err := json.Unmarshal(b, &step); err != nil {
		return err
	}
	number := func(n *float64) float64 {
		if n == nil {
			return math.NaN()
		}
		return *n
	}
	*s = FunnelStep{
		EventName: step.EventName, Subjects: step.Subjects, Conversion: number(step.Conversion),
		ConversionFromPrevious: number(step.ConversionFromPrevious), MedianFromPrevious: number(step.MedianFromPrevious),
	}
	return nil
}

// MarshalJSON encodes the step as the API does.
func (s FunnelStep) MarshalJSON() ([]byte, error) {
	number := func(n float64) *float64 {
		if math.IsNaN(n) {
			return nil
		}
		return &n
	}
	return json.Marshal(funnelStep{s.EventName, s.Subjects, number(s.Conversion), number(s.ConversionFromPrevious), number(s.MedianFromPrevious)})
}

// UnmarshalJSON decodes a row of the API.
func (r *FunnelRow) UnmarshalJSON(b []byte) error {
	*r = FunnelRow{}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	for name, value := range members {
		if name == "steps" {
			if err := json.Unmarshal(value, &r.Steps); err != nil {
				return err
			}
		} else if _, err := r.take(name, value); err != nil {
			return err
		}
	}
	return nil
}

// MarshalJSON encodes the row as the API does.
func (r FunnelRow) MarshalJSON() ([]byte, error) {
	members := r.members()
	members["steps"] = r.Steps
	return json.Marshal(members)
}

// Funnel counts how many subjects (conversations, or what q.Per says) do the steps in
// their order within the window, and how fast. The errors are those of [Client.Event].
func (c *Client) Funnel(ctx context.Context, q FunnelQuery, opts ...ReadOption) (*Funnel, error) {
	if q.Window < 0 || q.Window%time.Second != 0 {
		return nil, &FieldError{Field: "window", Reason: "must be a whole number of seconds"}
	}
	values, err := q.values()
	if err != nil {
		return nil, err
	}
	for i := range q.Steps {
		if err := addStep(values, "step", &q.Steps[i]); err != nil {
			return nil, err
		}
	}
	if q.Window > 0 {
		values.Set("window", strconv.FormatInt(int64(q.Window/time.Second), 10)+"s")
	}
	set(values, "per", string(q.Per))
	set(values, "group_by", string(q.GroupBy))
	setInt(values, "limit", q.Limit)
	funnel := new(Funnel)
	if err := c.get(ctx, "/analytics/funnel", values, funnel, opts); err != nil {
		return nil, err
	}
	return funnel, nil
}

// A RetentionQuery is the query of [Client.Retention].
type RetentionQuery struct {
	// Filter selects the events of both steps.
	Filter
	// Did selects the first event, and Returned the later one. Returned defaults to Did.
	Did      Step
	Returned *Step
	// Interval is the length of a period, in days, weeks or months. At most 366 periods
	// may lie between Since and Until. Default Daily.
	Interval Interval
	// TimeZone is the name of a time zone, such as Europe/Berlin. Default UTC.
	TimeZone string
	// Per is what is counted, as in [FunnelQuery].
	Per Group
}

// A RetentionRow has the counts of the subjects that did something in one period.
type RetentionRow struct {
	// Time is the start of the period.
	Time time.Time `json:"time"`
	// Complete is whether the period has ended. Otherwise its count may still grow.
	Complete bool  `json:"complete"`
	Subjects int64 `json:"subjects"`
	// Returned counts those that returned in the period itself, and in each period after
	// it. Element i is about the i-th period after this one.
	Returned []int64 `json:"returned"`
}

// Retention counts, of the subjects (conversations, or what q.Per says) that did something
// in a period, how many return in that period and in those after it. There is a row for
// each period, in order of time. The errors are those of [Client.Event].
func (c *Client) Retention(ctx context.Context, q RetentionQuery, opts ...ReadOption) ([]RetentionRow, error) {
	values, err := q.values()
	if err != nil {
		return nil, err
	}
	if err := addStep(values, "did", &q.Did); err != nil {
		return nil, err
	}
	if q.Returned != nil {
		if err := addStep(values, "returned", q.Returned); err != nil {
			return nil, err
		}
	}
	set(values, "interval", string(q.Interval))
	set(values, "tz", q.TimeZone)
	set(values, "per", string(q.Per))
	return rows[RetentionRow](ctx, c, "/analytics/retention", values, opts)
}
