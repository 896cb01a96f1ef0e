package sluice

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Filter selects the events of a read: those that match all of its fields. An
// empty field does not filter.
type Filter struct {
	// Since is the earliest timestamp, inclusive. Until is the latest timestamp,
	// exclusive. By default, analytics queries are about the last 7 days, and lists
	// of events and conversations are about all times.
	Since, Until time.Time
	// ConversationID must be empty in a read of one conversation, which has the id as
	// an argument.
	ConversationID string
	// EventName and EventNames select events that have one of these names. There may
	// be up to 100.
	EventName  string
	EventNames []string
	// Errors selects events with an error, or without one. Default: both.
	Errors ErrorFilter
	// LatencyMin and LatencyMax bound the latency in milliseconds. Both bounds are
	// inclusive. If one is set, events without a latency do not match. See [Millis].
	LatencyMin, LatencyMax *float64
	// Metadata has members that conversation_metadata must have. A value matches a
	// string, or a number or boolean that is written like the value.
	Metadata map[string]string
	// Conditions have more conditions on members of conversation_metadata. Metadata
	// and Conditions may have up to 16 together.
	Conditions []Condition
}

// An ErrorFilter selects events by whether they have an error.
type ErrorFilter string

// The values of an [ErrorFilter].
const (
	WithError    ErrorFilter = "true"
	WithoutError ErrorFilter = "false"
)

// A Condition is a condition on one top-level member of an event's metadata.
type Condition struct {
	// Key is the name of the member.
	Key string
	// Op is how the member must compare with Value. Default [Equal].
	Op Comparison
	// Value is a text, or a number or boolean as JSON writes it. [Exists] and
	// [Missing] ignore it.
	Value string
}

// A Comparison is how a member of the metadata compares with a value.
//
// Integers are compared exactly, whatever their size, and other numbers as float64.
type Comparison string

// The values of a [Comparison].
const (
	// Equal matches a member that is the string Value, or the number or boolean that
	// is written like Value.
	Equal Comparison = "="
	// NotEqual matches every event that Equal does not match, and so events without
	// the member.
	NotEqual Comparison = "!="
	// Less, LessOrEqual, Greater and GreaterOrEqual compare a member that is a number
	// with the number Value. If Value is not a number, they compare a member that is a
	// string with Value, byte by byte.
	Less           Comparison = "<"
	LessOrEqual    Comparison = "<="
	Greater        Comparison = ">"
	GreaterOrEqual Comparison = ">="
	// Exists matches if the metadata has the member, whatever its value is. Missing
	// matches if the metadata does not have the member.
	Exists  Comparison = "exists"
	Missing Comparison = "missing"
)

// A parameter is a name and a value of a query string.
type parameter struct{ name, value string }

// fields returns the parameters of all fields but the conditions on metadata.
func (f *Filter) fields() []parameter {
	var all []parameter
	add := func(name, value string) {
		if value != "" {
			all = append(all, parameter{name, value})
		}
	}
	add("since", timeText(f.Since))
	add("until", timeText(f.Until))
	add("conversation_id", f.ConversationID)
	add("event_name", f.EventName)
	for _, name := range f.EventNames {
		all = append(all, parameter{"event_name", name})
	}
	add("error", string(f.Errors))
	add("latency_min", numberText(f.LatencyMin))
	add("latency_max", numberText(f.LatencyMax))
	return all
}

// conditions returns Metadata, in the order of its keys, and Conditions.
func (f *Filter) conditions() []Condition {
	conditions := make([]Condition, 0, len(f.Metadata)+len(f.Conditions))
	for _, key := range slices.Sorted(maps.Keys(f.Metadata)) {
		conditions = append(conditions, Condition{Key: key, Value: f.Metadata[key]})
	}
	return append(conditions, f.Conditions...)
}

// parameters returns the parameters of the filter. The error is a [*FieldError] for a
// condition that the API cannot express.
func (f *Filter) parameters() ([]parameter, error) {
	all := f.fields()
	for _, c := range f.conditions() {
		name, value, err := c.parameter()
		if err != nil {
			return nil, err
		}
		all = append(all, parameter{name, value})
	}
	return all, nil
}

// values returns the parameters of the filter. The error is that of parameters.
func (f *Filter) values() (url.Values, error) {
	all, err := f.parameters()
	if err != nil {
		return nil, err
	}
	values := make(url.Values)
	for _, p := range all {
		values.Add(p.name, p.value)
	}
	return values, nil
}

// members returns the filter as a JSON object of strings and lists of strings. The
// error is a [*FieldError] for a condition that the API cannot express.
func (f *Filter) members() (map[string]any, error) {
	all := f.fields()
	for _, c := range f.conditions() {
		name, value, err := c.member()
		if err != nil {
			return nil, err
		}
		all = append(all, parameter{name, value})
	}
	members := make(map[string]any)
	for _, p := range all {
		switch earlier := members[p.name].(type) {
		case nil:
			members[p.name] = p.value
		case string:
			members[p.name] = []string{earlier, p.value}
		case []string:
			members[p.name] = append(earlier, p.value)
		}
	}
	return members, nil
}

func timeText(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(timeParameter)
}

func numberText(n *float64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatFloat(*n, 'f', -1, 64)
}

const (
	metadataPrefix = "metadata."
	existsSuffix   = ".exists"
)

// parameter returns the condition as a parameter of the API.
//
// The API reads the comparison from the end of the name. If the parameter has no
// value, it also looks for the first comparison in the name, because metadata.KEY>5
// is a name without a value. A few keys and values would be read in another way, and
// parameter refuses them with a [*FieldError].
func (c *Condition) parameter() (name, value string, err error) {
	if c.Key == "" {
		return "", "", &FieldError{Field: "metadata", Reason: "has a condition without a key"}
	}
	name, value = metadataPrefix+c.Key, c.Value
	op, isMisread := c.Op, false
	switch op {
	case "", Equal:
		op = Equal
		isMisread = endsWithOperator(c.Key) || value == "" && hasOperator(c.Key) ||
			strings.HasSuffix(c.Key, existsSuffix) && (value == "true" || value == "false")
	case NotEqual, LessOrEqual, GreaterOrEqual:
		name += string(op)
	case Less, Greater:
		name, value = name+string(op)+value, ""
		isMisread = hasOperator(c.Key) || c.Value == "" || strings.HasPrefix(c.Value, "=") || endsWithOperator(c.Value)
	case Exists, Missing:
		name, value = name+existsSuffix, strconv.FormatBool(op == Exists)
	default:
		return "", "", &FieldError{Field: name, Reason: "has the unknown comparison " + strconv.Quote(string(op))}
	}
	if isMisread {
		reason := "cannot be compared by " + string(op) + " with this value, because the server would read the key or the value as another comparison"
		return "", "", &FieldError{Field: metadataPrefix + c.Key, Reason: reason}
	}
	return name, value, nil
}

// member returns the condition as a member of a filter in JSON. There, the value never
// becomes a part of the name, so only an Equal can be misread.
func (c *Condition) member() (name, value string, err error) {
	if c.Key != "" && (c.Op == Less || c.Op == Greater) {
		return metadataPrefix + c.Key + string(c.Op), c.Value, nil
	}
	return c.parameter()
}

// endsWithOperator reports whether the API reads the end of the text as a comparison.
func endsWithOperator(text string) bool {
	text = strings.TrimSuffix(text, "=")
	return text != "" && strings.Contains("!<>", text[len(text)-1:])
}

// hasOperator reports whether the API reads a part of the text as a comparison, if
// the parameter has no value.
func hasOperator(text string) bool {
	return strings.ContainsAny(text, "<>") || strings.Contains(text, "!=")
}
