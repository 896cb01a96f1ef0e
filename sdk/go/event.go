package sluice

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Op is what a write does.
type Op string

// The writes.
const (
	OpCreate Op = "create"
	OpUpdate Op = "update"
	OpPatch  Op = "patch"
	OpDelete Op = "delete"
)

// Limits that are checked by the call.
const (
	conversationIDBytesMax = 256
	eventNameBytesMax      = 128
	idBytesMax             = 128
	dimensionsMax          = 4096
	timestampAhead         = 24 * time.Hour
)

// An Event is an event to be tracked. ConversationID and EventName are
// required; what is nil, empty or zero of the rest is left out.
type Event struct {
	// ID is an id of your own, 1 to 128 printable ASCII characters. Default: one
	// is minted, which is what you want unless your system has ids already.
	ID string
	// ConversationID is 1 to 256 bytes of UTF-8.
	ConversationID string
	// ConversationMetadata is anything that encodes as a JSON object: a map, a
	// struct, a [json.RawMessage].
	ConversationMetadata any
	// EventName is one of those that the server is configured with.
	EventName string
	// Timestamp is from the year 2000 to a day ahead, kept to the microsecond.
	// Default now.
	Timestamp time.Time
	// Error says what went wrong; empty for nothing.
	Error string
	// Latency is in milliseconds, 0 or more; nil for none. See [Millis].
	Latency *float64
	// Input and Output are strings, or anything that encodes as JSON, such as a
	// list of messages. Invalid UTF-8 becomes U+FFFD.
	Input, Output any
	// InputEmbeddings and OutputEmbeddings have 1 to 4,096 finite numbers; nil
	// for none.
	InputEmbeddings, OutputEmbeddings []float32
}

// Fields are the fields that an update changes: those that are not nil or
// empty get the value, those that Clear names are emptied, and the rest stay
// as they are. The fields are those of [Event].
//
//	sluice.Fields{Output: reply, Latency: sluice.Millis(took), Clear: sluice.ClearError}
type Fields struct {
	ConversationMetadata              any
	EventName                         string
	Error                             string
	Latency                           *float64
	Input, Output                     any
	InputEmbeddings, OutputEmbeddings []float32
	// Clear has the fields to be emptied, joined by |.
	Clear FieldSet
}

// FieldSet is a set of fields that can be emptied.
type FieldSet uint8

// The fields that can be emptied.
const (
	ClearConversationMetadata FieldSet = 1 << iota
	ClearError
	ClearLatency
	ClearInput
	ClearOutput
	ClearInputEmbeddings
	ClearOutputEmbeddings
)

// Millis returns the duration as a latency.
func Millis(d time.Duration) *float64 {
	ms := float64(d) / float64(time.Millisecond)
	return &ms
}

// A StoredEvent is an event as the server has it. It encodes as the JSON that
// the API answers.
type StoredEvent struct {
	ID             string `json:"id"`
	ConversationID string `json:"conversation_id"`
	// ConversationMetadata, Input and Output are JSON; nil where there is none.
	ConversationMetadata json.RawMessage `json:"conversation_metadata"`
	EventName            string          `json:"event_name"`
	// Timestamp is in UTC, to the microsecond.
	Timestamp time.Time `json:"timestamp"`
	// Error is empty where there was none.
	Error string `json:"error"`
	// Latency is in milliseconds; nil where there is none.
	Latency *float64        `json:"latency"`
	Input   json.RawMessage `json:"input"`
	Output  json.RawMessage `json:"output"`
	// The embeddings are nil where there are none, or where they were not asked for.
	InputEmbeddings  []float32 `json:"input_embeddings"`
	OutputEmbeddings []float32 `json:"output_embeddings"`
}

// UnmarshalJSON reads the event as the API has it.
func (e *StoredEvent) UnmarshalJSON(b []byte) error {
	type plain StoredEvent
	if err := json.Unmarshal(b, (*plain)(e)); err != nil {
		return err
	}
	for _, raw := range []*json.RawMessage{&e.ConversationMetadata, &e.Input, &e.Output} {
		if string(*raw) == "null" {
			*raw = nil
		}
	}
	return nil
}

// MarshalJSON writes the event as the API has it.
func (e StoredEvent) MarshalJSON() ([]byte, error) {
	type plain StoredEvent
	shadowed := struct {
		plain
		Error *string `json:"error"`
	}{plain: plain(e)}
	if e.Error != "" {
		shadowed.Error = &e.Error
	}
	return json.Marshal(shadowed)
}

// check reports the first thing that the server would refuse, but for what is
// seen while encoding.
func (e *Event) check(now time.Time) error {
	switch {
	case e.ConversationID == "":
		return &FieldError{Field: "conversation_id", Reason: "is required"}
	case len(e.ConversationID) > conversationIDBytesMax:
		return &FieldError{Field: "conversation_id", Reason: "is longer than 256 bytes"}
	case !utf8.ValidString(e.ConversationID):
		return &FieldError{Field: "conversation_id", Reason: "is not valid UTF-8"}
	case e.EventName == "":
		return &FieldError{Field: "event_name", Reason: "is required"}
	case !e.Timestamp.IsZero() && (e.Timestamp.Before(timestampMin()) ||
		// A clock of before 2000 is wrong, and judges nothing.
		!now.Before(timestampMin()) && e.Timestamp.After(now.Add(timestampAhead))):
		return &FieldError{Field: "timestamp", Reason: "must be from the year 2000 to a day ahead"}
	}
	if err := checkEventName(e.EventName); err != nil {
		return err
	}
	if e.ID == "" {
		return nil
	}
	return checkID(e.ID)
}

func timestampMin() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

func checkEventName(name string) error {
	if len(name) > eventNameBytesMax {
		return &FieldError{Field: "event_name", Reason: "is longer than 128 bytes"}
	}
	if !utf8.ValidString(name) {
		return &FieldError{Field: "event_name", Reason: "is not valid UTF-8"}
	}
	return nil
}

func checkID(id string) error {
	if id == "" {
		return &FieldError{Field: "id", Reason: "is required"}
	}
	if len(id) > idBytesMax {
		return &FieldError{Field: "id", Reason: "is longer than 128 bytes"}
	}
	for i := range len(id) {
		if id[i] < ' ' || id[i] > '~' {
			return &FieldError{Field: "id", Reason: "must be printable ASCII"}
		}
	}
	return nil
}
