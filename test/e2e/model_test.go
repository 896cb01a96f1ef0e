package e2e_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// modelEvent is what an event has to be, by the file and the writes that were sent.
type modelEvent struct {
	id           string
	conversation string
	micros       int64
	fields       eventObject // the mutable ones; those that are null are absent
	deleted      bool

	// What the queries need of the fields.
	name    string
	failed  bool
	latency *float64
	plan    string
	vectors map[string][]float32
}

var (
	coreMembers      = []string{"event_name", "conversation_metadata", "error", "latency", "input", "output"}
	embeddingMembers = []string{"input_embeddings", "output_embeddings"}
	mutableMembers   = slices.Concat(coreMembers, embeddingMembers)
)

// newModelEvent is the event that a create makes. Its id is not known before the answer.
func newModelEvent(create eventObject) (*modelEvent, error) {
	e := &modelEvent{conversation: create.text("conversation_id"), fields: eventObject{}}
	var ms int64
	if err := json.Unmarshal(create["timestamp"], &ms); err != nil {
		return nil, fmt.Errorf("timestamp: %w", err)
	}
	e.micros = ms * 1000
	return e, e.apply(create)
}

// apply changes the fields that the write names; null clears, and so does an
// empty error. A deleted event stays what it is.
func (e *modelEvent) apply(change eventObject) error {
	if e.deleted {
		return nil
	}
	for _, m := range mutableMembers {
		value, named := change[m]
		if !named {
			continue
		}
		if text := string(value); text == "null" || m == "error" && text == `""` {
			delete(e.fields, m)
		} else {
			e.fields[m] = value
		}
	}
	return e.derive()
}

func (e *modelEvent) derive() error {
	e.name = e.fields.text("event_name")
	_, e.failed = e.fields["error"]
	e.latency, e.plan, e.vectors = nil, "", map[string][]float32{}
	if raw, ok := e.fields["latency"]; ok {
		if err := json.Unmarshal(raw, &e.latency); err != nil {
			return fmt.Errorf("latency: %w", err)
		}
	}
	if raw, ok := e.fields["conversation_metadata"]; ok {
		var metadata eventObject
		if err := json.Unmarshal(raw, &metadata); err != nil {
			return fmt.Errorf("conversation_metadata: %w", err)
		}
		e.plan = metadata.text("plan")
	}
	for _, m := range embeddingMembers {
		if raw, ok := e.fields[m]; ok {
			vector, err := parseVector(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", m, err)
			}
			e.vectors[m] = vector
		}
	}
	return nil
}

// parseVector reads an embedding: base64 of little-endian float32, or a JSON
// array of numbers.
func parseVector(raw json.RawMessage) ([]float32, error) {
	if raw[0] == '"' {
		var packed []byte
		if err := json.Unmarshal(raw, &packed); err != nil { // base64 is what JSON makes of bytes
			return nil, err
		}
		vector := make([]float32, len(packed)/4)
		for i := range vector {
			vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(packed[4*i:]))
		}
		return vector, nil
	}
	inner := bytes.TrimSuffix(bytes.TrimPrefix(raw, []byte{'['}), []byte{']'})
	var vector []float32
	for number := range bytes.SplitSeq(inner, []byte{','}) {
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(number)), 32)
		if err != nil {
			return nil, err
		}
		vector = append(vector, float32(v))
	}
	return vector, nil
}

func packVector(vector []float32) json.RawMessage {
	var packed []byte
	for _, v := range vector {
		packed = binary.LittleEndian.AppendUint32(packed, math.Float32bits(v))
	}
	return json.RawMessage(`"` + base64.StdEncoding.EncodeToString(packed) + `"`)
}

// numbers is the vector as a JSON array.
func numbers(vector []float32) json.RawMessage {
	b := []byte{'['}
	for i, v := range vector {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendFloat(b, float64(v), 'g', -1, 32)
	}
	return append(b, ']')
}

// differs says how the answered event differs from this one; nil if it does not.
func (e *modelEvent) differs(got eventObject, withEmbeddings bool) error {
	members := slices.Concat([]string{"id", "conversation_id", "timestamp"}, coreMembers)
	if withEmbeddings {
		members = append(members, embeddingMembers...)
	}
	for m := range got {
		if !slices.Contains(members, m) {
			return fmt.Errorf("event %s: has a member %s", e.id, m)
		}
	}
	for _, m := range members {
		raw, ok := got[m]
		if !ok {
			return fmt.Errorf("event %s: has no member %s", e.id, m)
		}
		if err := e.memberDiffers(m, raw, got); err != nil {
			return fmt.Errorf("event %s: %s: %w", e.id, m, err)
		}
	}
	return nil
}

func (e *modelEvent) memberDiffers(m string, raw json.RawMessage, got eventObject) error {
	switch m {
	case "id":
		return differ(got.text(m), e.id)
	case "conversation_id":
		return differ(got.text(m), e.conversation)
	case "timestamp":
		at, err := time.Parse(time.RFC3339Nano, got.text(m))
		if err != nil {
			return err
		}
		if _, offset := at.Zone(); offset != 0 {
			return fmt.Errorf("%s is not in UTC", got.text(m))
		}
		return differ(at.UnixMicro(), e.micros)
	}
	want, ok := e.fields[m]
	if !ok {
		return differ(string(raw), "null")
	}
	if vector, ok := e.vectors[m]; ok {
		answered, err := parseVector(raw)
		if err != nil {
			return err
		}
		if raw[0] != '[' {
			return fmt.Errorf("is not an array: %.40s", raw)
		}
		sameBits := func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }
		if !slices.EqualFunc(answered, vector, sameBits) {
			return fmt.Errorf("got %v, want %v", answered, vector)
		}
		return nil
	}
	if bytes.Equal(raw, want) {
		return nil
	}
	a, err := canonical(raw)
	if err != nil {
		return err
	}
	b, err := canonical(want)
	if err != nil {
		return err
	}
	return differ(a, b)
}

// canonical is the text of a JSON value in one form, whatever its spaces,
// escapes and order of members; numbers are compared as float64.
func canonical(raw json.RawMessage) (string, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", fmt.Errorf("%w: %.100s", err, raw)
	}
	b, err := json.Marshal(v)
	return string(b), err
}

func differ[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// model is the set of all events.
type model struct {
	events         []*modelEvent // in the file's order, which is that of time
	byConversation map[string][]*modelEvent
	conversations  []string // in order of their first event
	since, until   int64    // Unix microseconds: since ≤ every event < until
}

func newModel(events []*modelEvent) *model {
	m := &model{events: events, byConversation: map[string][]*modelEvent{}, since: math.MaxInt64}
	for _, e := range events {
		if m.byConversation[e.conversation] == nil {
			m.conversations = append(m.conversations, e.conversation)
		}
		m.byConversation[e.conversation] = append(m.byConversation[e.conversation], e)
		m.since, m.until = min(m.since, e.micros), max(m.until, e.micros+1)
	}
	for _, c := range m.byConversation {
		slices.SortStableFunc(c, func(a, b *modelEvent) int { return cmp.Compare(a.micros, b.micros) })
	}
	return m
}

// live are the events of a conversation that are not deleted, in time order.
func (m *model) live(conversation string) []*modelEvent {
	var events []*modelEvent
	for _, e := range m.byConversation[conversation] {
		if !e.deleted {
			events = append(events, e)
		}
	}
	return events
}

// filter is what narrows an analytics query.
type filter struct {
	since, until             int64 // Unix microseconds
	conversation, name, plan string
}

func (m *model) everything() filter { return filter{since: m.since, until: m.until} }

func (m *model) where(f filter) []*modelEvent {
	var events []*modelEvent
	for _, e := range m.events {
		if !e.deleted && e.micros >= f.since && e.micros < f.until &&
			(f.conversation == "" || e.conversation == f.conversation) &&
			(f.name == "" || e.name == f.name) && (f.plan == "" || e.plan == f.plan) {
			events = append(events, e)
		}
	}
	return events
}

func countFailed(events []*modelEvent) int {
	n := 0
	for _, e := range events {
		if e.failed {
			n++
		}
	}
	return n
}

// rate is errors per event.
func rate(failed, events int) float64 {
	if events == 0 {
		return 0
	}
	return float64(failed) / float64(events)
}

func latencies(events []*modelEvent) []float64 {
	var values []float64
	for _, e := range events {
		if e.latency != nil {
			values = append(values, *e.latency)
		}
	}
	slices.Sort(values)
	return values
}

// quantile is the value at place q·(n-1) of the sorted values, linear between neighbours.
func quantile(sorted []float64, q float64) float64 {
	place := q * float64(len(sorted)-1)
	low := int(place)
	if low+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[low] + (place-float64(low))*(sorted[low+1]-sorted[low])
}

// closeTo is equality within what the order of float operations may change.
func closeTo(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-9*max(math.Abs(a), math.Abs(b))
}
