package checker

import (
	"slices"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// wideKey is the key of a row of the two tables beside the hot one.
type wideKey struct {
	id    event.ID
	field event.Field
}

// Tables are the rows of the four tables, one of each key.
type Tables struct {
	Cores      map[event.ID]event.Core
	Contents   map[wideKey]event.ContentRow
	Embeddings map[wideKey]event.EmbeddingRow
	Aliases    map[string]event.AliasRow
}

func newTables() *Tables {
	return &Tables{
		Cores: make(map[event.ID]event.Core), Contents: make(map[wideKey]event.ContentRow),
		Embeddings: make(map[wideKey]event.EmbeddingRow), Aliases: make(map[string]event.AliasRow),
	}
}

// entry is one write as the log has it.
type entry struct {
	record *record.Record
	write  event.Write
	// rejected: the database refused it for its data.
	rejected bool
}

// folded is what the log comes to.
type folded struct {
	tables *Tables
	// keys are the writes of each public id, in the order of the log, but for
	// those that the database refused.
	keys map[string][]entry
	// poison are the records that are no write, refused the updates of events
	// that did not exist; both belong to the dead letters.
	poison, refused map[event.Receipt]struct{}
}

// fold says what must be in the tables once all of the log is applied. It is
// the plain reading of the rules: for each event by itself, its writes in order.
// The database refused the rejected ones.
func fold(records []record.Record, rejected map[event.Receipt]struct{}) *folded {
	f := &folded{
		tables: newTables(), keys: make(map[string][]entry),
		poison: make(map[event.Receipt]struct{}), refused: make(map[event.Receipt]struct{}),
	}
	all := make(map[string][]entry)
	for i := range records {
		r := &records[i]
		w, err := record.Read(r)
		if err != nil {
			f.poison[r.Receipt()] = struct{}{}
			continue
		}
		_, isRejected := rejected[r.Receipt()]
		e := entry{r, w, isRejected}
		all[string(r.Key)] = append(all[string(r.Key)], e)
		if !isRejected {
			f.keys[string(r.Key)] = append(f.keys[string(r.Key)], e)
		}
	}
	for _, writes := range all {
		f.foldEvent(writes)
	}
	return f
}

func (f *folded) foldEvent(writes []entry) {
	var (
		core    *event.Core
		deleted *entry
		id      event.ID
		alias   = writes[0].write.Alias
		marked  bool
	)
	for i := range writes {
		e := &writes[i]
		if e.rejected {
			if e.write.Op == event.OpCreate && core == nil && deleted == nil {
				f.mark(e)
				marked = true
			}
			continue
		}
		switch e.write.Op {
		case event.OpCreate:
			if core == nil && deleted == nil {
				id = e.write.ID
				core = f.create(e, marked)
			}
		case event.OpUpdate:
			switch {
			case deleted != nil:
			case core == nil:
				f.refused[e.record.Receipt()] = struct{}{}
			default:
				f.update(core, e)
			}
		case event.OpDelete:
			if alias == "" {
				id = e.write.ID
			}
			deleted = e
		}
	}
	switch {
	case deleted != nil && id.IsZero():
		f.tables.Aliases[alias] = event.AliasRow{Alias: alias, Version: version(event.ClassDelete, deleted), Deleted: true}
	case deleted != nil:
		f.tombstones(id, version(event.ClassDelete, deleted))
	case core != nil:
		f.tables.Cores[id] = *core
	}
}

func version(class event.Class, e *entry) event.Version {
	return event.MakeVersion(class, e.record.Position())
}

// mark leaves what a create leaves that the database refused.
func (f *folded) mark(e *entry) {
	alias := e.write.Alias
	if alias == "" {
		alias = event.RefusalAlias(e.write.ID)
	}
	f.tables.Aliases[alias] = event.AliasRow{
		Alias: alias, ID: e.write.ID, Version: version(event.ClassUpdate, e), Refused: true,
	}
}

// create makes an event. After a mark, its contents and embeddings outrank those
// of the create that was refused, also where it brings none.
func (f *folded) create(e *entry, marked bool) *event.Core {
	w := &e.write
	v := version(event.ClassCreate, e)
	wide := v
	if marked {
		wide = version(event.ClassUpdate, e)
		for _, field := range []event.Field{event.FieldInput, event.FieldOutput} {
			f.tables.Contents[wideKey{w.ID, field}] = event.ContentRow{ID: w.ID, Field: field, Version: wide}
		}
		for _, field := range []event.Field{event.FieldInputEmbeddings, event.FieldOutputEmbeddings} {
			f.tables.Embeddings[wideKey{w.ID, field}] = event.EmbeddingRow{ID: w.ID, Field: field, Version: wide}
		}
	}
	if w.Alias != "" {
		f.tables.Aliases[w.Alias] = event.AliasRow{Alias: w.Alias, ID: w.ID, Version: wide}
	}
	core := &event.Core{ID: w.ID, ConversationID: w.ConversationID, Alias: w.Alias, Created: e.record.Position(), Version: v}
	setCore(core, w)
	f.setWide(w.ID, w, wide)
	return core
}

func (f *folded) update(core *event.Core, e *entry) {
	v := version(event.ClassUpdate, e)
	if e.write.Set&event.CoreFields != 0 {
		setCore(core, &e.write)
		core.Version = v
	}
	f.setWide(core.ID, &e.write, v)
}

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

func (f *folded) setWide(id event.ID, w *event.Write, v event.Version) {
	for field, content := range map[event.Field]event.Content{event.FieldInput: w.Input, event.FieldOutput: w.Output} {
		if w.Set.Has(field) {
			f.tables.Contents[wideKey{id, field}] = event.ContentRow{ID: id, Field: field, Content: content, Version: v}
		}
	}
	for field, vector := range map[event.Field]event.Vector{
		event.FieldInputEmbeddings: w.InputEmbeddings, event.FieldOutputEmbeddings: w.OutputEmbeddings,
	} {
		if w.Set.Has(field) {
			f.tables.Embeddings[wideKey{id, field}] = event.EmbeddingRow{ID: id, Field: field, Vector: vector, Version: v}
		}
	}
}

// tombstones replace all that the event has, a caller's own id too.
func (f *folded) tombstones(id event.ID, v event.Version) {
	f.tables.Cores[id] = event.Core{ID: id, Version: v, Deleted: true}
	for _, field := range []event.Field{event.FieldInput, event.FieldOutput} {
		f.tables.Contents[wideKey{id, field}] = event.ContentRow{ID: id, Field: field, Version: v, Deleted: true}
	}
	for _, field := range []event.Field{event.FieldInputEmbeddings, event.FieldOutputEmbeddings} {
		f.tables.Embeddings[wideKey{id, field}] = event.EmbeddingRow{ID: id, Field: field, Version: v, Deleted: true}
	}
}

// place is where a record is among the writes of its event, -1 where it is not
// one of them.
func place(writes []entry, r event.Receipt) int {
	return slices.IndexFunc(writes, func(e entry) bool { return e.record.Receipt() == r })
}
