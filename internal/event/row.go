package event

// Core is the core row of an event: all of the event but its inputs, outputs and
// embeddings. The table's sort key follows from ID. A tombstone has only ID, Version
// and Deleted; tombstones of earlier builds have Alias too.
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
	// Created is the position of the create that won; updates keep it.
	Created Position
	Version Version
	Deleted bool
}

// ContentRow is an input or output in its table. Field is [FieldInput] or
// [FieldOutput]. Kind is [KindNull] where an update cleared the field.
//
// A row whose version is of [ClassCreate] counts only when its position is the
// core row's Created; otherwise it belongs to a create that lost.
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

// AliasRow maps an alias to the id of its event. A deleted row with a zero ID is left
// by a delete of an alias that did not exist: a later create of the alias has no
// effect.
//
// A refused row says that the database refused the create of the ID at the
// version's position for its data, and so every create before it. The alias is free,
// and some rows of that create may be in the tables. For an id that is not behind an
// alias, the row's alias is [RefusalAlias].
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

// Counts reports whether a content or embedding row of the version belongs to the
// event whose core row has this Created.
func (v Version) Counts(created Position) bool {
	return v.Class() != ClassCreate || v.Position() == created
}

// Occupancy says which minutes of a window have core rows. An id whose timestamp is
// in another minute of the window has no row, nor has an id before the first row or
// after the last.
type Occupancy struct {
	// Empty says that there are no rows at all.
	Empty bool
	// FirstMicros and LastMicros are no later and no earlier than the first and
	// the last timestamp, in Unix microseconds.
	FirstMicros, LastMicros int64
	// SinceMicros and UntilMicros bound the window, in Unix microseconds. An
	// UntilMicros of 0 says that it has no end.
	SinceMicros, UntilMicros int64
	// Minutes are the minutes with rows, counted since 1970, of those that are whole
	// within the window.
	Minutes []int64
}
