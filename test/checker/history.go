// Package checker proves, from the log, that a Sluice has lost nothing, made
// nothing up and applied nothing twice. A [Load] makes writes and reads and
// records what came of each; at the end, what was acknowledged is looked up in
// the log, the log is folded in plain Go, and the tables are compared with
// that, row for row.
package checker

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// Outcome is what the answer to a write says of it.
type Outcome uint8

// The outcomes.
const (
	// Unknown: there was no answer, or a 5xx. The write is in the log or not.
	Unknown Outcome = iota
	// Acknowledged (202): it is in the log.
	Acknowledged
	// Applied (200 or 201, or 409 or 410 with NoEffect): the consumer has applied
	// it too.
	Applied
	// NotApplied (404, unknown_event): it is in the log, and the consumer refused it.
	NotApplied
	// Refused (any other 4xx): it is not in the log.
	Refused
)

// Write is one write of a history. What it sets is a function of its number,
// which each of the values has in it, so that a record or a row tells which
// writes made it.
type Write struct {
	// Number is from 1, and another one for each write.
	Number int
	Op     event.Op
	// ID is the public id; empty where the server is to mint it and has not
	// answered.
	ID string
	// Minted says that the server is to mint the id.
	Minted bool
	// ConversationID is set on creates.
	ConversationID string
	// Set and Null are as in [event.Write].
	Set, Null event.Fields

	// Call and Return are when the request was begun and its answer was there,
	// since the history's start.
	Call, Return time.Duration
	Outcome      Outcome
	Receipt      event.Receipt
	// NoEffect is why an applied write is said to have had no effect: id_taken or
	// event_deleted; empty where it is said to have had one.
	NoEffect event.Code
}

// Read is one GET /event/{id}.
type Read struct {
	ID           string
	Call, Return time.Duration
	// After is the receipt that the read was to wait for, zero for none.
	After event.Receipt
	// Found is false for a 404.
	Found bool
	// Seen is the number of the write that gave each field its value, 0 for null.
	Seen map[event.Field]int
}

// History is what was asked and answered. It is safe for concurrent use.
type History struct {
	// Foreign says of a public id that others than the history's loads write to
	// it. Their records are not looked for in the history; what the log makes of
	// them is checked all the same. Nil: of none. Set it before the history is
	// used.
	Foreign func(id string) bool

	start time.Time

	mu     sync.Mutex
	last   int
	writes []*Write
	reads  []*Read
}

// NewHistory begins an empty history.
func NewHistory() *History { return &History{start: time.Now()} }

func (h *History) foreign(id string) bool { return h.Foreign != nil && h.Foreign(id) }

// Now is the time since the history's start, by which its writes are dated.
func (h *History) Now() time.Duration { return time.Since(h.start) }

// number is the next write's.
func (h *History) number() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	return h.last
}

func (h *History) add(writes []*Write, r *Read) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes = append(h.writes, writes...)
	if r != nil {
		h.reads = append(h.reads, r)
	}
}

// Count is the number of writes with the outcome so far.
func (h *History) Count(o Outcome) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, w := range h.writes {
		if w.Outcome == o {
			n++
		}
	}
	return n
}

// AppliedSince is the number of writes that were begun at the time or later and
// have been applied.
func (h *History) AppliedSince(begun time.Duration) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, w := range h.writes {
		if w.Outcome == Applied && w.Call >= begun {
			n++
		}
	}
	return n
}

// Ended is the number of writes that have been answered, or given up.
func (h *History) Ended() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.writes)
}

// Summary says how much there is of what.
func (h *History) Summary() string {
	return fmt.Sprintf("%d writes: %d acknowledged, %d applied, %d not applied, %d refused, %d unknown; %d reads",
		h.Ended(), h.Count(Acknowledged), h.Count(Applied), h.Count(NotApplied), h.Count(Refused), h.Count(Unknown), len(h.reads))
}

// EventNames are those that the writes set; the server must accept them.
func EventNames() []string { return []string{"event_a", "event_b", "event_c"} }

// The fields of an event's rows in the two tables that are not its core row's.
const (
	contentFields   = event.Fields(1<<event.FieldInput | 1<<event.FieldOutput)
	embeddingFields = event.Fields(1<<event.FieldInputEmbeddings | 1<<event.FieldOutputEmbeddings)
	allFields       = event.CoreFields | contentFields | embeddingFields
)

// event is the write as the log must have it, but for the event's id.
func (w *Write) event() event.Write {
	e := event.Write{Op: w.Op, ConversationID: w.ConversationID, Set: w.Set, Null: w.Null}
	n := w.Number
	set := w.Set &^ w.Null
	if set.Has(event.FieldEventName) {
		e.EventName = EventNames()[n%3]
	}
	if set.Has(event.FieldMetadata) {
		e.Metadata = fmt.Appendf(nil, `{"write":"%d"}`, n)
	}
	if set.Has(event.FieldError) {
		e.Error = fmt.Sprintf("error of write %d", n)
	}
	if set.Has(event.FieldLatency) {
		e.Latency = float64(n)
	}
	for field, content := range map[event.Field]*event.Content{event.FieldInput: &e.Input, event.FieldOutput: &e.Output} {
		switch {
		case !set.Has(field):
		case n%2 == 0:
			*content = event.Content{Kind: event.KindString, Data: fmt.Appendf(nil, "%s of write %d", field, n)}
		default:
			*content = event.Content{Kind: event.KindJSON, Data: fmt.Appendf(nil, `[{"role":"user","write":"%s %d"}]`, field, n)}
		}
	}
	for field, vector := range map[event.Field]*event.Vector{
		event.FieldInputEmbeddings: &e.InputEmbeddings, event.FieldOutputEmbeddings: &e.OutputEmbeddings,
	} {
		if set.Has(field) {
			// Numbers below 2^24 are exact in a float32.
			*vector = event.VectorOf(float32(n), -float32(n), float32(field), 0.1)
		}
	}
	return e
}

// item is the write as an item of a batch; without its op, and without the id
// of another than a create, it is the body of a request.
func (w *Write) item(whole bool) []byte {
	e, n := w.event(), w.Number
	m := map[string]any{}
	if w.ID != "" && (whole || w.Op == event.OpCreate) {
		m["id"] = w.ID
	}
	if whole && w.Op != event.OpCreate {
		m["op"] = w.Op.String()
	}
	if w.Op == event.OpCreate {
		m["conversation_id"] = w.ConversationID
	}
	for field := event.FieldEventName; field <= event.FieldOutputEmbeddings; field++ {
		if !w.Set.Has(field) {
			continue
		}
		var value any
		switch {
		case w.Null.Has(field):
		case field == event.FieldEventName:
			value = e.EventName
		case field == event.FieldMetadata:
			value = json.RawMessage(e.Metadata)
		case field == event.FieldError:
			value = e.Error
		case field == event.FieldLatency:
			value = e.Latency
		case field == event.FieldInput:
			value = contentJSON(e.Input)
		case field == event.FieldOutput:
			value = contentJSON(e.Output)
		case field == event.FieldInputEmbeddings:
			value = vectorJSON(n, e.InputEmbeddings)
		case field == event.FieldOutputEmbeddings:
			value = vectorJSON(n, e.OutputEmbeddings)
		}
		m[field.String()] = value
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("BUG: " + err.Error()) // nothing in it can't be encoded
	}
	return b
}

func contentJSON(c event.Content) any {
	if c.Kind == event.KindString {
		return string(c.Data)
	}
	return json.RawMessage(c.Data)
}

// vectorJSON is the embedding in one of its two forms.
func vectorJSON(n int, v event.Vector) any {
	if n%2 == 0 {
		return []byte(v) // in JSON, base64
	}
	values := make([]float32, v.Dimensions())
	for i := range values {
		values[i] = v.At(i)
	}
	return values
}

// numberOf is the number of the write that gave a field of an event, as the API
// shows it, its value: 0 for null.
func numberOf(field event.Field, value json.RawMessage) (int, error) {
	text := string(value)
	if text == "null" || text == "" {
		return 0, nil
	}
	switch field {
	case event.FieldLatency:
		v, err := strconv.ParseFloat(text, 64)
		return int(v), err
	case event.FieldInputEmbeddings, event.FieldOutputEmbeddings:
		var v []float64
		if err := json.Unmarshal(value, &v); err != nil || len(v) == 0 {
			return 0, fmt.Errorf("%s is %.50s: %w", field, text, err)
		}
		return int(v[0]), nil
	case event.FieldEventName:
		return 0, nil // says nothing
	default:
		return numberIn(text)
	}
}

// numberIn is the number at the end of a text of ours.
func numberIn(text string) (int, error) {
	end := strings.LastIndexAny(text, "0123456789")
	start := strings.LastIndexFunc(text[:end+1], func(r rune) bool { return r < '0' || r > '9' })
	n, err := strconv.Atoi(text[start+1 : end+1])
	if err != nil {
		return 0, fmt.Errorf("%.50q has no number of a write: %w", text, err)
	}
	return n, nil
}

// recordNumber is the number of the write that a decoded record is of, 0 for a
// delete, which says nothing but its event's id.
func recordNumber(w *event.Write) (int, error) {
	set := w.Set &^ w.Null
	switch {
	case w.Op == event.OpDelete:
		return 0, nil
	case set.Has(event.FieldLatency):
		return int(math.Round(w.Latency)), nil
	case set.Has(event.FieldError):
		return numberIn(w.Error)
	case set.Has(event.FieldMetadata):
		return numberIn(string(w.Metadata))
	case set.Has(event.FieldInput):
		return numberIn(string(w.Input.Data))
	case set.Has(event.FieldOutput):
		return numberIn(string(w.Output.Data))
	case set.Has(event.FieldInputEmbeddings):
		return int(w.InputEmbeddings.At(0)), nil
	case set.Has(event.FieldOutputEmbeddings):
		return int(w.OutputEmbeddings.At(0)), nil
	}
	return 0, fmt.Errorf("a write that sets nothing")
}
