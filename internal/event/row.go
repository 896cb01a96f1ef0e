package event

import "errors"

// ErrRejected is what the storage wraps when it refuses a row for what is in
// it, so that trying again cannot help. Every other error of the storage is
// one of the infrastructure, and is retried.
var ErrRejected = errors.New("rejected by the storage")

// ErrTooExpensive is what the storage wraps when a question took more time or
// memory than it is worth. Nothing is wrong with the storage, and asking the same
// again is expected to end the same way.
var ErrTooExpensive = errors.New("the question takes too much of the storage")

// ErrQueryTooLarge and ErrQueryTimeout are what the storage wraps when a query of
// a reader took more memory or rows, or longer, than one query may. Asking the
// same again is expected to end the same way. Neither is wrapped where the
// storage lacks memory or time because of others, or does not answer.
var (
	ErrQueryTooLarge = errors.New("the query takes more memory or rows than one query may")
	ErrQueryTimeout  = errors.New("the query takes longer than one query may")
)

// Core is the row of an event in the hot table. The sort key follows from ID.
// A tombstone has only ID, Version and Deleted; those of earlier builds have Alias too.
type Core struct {
	ID             ID
	ConversationID string
	EventName      string
	// Metadata is a compact JSON object, or empty.
	Metadata string
	// Error is empty where there was none.
	Error string
	// Latency is in milliseconds, and counts only with HasLatency.
	Latency    float64
	HasLatency bool
	Alias      string
	// Created is the position of the create that won; updates carry it on.
	Created Position
	Version Version
	Deleted bool
}

// ContentRow is an input or output in its table. Field is [FieldInput] or
// [FieldOutput]. Kind is [KindNull] where an update cleared the field.
//
// A row whose version is of [ClassCreate] counts only when its position is the
// core row's Created; else it belongs to a create that lost.
type ContentRow struct {
	ID      ID
	Field   Field
	Content Content
	Version Version
	Deleted bool
}

// EmbeddingRow is an embedding in its table. Field is [FieldInputEmbeddings]
// or [FieldOutputEmbeddings]. Vector is empty where an update cleared the field.
// The rule of [ContentRow] holds here too.
type EmbeddingRow struct {
	ID      ID
	Field   Field
	Vector  Vector
	Version Version
	Deleted bool
}

// AliasRow maps an alias to its event's id. A deleted one, with a zero ID, is
// left by a delete of an alias that did not exist: a later create of it is dead.
//
// A refused one says that the storage refused the create of the ID at the
// version's position for its data, and so every create before it: the alias is
// free, and some rows of that create may be in the tables. For an id that is not
// behind an alias, the row has [RefusalAlias] for its alias.
type AliasRow struct {
	Alias   string
	ID      ID
	Version Version
	Deleted bool
	Refused bool
}

// RefusalAlias is the alias of the row that says that creates of the id were
// refused. No caller's alias is like it.
func RefusalAlias(id ID) string { return "\x00" + id.String() }

// Rows is what one flush writes.
type Rows struct {
	Cores      []Core
	Contents   []ContentRow
	Embeddings []EmbeddingRow
	Aliases    []AliasRow
}

// Len is the number of rows in all tables.
func (r *Rows) Len() int {
	return len(r.Cores) + len(r.Contents) + len(r.Embeddings) + len(r.Aliases)
}

// Reset empties the rows and keeps their memory.
func (r *Rows) Reset() {
	r.Cores, r.Contents = r.Cores[:0], r.Contents[:0]
	r.Embeddings, r.Aliases = r.Embeddings[:0], r.Aliases[:0]
}

// Counts reports whether a content or embedding row of the version belongs to
// the event whose core row has the Created position.
func (v Version) Counts(created Position) bool {
	return v.Class() != ClassCreate || v.Position() == created
}

// Occupancy is which minutes of a window have core rows. An id with another
// minute of the window has none, and neither has one that is before all rows or
// after them.
type Occupancy struct {
	// Empty: there are no rows at all.
	Empty bool
	// FirstMicros and LastMicros are no later and no earlier than the first and
	// the last timestamp, in Unix microseconds.
	FirstMicros, LastMicros int64
	// SinceMicros and UntilMicros bound the window, in Unix microseconds. An
	// UntilMicros of 0 says that it has no end.
	SinceMicros, UntilMicros int64
	// Minutes are those that have rows, in minutes since 1970, of the minutes
	// that are whole within the window.
	Minutes []int64
}
