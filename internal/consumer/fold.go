package consumer

import (
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// none is the index of nothing.
const none = -1

// state is what a batch knows of one event while it is folded.
type state struct {
	id        event.ID
	partition int32
	// baseLoaded says that base is the event's core row before this batch, or none
	// where there was no row. Before it is set, the database may have a row.
	baseLoaded bool
	// basePartial says that the base row has only the fields of [Store.CoreStates].
	basePartial bool
	// baseIrrelevant says that a write of this batch makes the base row irrelevant to
	// the writes after it.
	baseIrrelevant bool
	// base is the index in fold.bases of the core row before this batch, core the
	// index in fold.rows.Cores of the one that this batch writes.
	base, core int32
	// contents and embeddings are the indices of the rows of this batch, input first.
	contents, embeddings [2]int32
	// deleted says that this batch deletes the event.
	deleted bool
}

// fold turns writes, in log order for each event, into the rows that they
// leave. Its rules are those of the package comment; it does no I/O.
type fold struct {
	rows    event.Rows
	refused []record.DeadLetter

	states []state
	index  map[event.ID]int32
	bases  []event.Core

	// noEffect counts writes that met a tombstone, and creates that lost.
	noEffect int
	// afterRefusal says that there is a create that comes after a refused one.
	afterRefusal bool
}

func newFold() *fold {
	return &fold{index: make(map[event.ID]int32)}
}

// reset empties the fold and keeps its memory, but not what it points to: rows
// alias the values of their records.
func (f *fold) reset() {
	clear(f.rows.Cores)
	clear(f.rows.Contents)
	clear(f.rows.Embeddings)
	clear(f.rows.Aliases)
	f.rows.Reset()
	clear(f.refused)
	f.refused = f.refused[:0]
	clear(f.bases)
	f.states, f.bases = f.states[:0], f.bases[:0]
	clear(f.index)
	f.noEffect, f.afterRefusal = 0, false
}

// stateOf returns the state of the event, a new one where the batch has none.
func (f *fold) stateOf(id event.ID, partition int32) *state {
	i, _ := f.indexOf(id, partition)
	return &f.states[i]
}

// indexOf returns the index of the event's state, and whether the state is new.
func (f *fold) indexOf(id event.ID, partition int32) (i int32, isNew bool) {
	i, ok := f.index[id]
	if ok {
		return i, false
	}
	i = int32(len(f.states))
	f.index[id] = i
	f.states = append(f.states, state{
		id: id, partition: partition, base: none, core: none,
		contents: [2]int32{none, none}, embeddings: [2]int32{none, none},
	})
	return i, true
}

// setBase says which core row the event had before this batch; nil for none.
func (f *fold) setBase(s *state, base *event.Core) {
	s.baseLoaded = true
	if base != nil {
		s.base = int32(len(f.bases))
		f.bases = append(f.bases, *base)
	}
}

// current is the event's core row at this point of the log, nil where the fold has
// none.
func (f *fold) current(s *state) *event.Core {
	switch {
	case s.core != none:
		return &f.rows.Cores[s.core]
	case s.base != none:
		return &f.bases[s.base]
	}
	return nil
}

// apply folds one write of the event into its state. A create may come after one
// that was refused.
func (f *fold) apply(s *state, w *event.Write, rec *record.Record, afterRefusal bool) {
	switch w.Op {
	case event.OpCreate:
		f.create(s, w, rec.Position(), afterRefusal)
	case event.OpUpdate:
		f.update(s, w, rec)
	case event.OpDelete:
		f.delete(s, rec.Position())
	}
}

// makeVersion is the version of the rows that a write of the class at the
// position leaves.
func makeVersion(class event.Class, at event.Position) event.Version {
	return event.MakeVersion(class, at)
}

// create makes the event, unless a row of it came before: after a tombstone or an
// earlier create it has no effect, and a row with its own position says that this is
// a replay of what the table already has.
//
// After a create of the event that was refused, the contents and embeddings that
// it does not bring are cleared, and outrank what the refused one may have left.
func (f *fold) create(s *state, w *event.Write, at event.Position, afterRefusal bool) {
	if s.deleted || f.current(s) != nil {
		f.noEffect++
		return
	}
	if w.Fresh {
		// Nobody could name the id before this create.
		s.baseLoaded = true
	}
	version := makeVersion(event.ClassCreate, at)
	core := event.Core{
		ID: s.id, ConversationID: w.ConversationID, Alias: w.Alias, Created: at,
	}
	setCore(&core, w)
	core.Version = version
	s.core = int32(len(f.rows.Cores))
	f.rows.Cores = append(f.rows.Cores, core)
	if afterRefusal {
		f.afterRefusal = true
		version = makeVersion(event.ClassUpdate, at)
		f.clearWide(s, version)
	}
	f.setWide(s, w, version)
}

// update changes the fields that it brings, of an event created before it.
func (f *fold) update(s *state, w *event.Write, rec *record.Record) {
	at := rec.Position()
	cur := f.current(s)
	switch {
	case s.deleted || cur != nil && cur.Deleted:
		f.noEffect++
		return
	case cur == nil:
		f.refuse(rec, event.CodeUnknownEvent, "no event with this id was created before this update")
		return
	case cur.Created > at:
		f.refuse(rec, event.CodeUnknownEvent, "the event was created after this update")
		return
	}
	version := makeVersion(event.ClassUpdate, at)
	// A row of this version or a higher one includes the update already, and is left
	// as it is. Any other row is the state just before the update, in a replay too.
	isNews := cur.Version < version
	if isNews && w.MergeMetadata {
		w = f.mergeMetadata(cur, w, rec)
	}
	if isNews && w.Set&event.CoreFields != 0 {
		if s.core == none {
			s.core = int32(len(f.rows.Cores))
			f.rows.Cores = append(f.rows.Cores, *cur)
			cur = &f.rows.Cores[s.core]
		}
		setCore(cur, w)
		cur.Version = version
	}
	f.setWide(s, w, version)
}

// mergeMetadata returns the update with the whole metadata that its merge patch
// makes of the event's. Metadata that becomes too large is refused, and the rest
// of the update applied: a replay that meets a later row applies that rest again,
// and cannot tell what was refused.
func (f *fold) mergeMetadata(cur *event.Core, w *event.Write, rec *record.Record) *event.Write {
	whole := *w
	whole.MergeMetadata = false
	var ok bool
	if whole.Metadata, ok = event.MergeMetadata(cur.Metadata, w.Metadata); !ok {
		f.refuse(rec, event.CodeTooLarge, "the merge patch makes the metadata too large, which stays as it was")
		whole.Metadata, whole.Set = nil, w.Set&^(1<<event.FieldMetadata)
	}
	return &whole
}

// delete leaves tombstones over every row that the event may have. They have
// nothing of the event but its id, and not a caller's own: its alias row says
// which event it named.
func (f *fold) delete(s *state, at event.Position) {
	version := makeVersion(event.ClassDelete, at)
	tombstone := event.Core{ID: s.id, Version: version, Deleted: true}
	if s.core == none {
		s.core = int32(len(f.rows.Cores))
		f.rows.Cores = append(f.rows.Cores, tombstone)
	} else {
		f.rows.Cores[s.core] = tombstone
	}
	for i := range s.contents {
		f.putContent(s, i, event.ContentRow{
			ID: s.id, Field: event.FieldInput + event.Field(i), Version: version, Deleted: true,
		})
		f.putEmbedding(s, i, event.EmbeddingRow{
			ID: s.id, Field: event.FieldInputEmbeddings + event.Field(i), Version: version, Deleted: true,
		})
	}
	s.deleted = true
}

// refuseAgain refuses a create that the database refused before.
func (f *fold) refuseAgain(rec *record.Record) {
	f.refuse(rec, event.CodeRejectedByStore, "the database refused the row of this record before")
}

func (f *fold) refuse(rec *record.Record, code event.Code, detail string) {
	f.refused = append(f.refused, record.DeadLetter{Record: *rec, Reason: code, Detail: detail})
}

// setCore copies the core fields that the write brings.
func setCore(core *event.Core, w *event.Write) {
	if w.Set.Has(event.FieldEventName) {
		core.EventName = w.EventName
	}
	if w.Set.Has(event.FieldMetadata) {
		core.Metadata = string(w.Metadata)
	}
	if w.Set.Has(event.FieldError) {
		core.Error = w.Error
	}
	if w.Set.Has(event.FieldLatency) {
		core.Latency, core.HasLatency = w.Latency, !w.Null.Has(event.FieldLatency)
	}
}

// setWide leaves a row for each content and embedding that the write brings.
func (f *fold) setWide(s *state, w *event.Write, version event.Version) {
	for i, content := range [...]event.Content{w.Input, w.Output} {
		if field := event.FieldInput + event.Field(i); w.Set.Has(field) {
			f.putContent(s, i, event.ContentRow{ID: s.id, Field: field, Content: content, Version: version})
		}
	}
	for i, vector := range [...]event.Vector{w.InputEmbeddings, w.OutputEmbeddings} {
		if field := event.FieldInputEmbeddings + event.Field(i); w.Set.Has(field) {
			f.putEmbedding(s, i, event.EmbeddingRow{ID: s.id, Field: field, Vector: vector, Version: version})
		}
	}
}

// clearWide leaves an empty row for each content and embedding.
func (f *fold) clearWide(s *state, version event.Version) {
	for i := range s.contents {
		f.putContent(s, i, event.ContentRow{ID: s.id, Field: event.FieldInput + event.Field(i), Version: version})
		f.putEmbedding(s, i, event.EmbeddingRow{ID: s.id, Field: event.FieldInputEmbeddings + event.Field(i), Version: version})
	}
}

func (f *fold) putContent(s *state, i int, row event.ContentRow) {
	if s.contents[i] == none {
		s.contents[i] = int32(len(f.rows.Contents))
		f.rows.Contents = append(f.rows.Contents, row)
		return
	}
	f.rows.Contents[s.contents[i]] = row
}

func (f *fold) putEmbedding(s *state, i int, row event.EmbeddingRow) {
	if s.embeddings[i] == none {
		s.embeddings[i] = int32(len(f.rows.Embeddings))
		f.rows.Embeddings = append(f.rows.Embeddings, row)
		return
	}
	f.rows.Embeddings[s.embeddings[i]] = row
}
