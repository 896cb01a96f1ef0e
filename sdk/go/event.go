package sluice

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// Op is the kind of a write.
type Op string

// The operations of writes.
const (
	OpCreate Op = "create"
	OpUpdate Op = "update"
	OpPatch  Op = "patch"
	OpDelete Op = "delete"
)

// Limits that every call checks.
const (
	conversationIDBytesMax = 256
	eventNameBytesMax      = 128
	idBytesMax             = 128
	dimensionsMax          = 4096
	timestampAhead         = 24 * time.Hour
)

// An Event is an event to track. ConversationID and EventName are required. Other
// fields that are nil, empty or zero are left out.
type Event struct {
	// ID is an id of your own: 1 to 128 printable ASCII characters. Default: the
	// client mints an id. Set ID only if your system has ids already.
	ID string
	// ConversationID is the id of the event's conversation: 1 to 256 bytes of UTF-8.
	ConversationID string
	// ConversationMetadata is any value that encodes as a JSON object of up to
	// 16 KiB: a map, a struct, a [json.RawMessage]. Queries can filter by its
	// members.
	ConversationMetadata any
	// EventName is the kind of event, one of the names that the server allows:
	// 1 to 128 bytes.
	EventName string
	// Timestamp is when the event happened, from the year 2000 to 24 hours from
	// now. It is stored to the microsecond. Default: now.
	Timestamp time.Time
	// Error is the error message; empty for success.
	Error string
	// Latency is the duration in milliseconds, 0 or more; nil for none. See [Millis].
	Latency *float64
	// Input and Output are strings, or any value that encodes as JSON, such as a
	// list of messages. Invalid UTF-8 becomes U+FFFD.
	Input, Output any
	// InputEmbeddings and OutputEmbeddings have 1 to 4,096 finite numbers; nil
	// for none.
	InputEmbeddings, OutputEmbeddings []float32
}

// Fields are the fields that an update changes. A field that is not nil or empty
// gets the value, a field in Clear is cleared, and every other field keeps its
// value. The fields have the types and limits of [Event].
//
//	sluice.Fields{Output: reply, Latency: sluice.Millis(took), Clear: sluice.ClearError}
type Fields struct {
	ConversationMetadata              any
	EventName                         string
	Error                             string
	Latency                           *float64
	Input, Output                     any
	InputEmbeddings, OutputEmbeddings []float32
	// Clear is the set of fields to clear, joined by |.
	Clear FieldSet
}

// FieldSet is a set of fields that an update can clear.
type FieldSet uint8

// The fields that an update can clear.
const (
	ClearConversationMetadata FieldSet = 1 << iota
	ClearError
	ClearLatency
	ClearInput
	ClearOutput
	ClearInputEmbeddings
	ClearOutputEmbeddings
)

// Millis returns the duration as a latency in milliseconds.
func Millis(d time.Duration) *float64 {
	ms := float64(d) / float64(time.Millisecond)
	return &ms
}

// A StoredEvent is an event as the server stores it. Its JSON encoding is that of
// the API.
type StoredEvent struct {
	ID             string `json:"id"`
	ConversationID string `json:"conversation_id"`
	// ConversationMetadata, Input and Output are JSON; nil if absent.
	ConversationMetadata json.RawMessage `json:"conversation_metadata"`
	EventName            string          `json:"event_name"`
	// Timestamp is in UTC, to the microsecond.
	Timestamp time.Time `json:"timestamp"`
	// Error is empty if there was none.
	Error string `json:"error"`
	// Latency is in milliseconds; nil if absent.
	Latency *float64        `json:"latency"`
	Input   json.RawMessage `json:"input"`
	Output  json.RawMessage `json:"output"`
	// The embeddings are nil if absent, or if the read did not ask for them.
	InputEmbeddings  []float32 `json:"input_embeddings"`
	OutputEmbeddings []float32 `json:"output_embeddings"`
}

// UnmarshalJSON decodes an event of the API.
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

// MarshalJSON encodes the event as the API does.
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

// check returns a [*FieldError] for the first field that the server would refuse.
// The encoder checks the fields that need encoding.
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
		// A clock before 2000 is wrong, so it does not limit timestamps.
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
