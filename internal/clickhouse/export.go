package clickhouse

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// exportBlockRows bounds the rows of a block of an export.
	exportBlockRows = 16
	// exportRowBytes bounds a row of an export. A larger row comes without its texts, and
	// its event is read by its key.
	exportRowBytes = 16 << 10
	// exportSortBytes is the memory in which the server sorts a table of a window. It
	// sorts more on its disk.
	exportSortBytes = 32 << 20
	// exportWindowRows is how many events a window should have, if a day has fewer.
	exportWindowRows = 500_000
	// exportKeysMax is how many events of a filter are exported at once by their keys. If a
	// window has more than exportKeysWorth events of the filter, all of its rows are read
	// instead, and the others left out.
	exportKeysMax   = 16 << 10
	exportKeysWorth = 4 * exportKeysMax
)

// An export has, of each table, a block that is being decoded and one whose rows are being
// taken, and the keys, 28 bytes each, that are sent. A negative constant does not compile.
const _ uint = query.ExportBytes - 2*conn.ExportConnections*exportBlockRows*exportRowBytes - (16+28*conn.ExportConnections)*exportKeysMax

// Export returns all events of the filter, ordered by timestamp, then by id, until the
// first error. It reads the three tables at the pace of the caller, in windows of time.
// The server sorts each table of a window by time, on its disk if need be, and the rows
// are joined here. So the memory is bounded on both sides, and each table is read once.
//
// Each window shows the events as they are when it is read.
func (s *Store) Export(ctx context.Context, q query.Export) iter.Seq2[query.Exported, error] {
	return func(yield func(query.Exported, error) bool) {
		select {
		case s.exports <- struct{}{}:
			defer func() { <-s.exports }()
		case <-ctx.Done():
			yield(query.Exported{}, fmt.Errorf("wait for a place to export: %w", ctx.Err()))
			return
		}
		if err := s.export(ctx, q, func(e query.Exported) bool { return yield(e, nil) }); err != nil {
			yield(query.Exported{}, err)
		}
	}
}

func (s *Store) export(ctx context.Context, q query.Export, yield func(query.Exported) bool) error {
	bounds := boundAfter(q.Filter, q.After, false)
	windows, err := s.windows(ctx, bounds.SinceMicros, bounds.UntilMicros, false)
	if err != nil {
		return err
	}
	windows.growth = 1
	for {
		w, ok := windows.next()
		if !ok {
			return nil
		}
		q.SinceMicros, q.UntilMicros = w.since, w.until
		n, ok, err := s.exportWindow(ctx, q, yield)
		if err != nil || !ok {
			return err
		}
		if n < exportWindowRows {
			windows.days = min(2*windows.days, query.MicrosMax/microsPerDay)
		} else {
			windows.days = 1
		}
	}
}

// exportWindow exports the events of a window, and returns how many it has. ok is false if
// yield wants no more.
func (s *Store) exportWindow(ctx context.Context, q query.Export, yield func(query.Exported) bool) (n int, ok bool, err error) {
	if everything(q.Filter) {
		return s.exportRows(ctx, q, nil, yield)
	}
	matching, err := s.Errors(ctx, q.Filter)
	switch {
	case err != nil || matching.Events == 0:
		return 0, true, err
	case matching.Events > exportKeysWorth:
		return s.exportRows(ctx, q, nil, yield)
	}
	for {
		keys, err := s.exportKeys(ctx, q)
		if err != nil || len(keys) == 0 {
			return n, true, err
		}
		rows, ok, err := s.exportRows(ctx, q, keys, yield)
		n += rows
		if err != nil || !ok {
			return n, ok, err
		}
		if len(keys) < exportKeysMax {
			return n, true, nil
		}
		q.After = &keys[len(keys)-1]
	}
}

// exportKeys returns the ids of the first events of a window.
func (s *Store) exportKeys(ctx context.Context, q query.Export) ([]event.ID, error) {
	sel := s.selectPage(query.List{Filter: q.Filter, After: q.After})
	var (
		id   proto.ColUUID
		keys []event.ID
	)
	err := s.db.Query(ctx, conn.RoleExport, "export_keys", s.readTimeout(), ch.Query{
		Body:       "SELECT id" + sel.from() + orderBy(false) + " LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", exportKeysMax),
		Settings:   sel.settings,
		Result:     proto.Results{{Name: "id", Data: &id}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				keys = append(keys, event.ID(id[i]))
			}
			return nil
		},
	})
	return keys, err
}

// exportRows exports the events of a window: those with the keys, or all if there are none.
//
// The keys are chosen before the tables are read. If each table were asked for the events
// of the filter, an event that an update takes out of the filter meanwhile would lose what
// is in the tables that are read last.
func (s *Store) exportRows(ctx context.Context, q query.Export, keys []event.ID, yield func(query.Exported) bool) (n int, ok bool, err error) {
	for {
		run, cancel := context.WithTimeout(ctx, s.cfg.ExportTimeout)
		e := s.openExport(run, q, keys)
		progress := false
		for {
			var exported query.Exported
			if exported, err = e.next(); err != nil || exported.Key.IsZero() {
				break
			}
			progress, n, q.After = true, n+1, &exported.Key
			if !yield(exported) {
				cancel()
				e.wait()
				return n, false, nil
			}
		}
		timedOut := run.Err() != nil && ctx.Err() == nil
		cancel()
		e.wait()
		switch {
		case err == nil:
			return n, true, nil
		case timedOut && !progress:
			return n, false, fmt.Errorf("%w (an export has read no event for %s)", event.ErrQueryTimeout, s.cfg.ExportTimeout)
		case !timedOut:
			return n, false, err
		}
		if keys != nil {
			keys = keys[1+slices.Index(keys, *q.After):]
		}
	}
}

// everything reports whether the filter is about nothing but the time.
func everything(f query.Filter) bool {
	return f.ConversationID == "" && len(f.EventNames) == 0 && f.Errors == query.AnyErrors &&
		f.LatencyMin == nil && f.LatencyMax == nil && len(f.Metadata) == 0
}

// exportRow is a row of one of the tables of an export.
type exportRow struct {
	id    event.ID
	field event.Field
	// core is set for a row of events, content or vector for one of the other tables.
	core    event.Core
	content event.Content
	vector  event.Vector
	version event.Version
	deleted bool
	// largeBytes is the size of a row that comes without its texts; 0 for others.
	largeBytes int
}

// exportTable is the rows of a table in the order of an export. next has the first row that
// was not taken.
type exportTable struct {
	blocks chan []exportRow
	rows   []exportRow
	// err is set before blocks is closed.
	err error
}

// peek returns the first row that was not taken; nil after the last one.
func (t *exportTable) peek() (*exportRow, error) {
	for len(t.rows) == 0 {
		rows, ok := <-t.blocks
		if !ok {
			return nil, t.err
		}
		t.rows = rows
	}
	return &t.rows[0], nil
}

func (t *exportTable) take() { t.rows = t.rows[1:] }

// exportJoin joins the tables of a window.
type exportJoin struct {
	events *exportTable
	// others are the contents, and the embeddings if they are asked for.
	others []*exportTable
	open   func()
	tables sync.WaitGroup
}

// openExport begins to read a window: the events with the keys, or all if there are none.
func (s *Store) openExport(ctx context.Context, q query.Export, keys []event.ID) *exportJoin {
	e := &exportJoin{}
	sel := s.selectPage(query.List{Filter: q.Filter, After: q.After})
	from, rows := sel.from(), s.exportedRows(q)
	if keys != nil {
		rows.where, rows.keys = " PREWHERE "+byKeys, keys
		from = " FROM events FINAL" + rows.where + " AND visible AND " + sel.where
	}
	columns := newCoreResult()
	var large proto.ColUInt64
	core := rows.query(ch.Query{
		Body: "SELECT " + exportCoreColumns + " FROM (SELECT " + coreColumns + ", timestamp, toUInt64(" + coreBytes + ") AS bytes" + from + ") AS e" +
			" ORDER BY e.timestamp, e.id",
		Result: append(columns.result(), proto.ResultColumn{Name: "large_bytes", Data: &large}),
	})
	core.Parameters, core.Settings = sel.params, append(core.Settings, sel.settings...)
	e.events = s.exportTable(ctx, e, "export_events", core, func() []exportRow {
		rows := make([]exportRow, len(columns.id))
		for i := range rows {
			core := columns.core(i)
			rows[i] = exportRow{id: core.ID, core: core, largeBytes: int(large[i])}
		}
		return rows
	})
	// The core rows must be read first. If an event is deleted after that, its contents are
	// tombstones, because a delete writes the other tables before the core row.
	e.open = sync.OnceFunc(func() {
		e.others = append(e.others, s.exportContents(ctx, e, rows))
		if q.WithEmbeddings {
			e.others = append(e.others, s.exportEmbeddings(ctx, e, rows))
		}
	})
	return e
}

// exportedRows selects the rows of the contents and the embeddings of an export. All of
// their columns that it names never change.
type exportedRows struct {
	selection
	where string
	// keys are the external table of where; nil if it has none.
	keys []event.ID
}

func (s *Store) exportedRows(q query.Export) exportedRows {
	sel := s.selectEvents(boundAfter(query.Filter{SinceMicros: q.SinceMicros, UntilMicros: q.UntilMicros, ConversationID: q.ConversationID}, q.After, false))
	return exportedRows{selection: sel, where: " PREWHERE 1" + sel.bounds}
}

// query completes a query of the rows.
func (r *exportedRows) query(q ch.Query) ch.Query {
	if r.keys == nil {
		q.Parameters, q.Settings = r.params, r.settings
		return q
	}
	q.ExternalTable, q.ExternalData = "keys", keysTable(sortedKeys(r.keys))
	q.Settings = slices.Concat(r.settings, conn.LookupSettings)
	return q
}

// sortedKeys returns the ids in the order of the tables.
func sortedKeys(ids []event.ID) []event.ID {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, compareKeys)
	return sorted
}

// exportCoreColumns are coreColumns of a row e, and the size of a large row, whose texts are
// left out.
//
//nolint:gochecknoglobals // constant texts
var (
	exportCoreColumns = "e.id AS id, e.conversation_id AS conversation_id, e.event_name AS event_name, if(" + largeRow("e.bytes") + ", NULL, e.error) AS error, e.latency AS latency, " +
		"if(" + largeRow("e.bytes") + ", '', e.metadata) AS metadata, e.alias AS alias, e.created AS created, e.version AS version, e.deleted AS deleted, " + largeBytes("e.bytes")
	exportContentColumns = "id, CAST(field, 'Int8') AS field_number, kind, if(" + largeRow("e.bytes") + ", '', e.content) AS content, version, deleted, " + largeBytes("e.bytes")
)

// largeRow is the SQL of whether a row of that size comes without its texts.
func largeRow(size string) string { return size + " > " + strconv.Itoa(exportRowBytes) }

// largeBytes is the column of the size of such a row.
func largeBytes(size string) string {
	return "if(" + largeRow(size) + ", " + size + ", 0) AS large_bytes"
}

func (s *Store) exportContents(ctx context.Context, e *exportJoin, from exportedRows) *exportTable {
	var (
		id             proto.ColUUID
		field          proto.ColInt8
		kind, deleted  proto.ColUInt8
		content        proto.ColStr
		version, large proto.ColUInt64
	)
	return s.exportTable(ctx, e, "export_contents", from.query(ch.Query{
		Body: "SELECT " + exportContentColumns + " FROM (SELECT timestamp, id, field, kind, content, version, deleted, toUInt64(length(content)) AS bytes FROM event_contents" + from.where + ") AS e" +
			" ORDER BY timestamp, id",
		Result: proto.Results{
			{Name: "id", Data: &id},
			{Name: "field_number", Data: &field},
			{Name: "kind", Data: &kind},
			{Name: "content", Data: &content},
			{Name: "version", Data: &version},
			{Name: "deleted", Data: &deleted},
			{Name: "large_bytes", Data: &large},
		},
	}), func() []exportRow {
		rows := make([]exportRow, len(id))
		for i := range rows {
			row := &rows[i]
			*row = exportRow{id: event.ID(id[i]), field: fieldOfNumber(field[i], false), version: event.Version(version[i]), deleted: deleted[i] != 0, largeBytes: int(large[i])}
			if row.content.Kind = event.Kind(kind[i]); row.content.Kind != event.KindNull {
				row.content.Data = content.RowBytes(i)
			}
		}
		content.Buf = nil // the rows keep the buffer; the next block gets another
		return rows
	})
}

func (s *Store) exportEmbeddings(ctx context.Context, e *exportJoin, from exportedRows) *exportTable {
	var (
		id      proto.ColUUID
		field   proto.ColInt8
		values  proto.ColFloat32
		vector  = values.Array()
		version proto.ColUInt64
		deleted proto.ColUInt8
	)
	return s.exportTable(ctx, e, "export_embeddings", from.query(ch.Query{
		Body: "SELECT id, CAST(field, 'Int8') AS field_number, vector, version, deleted" +
			" FROM (SELECT timestamp, id, field, vector, version, deleted FROM event_embeddings" + from.where + ") ORDER BY timestamp, id",
		Result: proto.Results{
			{Name: "id", Data: &id},
			{Name: "field_number", Data: &field},
			{Name: "vector", Data: vector},
			{Name: "version", Data: &version},
			{Name: "deleted", Data: &deleted},
		},
	}), func() []exportRow {
		rows := make([]exportRow, len(id))
		var start uint64
		for i := range rows {
			end := vector.Offsets[i]
			rows[i] = exportRow{id: event.ID(id[i]), field: fieldOfNumber(field[i], true), version: event.Version(version[i]), deleted: deleted[i] != 0}
			if end > start {
				rows[i].vector = event.VectorOf(values[start:end]...)
			}
			start = end
		}
		return rows
	})
}

// fieldOfNumber is the inverse of fieldNumber. The numbers of contents and of embeddings
// are the same.
func fieldOfNumber(n int8, embeddings bool) event.Field {
	fields := []event.Field{event.FieldInput, event.FieldOutput}
	if embeddings {
		fields = []event.Field{event.FieldInputEmbeddings, event.FieldOutputEmbeddings}
	}
	for _, field := range fields {
		if int8(fieldNumber(field)) == n {
			return field
		}
	}
	panic("BUG: field number " + strconv.Itoa(int(n)))
}

// exportTable begins to read a table. rows returns the rows of a block.
func (s *Store) exportTable(ctx context.Context, e *exportJoin, name string, q ch.Query, rows func() []exportRow) *exportTable {
	t := &exportTable{blocks: make(chan []exportRow)}
	seconds := strconv.Itoa(int(math.Ceil((s.cfg.ExportTimeout + readGrace).Seconds())))
	q.Settings = slices.Concat(q.Settings, []ch.Setting{
		// The last setting of a name is the one that counts.
		conn.Setting("max_execution_time", seconds),
		conn.Setting("send_timeout", seconds), // while the reader reads another table
		conn.Setting("max_bytes_before_external_sort", strconv.Itoa(exportSortBytes)),
		conn.Setting("max_threads", "1"),
		// An event's rows are all on one shard.
		conn.Setting("distributed_product_mode", "local"),
		conn.Setting("max_block_size", strconv.Itoa(exportBlockRows)),
	})
	q.OnResult = func(ctx context.Context, _ proto.Block) error {
		block := rows()
		if len(block) == 0 {
			return nil
		}
		select {
		case t.blocks <- block:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.tables.Go(func() {
		t.err = s.db.Query(ctx, conn.RoleExport, name, s.cfg.ExportTimeout+readGrace, q)
		close(t.blocks)
	})
	return t
}

// wait returns when all queries have ended. The context of the export must have ended, or
// all of its rows have been taken.
func (e *exportJoin) wait() { e.tables.Wait() }

// next returns the next event; one without a key after the last one.
func (e *exportJoin) next() (query.Exported, error) {
	for {
		row, err := e.events.peek()
		if err != nil {
			return query.Exported{}, err
		}
		e.open()
		if row == nil {
			return query.Exported{}, nil
		}
		core, large := row.core, row.largeBytes
		e.events.take()
		var (
			contents   = make(map[fieldOf]event.ContentRow, 2)
			embeddings = make(map[fieldOf]event.EmbeddingRow, 2)
		)
		for _, t := range e.others {
			for {
				row, err := t.peek()
				if err != nil {
					return query.Exported{}, err
				}
				if row == nil || compareExported(row.id, core.ID) > 0 {
					break
				}
				t.take()
				if row.id != core.ID {
					continue
				}
				key := fieldOf{row.id, fieldNumber(row.field)}
				switch row.field {
				case event.FieldInput, event.FieldOutput:
					if old, ok := contents[key]; !ok || row.version > old.Version {
						contents[key] = event.ContentRow{ID: row.id, Field: row.field, Content: row.content, Version: row.version, Deleted: row.deleted}
						large += row.largeBytes
					}
				default:
					if old, ok := embeddings[key]; !ok || row.version > old.Version {
						embeddings[key] = event.EmbeddingRow{ID: row.id, Field: row.field, Vector: row.vector, Version: row.version, Deleted: row.deleted}
					}
				}
			}
		}
		exported, ok := assembleOne(&core, contents, embeddings)
		switch {
		case !ok: // deleted since its core row was read
		case large > 0:
			return query.Exported{Key: core.ID, Event: event.Event{ID: exported.ID}, LargeBytes: large}, nil
		default:
			return query.Exported{Key: core.ID, Event: exported}, nil
		}
	}
}

// compareExported orders ids as ClickHouse does for equal timestamps: a UUID is ordered by
// its second half first.
func compareExported(a, b event.ID) int {
	return cmp.Or(
		cmp.Compare(a.Micros(), b.Micros()),
		cmp.Compare(binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(b[8:])),
		cmp.Compare(binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(b[:8])),
	)
}

// ExportedEvents returns the events with the keys that still match the filter, in the order
// of the keys.
// The error of events that take more than bytesMax is a [*event.LargeError].
func (s *Store) ExportedEvents(ctx context.Context, f query.Filter, keys []event.ID, withEmbeddings bool, bytesMax int) ([]event.Event, error) {
	r := &room{left: bytesMax, newest: true}
	cores, err := s.listedCores(ctx, f, keys, r)
	if err == nil {
		var events []event.Event
		if events, err = s.assemble(ctx, cores, withEmbeddings, r); err == nil {
			return events, nil
		}
	}
	if !isTooLarge(err) {
		return nil, err
	}
	sizes, err := s.sizes(ctx, keys, withEmbeddings)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, size := range sizes {
		total += size.bytes
	}
	return nil, &event.LargeError{Bytes: max(total, bytesMax+1)}
}

// Place returns the id of an event after which a list can go on. The event may have been
// deleted since it was read. ok is false if nothing is known of it.
func (s *Store) Place(ctx context.Context, ref event.Ref) (id event.ID, ok bool, err error) {
	if ref.Alias == "" {
		return ref.ID, true, nil
	}
	rows, err := s.aliases(ctx, conn.RoleRead, []string{ref.Alias})
	if err != nil {
		return event.ID{}, false, err
	}
	row, ok := rows[ref.Alias]
	return row.ID, ok && !row.Deleted && !row.Refused, nil
}
