// Package event defines what an event and a write of one are: their types,
// limits, ids, versions and validation. It knows nothing of HTTP, Kafka or
// ClickHouse.
package event

import "github.com/sluicehq/sluice/internal/jsonscan"

// Limits of one event's fields.
const (
	// ConversationIDBytesMax is the longest conversation_id, in bytes.
	ConversationIDBytesMax = 256
	// MetadataBytesMax is the longest conversation_metadata, in bytes of compact JSON.
	MetadataBytesMax = 16 << 10
	// EventNameBytesMax is the longest event_name, in bytes.
	EventNameBytesMax = 128
	// EmbeddingDimensionsMax is the most dimensions of one embedding.
	EmbeddingDimensionsMax = 4096
	// EmbeddingBytesMax is the longest embedding, in bytes of a [Vector].
	EmbeddingBytesMax = DimensionBytes * EmbeddingDimensionsMax
	// DepthMax is the deepest nesting of a request's JSON, the outermost value being 1.
	DepthMax = jsonscan.DepthMax
)

// Op is what a write does to its event.
type Op uint8

// The operations. The values are those of the Protobuf schema.
const (
	OpCreate Op = 1
	OpUpdate Op = 2
	OpDelete Op = 3
)

func (op Op) String() string {
	switch op {
	case OpCreate:
		return "create"
	case OpUpdate:
		return "update"
	case OpDelete:
		return "delete"
	}
	return "unknown"
}

// Class is the class of the versions that the operation writes.
func (op Op) Class() Class { return Class(op - OpCreate) }

// Field names one mutable field of an event.
type Field uint8

// The mutable fields.
const (
	FieldEventName Field = iota
	FieldMetadata
	FieldError
	FieldLatency
	FieldInput
	FieldOutput
	FieldInputEmbeddings
	FieldOutputEmbeddings
	fieldCount
)

// FieldCount is the number of mutable fields.
const FieldCount = int(fieldCount)

var fieldNames = [fieldCount]string{ //nolint:gochecknoglobals // a constant table
	"event_name", "conversation_metadata", "error", "latency",
	"input", "output", "input_embeddings", "output_embeddings",
}

func (f Field) String() string { return fieldNames[f] }

// Fields is a set of mutable fields.
type Fields uint16

// CoreFields are those that live in the core row.
const CoreFields = Fields(1<<FieldEventName | 1<<FieldMetadata | 1<<FieldError | 1<<FieldLatency)

// Has reports whether f is in the set.
func (s Fields) Has(f Field) bool { return s>>f&1 != 0 }

// With returns the set with f in it.
func (s Fields) With(f Field) Fields { return s | 1<<f }

// Kind is the JSON type that an input or output came in.
type Kind uint8

// The kinds. The values are those of the Protobuf schema and of the table's column.
const (
	// KindNull: no content. In an update, the field is cleared.
	KindNull Kind = 0
	// KindString: Data is the text itself.
	KindString Kind = 1
	// KindJSON: Data is any other JSON value, compact, as it came.
	KindJSON Kind = 2
)

// Content is an input or an output.
type Content struct {
	Kind Kind
	Data []byte
}

// Write is one create, update or delete, as it goes through the log. Byte
// slices may alias the buffer that they were decoded from.
type Write struct {
	Op Op
	// ID is the minted id. For a create by alias it is the internal id that the
	// event gets if this create wins; for other writes by alias it is zero.
	ID ID
	// Alias is the caller's own id, or empty.
	Alias string
	// Fresh says that the server minted ID for this very create, so that no
	// other write of the id can come before it in the log: a process mints no
	// id twice.
	Fresh bool
	// ConversationID is set on creates only.
	ConversationID string

	// Set are the fields that the write brings. On a create, fields outside of
	// it are null; on an update they keep their value.
	Set Fields
	// Null are those of Set that the write clears.
	Null Fields

	EventName string
	// Metadata is a compact JSON object.
	Metadata []byte
	// MergeMetadata says that Metadata is a merge patch (RFC 7396) of the metadata
	// that the event has. On updates only.
	MergeMetadata bool
	// Error is never empty when it is in Set and not in Null.
	Error string
	// Latency is in milliseconds.
	Latency          float64
	Input            Content
	Output           Content
	InputEmbeddings  Vector
	OutputEmbeddings Vector
}

// Ref is how the write names its event; its text is the key of the record.
func (w *Write) Ref() Ref {
	if w.Alias != "" {
		return Ref{Alias: w.Alias}
	}
	return Ref{ID: w.ID}
}

// NewDelete returns the delete of the event that ref names.
func NewDelete(ref Ref) Write {
	return Write{Op: OpDelete, ID: ref.ID, Alias: ref.Alias}
}

// Event is an event as readers see it.
type Event struct {
	// ID is the alias where there is one, otherwise the minted id.
	ID             string
	ConversationID string
	EventName      string
	// Micros is the timestamp in Unix microseconds.
	Micros int64
	// Metadata is a compact JSON object, or empty.
	Metadata string
	// Error is empty where there was none.
	Error string
	// Latency is in milliseconds; nil where it was not given.
	Latency          *float64
	Input            Content
	Output           Content
	InputEmbeddings  Vector
	OutputEmbeddings Vector
}
