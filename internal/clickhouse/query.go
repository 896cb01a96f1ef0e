package clickhouse

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// TimeSeriesRowsMax is the most buckets that one time series can span.
const TimeSeriesRowsMax = 10_000

// readGrace is how much longer a reader waits for the server than its query may
// take there. The server's error says that the query was too long; without one,
// nothing is known but that the server does not answer.
const readGrace = 5 * time.Second

// readTimeout is how long a reader waits for the answer to a query.
func (s *Store) readTimeout() time.Duration { return s.cfg.QueryTimeout + readGrace }

// readSettings make a query of a reader true and bounded.
func (s *Store) readSettings() []ch.Setting {
	seconds := strconv.FormatFloat(s.cfg.QueryTimeout.Seconds(), 'f', 3, 64)
	return []ch.Setting{
		// Versions of one event share a partition: both follow from the id.
		conn.Setting("do_not_merge_across_partitions_select_final", "1"),
		// The skip indexes are on columns of the sort key, which all versions of a
		// row share, so they may skip granules before FINAL without a second look.
		conn.Setting("use_skip_indexes_if_final", "1"),
		conn.Setting("use_skip_indexes_if_final_exact_mode", "0"),
		conn.Setting("max_execution_time", seconds),
		conn.Setting("timeout_overflow_mode", "throw"),
		conn.Setting("max_memory_usage", strconv.FormatInt(s.cfg.QueryMemoryBytesMax, 10)),
		conn.Setting("use_query_cache", "0"),
	}
}

// groupsOnShards is of queries that group by conversation, and by no other
// query: a conversation is on one shard, so that each shard of a cluster makes
// whole groups, and sends the first of them instead of states to be merged.
var groupsOnShards = conn.Setting("distributed_group_by_no_merge", "2") //nolint:gochecknoglobals // a constant

// Event returns the event, or nil when there is none or it is deleted. An
// internal id is found by its alias only. An event that takes more than
// bytesMax bytes of memory is a [*event.LargeError]; a bytesMax of 0 stands for
// [Config.PageBytesMax]. Calls at the same time share queries: see [gather].
func (s *Store) Event(ctx context.Context, ref event.Ref, bytesMax int) (*event.Event, error) {
	bytesMax = cmp.Or(bytesMax, s.cfg.PageBytesMax)
	gathered := bytesMax <= gatherBytesMax
	if gathered {
		e, err := s.gather.wait(ctx, ref, bytesMax, s.readBatch)
		if !errors.Is(err, errAlone) {
			return e, err
		}
	}
	id := ref.ID
	if ref.Alias != "" {
		rows, err := s.aliases(ctx, conn.RoleRead, []string{ref.Alias})
		if err != nil {
			return nil, err
		}
		row, ok := rows[ref.Alias]
		if !ok || row.Deleted || row.Refused {
			return nil, nil
		}
		id = row.ID
	}
	r := &room{left: bytesMax}
	for try := range measuresMax {
		if try > 0 || !gathered {
			e, err := s.event(ctx, id, ref.Alias, r)
			if !isTooLarge(err) {
				return e, err
			}
		}
		size, err := s.eventSize(ctx, id)
		if err != nil {
			return nil, err
		}
		if size > bytesMax {
			return nil, &event.LargeError{Bytes: size}
		}
		r = &room{left: bytesMax, newest: true}
	}
	return nil, &event.LargeError{Bytes: 2 * bytesMax} // it grows faster than it can be measured
}

func (s *Store) event(ctx context.Context, id event.ID, alias string, r *room) (*event.Event, error) {
	cores, err := s.cores(ctx, conn.RoleRead, []event.ID{id}, r)
	if err != nil {
		return nil, err
	}
	core, ok := cores[id]
	if !ok || core.Deleted || core.Alias != alias {
		return nil, nil
	}
	// The core row comes first: what is deleted after it shows as a tombstone
	// in the other tables, which are written before.
	events, err := s.assemble(ctx, []event.Core{core}, true, r)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	return &events[0], nil
}

// eventSize is the memory that the event takes.
func (s *Store) eventSize(ctx context.Context, id event.ID) (int, error) {
	events := []sized{{id: id, bytes: eventBytes}}
	var bytes proto.ColUInt64
	err := s.eachKeys(ctx, conn.RoleRead, "sizes", s.readTimeout(), []event.ID{id}, func(byKey string) ch.Query {
		return ch.Query{
			Body:     "SELECT toUInt64(" + coreBytes + ") AS bytes FROM events FINAL" + byKey,
			Settings: s.readSettings(),
			Result:   proto.Results{{Name: "bytes", Data: &bytes}},
			OnResult: func(context.Context, proto.Block) error {
				for _, n := range bytes {
					events[0].bytes += int(n)
				}
				return nil
			},
		}
	})
	if err != nil {
		return 0, err
	}
	err = s.measure(ctx, events, true)
	return events[0].bytes, err
}

// Conversation returns a page of a conversation's events. It ends early, with
// Next set, before an event that does not fit into q.BytesMax, by default
// [Config.PageBytesMax]; a first event that does not is a [*event.LargeError].
// Embeddings count where they are asked for.
func (s *Store) Conversation(ctx context.Context, q query.Conversation) (query.Page, error) {
	q.BytesMax = cmp.Or(q.BytesMax, s.cfg.PageBytesMax)
	// No event takes less.
	q.LimitEvents = min(q.LimitEvents, max(1, q.BytesMax/eventBytes))
	r, next := &room{left: q.BytesMax}, 1 // one event more tells whether there is a next page
	for range measuresMax {
		page, err := s.page(ctx, q, next, r)
		if !isTooLarge(err) {
			return page, err
		}
		events, err := s.pageSizes(ctx, q)
		if err != nil {
			return query.Page{}, err
		}
		n := fitting(events, q.BytesMax)
		if n == 0 && len(events) > 0 {
			return query.Page{}, &event.LargeError{Bytes: events[0].bytes}
		}
		r = &room{left: q.BytesMax, newest: true}
		if n < len(events) {
			// There is a next page, whose first event must not be read with this one:
			// it may be the one that does not fit.
			q.LimitEvents, next = n, 0
		}
	}
	return query.Page{}, &event.LargeError{Bytes: 2 * q.BytesMax} // it grows faster than it can be measured
}

// page reads a page into the room. next is 1 where one event more is read to
// tell whether there is a next page, and 0 where there is one.
func (s *Store) page(ctx context.Context, q query.Conversation, next int, r *room) (query.Page, error) {
	from, params := pageFrom(q)
	columns := newCoreResult()
	var cores []event.Core
	err := s.db.Query(ctx, conn.RoleRead, "conversation", s.readTimeout(), ch.Query{
		Body:       "SELECT " + coreColumns + from,
		Parameters: params.Int("limit", int64(q.LimitEvents+next)),
		Settings:   append(s.readSettings(), r.settings()...),
		Result:     columns.result(),
		OnResult: func(context.Context, proto.Block) error {
			for i := range columns.id {
				cores = append(cores, columns.core(i))
				r.takeCore(&cores[len(cores)-1])
			}
			return r.check()
		},
	})
	if err != nil {
		return query.Page{}, err
	}
	var page query.Page
	if len(cores) == q.LimitEvents+next {
		cores = cores[:q.LimitEvents]
		next := cores[q.LimitEvents-1].ID
		page.Next = &next
	}
	if page.Events, err = s.assemble(ctx, cores, q.WithEmbeddings, r); err != nil {
		return query.Page{}, err
	}
	page.Bytes = q.BytesMax - r.left
	return page, nil
}

// pageSizes is the sizes of the page's events and of the one after them.
func (s *Store) pageSizes(ctx context.Context, q query.Conversation) ([]sized, error) {
	from, params := pageFrom(q)
	var (
		id     proto.ColUUID
		bytes  proto.ColUInt64
		events []sized
	)
	err := s.db.Query(ctx, conn.RoleRead, "sizes", s.readTimeout(), ch.Query{
		Body:       "SELECT id, toUInt64(" + coreBytes + ") AS bytes" + from,
		Parameters: params.Int("limit", int64(q.LimitEvents)+1),
		Settings:   s.readSettings(),
		Result:     proto.Results{{Name: "id", Data: &id}, {Name: "bytes", Data: &bytes}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				events = append(events, sized{event.ID(id[i]), eventBytes + int(bytes[i])})
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return events, s.measure(ctx, events, q.WithEmbeddings)
}

// pageFrom selects the core rows of a page, at most as many as the parameter
// "limit", which is not among params yet.
func pageFrom(q query.Conversation) (from string, params conn.Parameters) {
	from = " FROM events FINAL PREWHERE visible AND conversation_hash = {hash:UInt32}"
	params = conn.Parameters{}.Uint("hash", uint64(event.ConversationHash(q.ConversationID))).
		Text("conversation_id", q.ConversationID)
	where := " WHERE deleted = 0 AND conversation_id = {conversation_id:String}"
	if q.After != nil {
		const after = "fromUnixTimestamp64Micro({after:Int64}, 'UTC')"
		from += " AND timestamp >= " + after + " AND indexHint(toDate(timestamp) >= toDate(" + after + "))"
		where += " AND (timestamp, id) > (" + after + ", {after_id:UUID})"
		params = params.Int("after", q.After.Micros()).Text("after_id", q.After.String())
	}
	return from + where + " ORDER BY timestamp, id LIMIT {limit:UInt64}", params
}

// fieldOf is one field of one event.
type fieldOf struct {
	id    event.ID
	field uint8
}

// assemble reads what belongs to the cores and puts events together, in their
// order, without those that turn out to have been deleted since.
func (s *Store) assemble(ctx context.Context, cores []event.Core, withEmbeddings bool, r *room) ([]event.Event, error) {
	events := make([]event.Event, 0, len(cores))
	if len(cores) == 0 {
		return events, nil
	}
	ids := make([]event.ID, len(cores))
	for i := range cores {
		ids[i] = cores[i].ID
	}
	contents, err := s.contents(ctx, ids, r)
	if err != nil {
		return nil, err
	}
	var embeddings map[fieldOf]event.EmbeddingRow
	if withEmbeddings {
		if embeddings, err = s.embeddings(ctx, ids, r); err != nil {
			return nil, err
		}
	}
	for i := range cores {
		if e, ok := assembleOne(&cores[i], contents, embeddings); ok {
			events = append(events, e)
		}
	}
	return events, nil
}

func assembleOne(core *event.Core, contents map[fieldOf]event.ContentRow, embeddings map[fieldOf]event.EmbeddingRow) (event.Event, bool) {
	e := event.Event{
		ID:             event.Ref{ID: core.ID, Alias: core.Alias}.String(),
		ConversationID: core.ConversationID,
		EventName:      core.EventName,
		Micros:         core.ID.Micros(),
		Metadata:       core.Metadata,
		Error:          core.Error,
	}
	if core.HasLatency {
		latency := core.Latency
		e.Latency = &latency
	}
	for field, content := range map[event.Field]*event.Content{event.FieldInput: &e.Input, event.FieldOutput: &e.Output} {
		row := contents[fieldOf{core.ID, fieldNumber(field)}]
		if row.Deleted {
			return event.Event{}, false
		}
		if row.Version.Counts(core.Created) {
			*content = row.Content
		}
	}
	for field, vector := range map[event.Field]*event.Vector{event.FieldInputEmbeddings: &e.InputEmbeddings, event.FieldOutputEmbeddings: &e.OutputEmbeddings} {
		row := embeddings[fieldOf{core.ID, fieldNumber(field)}]
		if row.Deleted {
			return event.Event{}, false
		}
		if row.Version.Counts(core.Created) {
			*vector = row.Vector
		}
	}
	return e, true
}

// contents returns the row with the highest version of each field.
func (s *Store) contents(ctx context.Context, ids []event.ID, r *room) (map[fieldOf]event.ContentRow, error) {
	rows := make(map[fieldOf]event.ContentRow, 2*len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "contents", s.readTimeout(), ids, func(byKey string) ch.Query {
		var (
			id            proto.ColUUID
			field         proto.ColInt8
			kind, deleted proto.ColUInt8
			content       proto.ColStr
			version       proto.ColUInt64
		)
		return ch.Query{
			Body:     "SELECT id, CAST(field, 'Int8') AS field_number, kind, content, version, deleted FROM event_contents" + r.final() + byKey,
			Settings: append(s.readSettings(), r.settings()...),
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "field_number", Data: &field},
				{Name: "kind", Data: &kind},
				{Name: "content", Data: &content},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := fieldOf{event.ID(id[i]), uint8(field[i])}
					if old, ok := rows[key]; !ok || event.Version(version[i]) > old.Version {
						row := event.ContentRow{ID: key.id, Version: event.Version(version[i]), Deleted: deleted[i] != 0}
						if row.Content.Kind = event.Kind(kind[i]); row.Content.Kind != event.KindNull {
							row.Content.Data = content.RowBytes(i)
						}
						rows[key] = row
					}
				}
				r.take(len(content.Buf))
				content.Buf = nil // the rows have it; a next block gets its own
				return r.check()
			},
		}
	})
	return rows, err
}

// embeddings returns the row with the highest version of each field.
func (s *Store) embeddings(ctx context.Context, ids []event.ID, r *room) (map[fieldOf]event.EmbeddingRow, error) {
	rows := make(map[fieldOf]event.EmbeddingRow, 2*len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "embeddings", s.readTimeout(), ids, func(byKey string) ch.Query {
		var (
			id      proto.ColUUID
			field   proto.ColInt8
			values  proto.ColFloat32
			vector  = values.Array()
			version proto.ColUInt64
			deleted proto.ColUInt8
		)
		return ch.Query{
			Body:     "SELECT id, CAST(field, 'Int8') AS field_number, vector, version, deleted FROM event_embeddings" + r.final() + byKey,
			Settings: append(s.readSettings(), r.settings()...),
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "field_number", Data: &field},
				{Name: "vector", Data: vector},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				var start uint64
				for i := range id {
					end := vector.Offsets[i]
					key := fieldOf{event.ID(id[i]), uint8(field[i])}
					if old, ok := rows[key]; !ok || event.Version(version[i]) > old.Version {
						row := event.EmbeddingRow{ID: key.id, Version: event.Version(version[i]), Deleted: deleted[i] != 0}
						if end > start {
							row.Vector = event.VectorOf(values[start:end]...)
						}
						rows[key] = row
					}
					start = end
				}
				r.take(4 * len(values))
				return r.check()
			},
		}
	})
	return rows, err
}

// from is the source of an analytics query: the filter's immutable columns go
// into PREWHERE, where they are safe before FINAL and make the speed; those
// that an update or a tombstone changes into WHERE, which is after it. A
// tombstone has no conversation_id, so that conversation_id belongs there too.
func (s *Store) from(f query.Filter, more string) (sql string, params conn.Parameters, settings []ch.Setting) {
	var b strings.Builder
	const since, until = "fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
	// The primary key begins with toDate(timestamp), which ClickHouse does not
	// derive from a condition on timestamp.
	b.WriteString(" FROM events FINAL PREWHERE visible AND timestamp >= " + since + " AND timestamp < " + until +
		" AND indexHint(toDate(timestamp) >= toDate(" + since + ") AND toDate(timestamp) <= toDate(" + until + "))")
	params = conn.Parameters{}.Int("since", f.SinceMicros).Int("until", f.UntilMicros)
	if f.ConversationID != "" {
		b.WriteString(" AND conversation_hash = {hash:UInt32}")
		params = params.Uint("hash", uint64(event.ConversationHash(f.ConversationID)))
	}
	b.WriteString(" WHERE deleted = 0" + more)
	if f.ConversationID != "" {
		b.WriteString(" AND conversation_id = {conversation_id:String}")
		params = params.Text("conversation_id", f.ConversationID)
	}
	if f.EventName != "" {
		b.WriteString(" AND event_name = {event_name:String}")
		params = params.Text("event_name", f.EventName)
	}
	settings = s.readSettings()
	for i, m := range f.Metadata {
		key, value := "metadata_key_"+strconv.Itoa(i), "metadata_value_"+strconv.Itoa(i)
		k, v := "{"+key+":String}", "{"+value+":String}"
		params = params.Text(key, m.Key).Text(value, m.Value)
		b.WriteString(" AND (JSONType(metadata, " + k + ") = 'String' AND JSONExtractString(metadata, " + k + ") = " + v)
		if isJSONScalar(m.Value) {
			// Both sides through the same function, which writes 1.50 as 1.5.
			b.WriteString(" OR JSONType(metadata, " + k + ") IN ('Int64', 'UInt64', 'Double', 'Bool') AND JSONExtractRaw(metadata, " + k + ") = JSONExtractRaw(concat('{\"v\":', " + v + ", '}'), 'v')")
		}
		b.WriteString(")")
	}
	if len(f.Metadata) > 0 {
		// simdjson gives up on a whole object for one integer of more than 64 bits.
		settings = append(settings, conn.Setting("allow_simdjson", "0"))
	}
	return b.String(), params, settings
}

// isJSONScalar reports whether text is a JSON number, true or false.
func isJSONScalar(text string) bool {
	if text == "true" || text == "false" {
		return true
	}
	// The grammar of RFC 8259, of which strconv takes a superset.
	rest := strings.TrimPrefix(text, "-")
	digits := func() bool {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		rest = rest[n:]
		return n > 0
	}
	if after, ok := strings.CutPrefix(rest, "0"); ok {
		rest = after
	} else if !digits() {
		return false
	}
	if after, ok := strings.CutPrefix(rest, "."); ok {
		if rest = after; !digits() {
			return false
		}
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		rest = rest[1:]
		if rest != "" && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		if !digits() {
			return false
		}
	}
	return rest == ""
}

// Errors counts the filter's events and those with an error.
func (s *Store) Errors(ctx context.Context, f query.Filter) (query.ErrorCount, error) {
	from, params, settings := s.from(f, "")
	// error.null is the null map alone. With FINAL, "error IS NOT NULL" reads
	// the texts too.
	var events, errs proto.ColUInt64
	var count query.ErrorCount
	err := s.db.Query(ctx, conn.RoleAnalytics, "errors", s.readTimeout(), ch.Query{
		Body:       "SELECT count() AS events, countIf(error.null = 0) AS errors" + from,
		Parameters: params,
		Settings:   settings,
		Result:     proto.Results{{Name: "events", Data: &events}, {Name: "errors", Data: &errs}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				count = query.ErrorCount{Events: events[i], Errors: errs[i]}
			}
			return nil
		},
	})
	return count, err
}

// quantileLevels is the list of an aggregate function's parameters. Numbers
// alone come into it: they cannot be query parameters in all versions.
func quantileLevels(levels []float64) string {
	texts := make([]string, len(levels))
	for i, level := range levels {
		texts[i] = strconv.FormatFloat(level, 'f', -1, 64)
	}
	return "(" + strings.Join(texts, ", ") + ")"
}

func checkLevels(levels []float64) error {
	for _, level := range levels {
		if !(level > 0 && level < 1) {
			return event.Errorf(event.CodeInvalidValue, "q", "must lie between 0 and 1")
		}
	}
	return nil
}

// Latency returns quantiles per group, the group with the highest first
// quantile first, and of equal ones in order of conversation, then event name.
//
// Quantiles are exact: of n sorted values v[0..n-1], level q is at place
// q·(n-1), linear between its neighbours, as by numpy and PERCENTILE.INC.
func (s *Store) Latency(ctx context.Context, q query.Latency) ([]query.LatencyRow, error) {
	if err := checkLevels(q.Quantiles); err != nil {
		return nil, err
	}
	if len(q.Quantiles) == 0 {
		return nil, event.Errorf(event.CodeRequired, "q", "is required")
	}
	from, params, settings := s.from(q.Filter, " AND latency IS NOT NULL")
	var (
		conversation, name proto.ColStr
		events             proto.ColUInt64
		values             proto.ColFloat64
		quantiles          = values.Array()
		rows               []query.LatencyRow
	)
	sql := "SELECT count() AS events, quantilesExactInclusive" + quantileLevels(q.Quantiles) + "(assumeNotNull(latency)) AS quantiles"
	result := proto.Results{{Name: "events", Data: &events}, {Name: "quantiles", Data: quantiles}}
	var groups []string
	if q.ByConversation {
		sql += ", conversation_id"
		groups = append(groups, "conversation_id")
		result = append(result, proto.ResultColumn{Name: "conversation_id", Data: &conversation})
	}
	if q.ByEventName {
		sql += ", CAST(event_name, 'String') AS name"
		groups = append(groups, "name")
		result = append(result, proto.ResultColumn{Name: "name", Data: &name})
	}
	sql += from
	if q.ByConversation {
		settings = append(settings, groupsOnShards)
	}
	if len(groups) > 0 {
		sql += " GROUP BY " + strings.Join(groups, ", ")
	}
	sql += " HAVING events > 0 ORDER BY quantiles[1] DESC"
	for _, g := range groups {
		sql += ", " + g
	}
	err := s.db.Query(ctx, conn.RoleAnalytics, "latency", s.readTimeout(), ch.Query{
		Body:       sql + " LIMIT {limit:UInt64}",
		Parameters: params.Int("limit", int64(q.LimitRows)),
		Settings:   settings,
		Result:     result,
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				row := query.LatencyRow{Events: events[i], Quantiles: slices.Clone(quantiles.Row(i))}
				if q.ByConversation {
					row.ConversationID = conversation.Row(i)
				}
				if q.ByEventName {
					row.EventName = name.Row(i)
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}

// Conversations returns the top conversations, of equal ones those with the
// lower id first.
func (s *Store) Conversations(ctx context.Context, q query.Conversations) ([]query.ConversationRow, error) {
	var order string
	switch q.OrderBy {
	case query.OrderByErrors:
		order = "errors"
	case query.OrderByEvents:
		order = "events"
	case query.OrderByErrorRate:
		order = "errors / events"
	}
	from, params, settings := s.from(q.Filter, "")
	settings = append(settings, groupsOnShards)
	var (
		conversation proto.ColStr
		events, errs proto.ColUInt64
		first, last  proto.ColInt64
		rows         []query.ConversationRow
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "conversations", s.readTimeout(), ch.Query{
		Body: "SELECT conversation_id, count() AS events, countIf(error.null = 0) AS errors," +
			" toUnixTimestamp64Micro(min(timestamp)) AS first, toUnixTimestamp64Micro(max(timestamp)) AS last" + from +
			" GROUP BY conversation_id HAVING events >= {events_min:UInt64} ORDER BY " + order +
			" DESC, conversation_id LIMIT {limit:UInt64}",
		Parameters: params.Uint("events_min", q.EventsMin).Int("limit", int64(q.LimitRows)),
		Settings:   settings,
		Result: proto.Results{
			{Name: "conversation_id", Data: &conversation},
			{Name: "events", Data: &events},
			{Name: "errors", Data: &errs},
			{Name: "first", Data: &first},
			{Name: "last", Data: &last},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				rows = append(rows, query.ConversationRow{
					ConversationID: conversation.Row(i),
					ErrorCount:     query.ErrorCount{Events: events[i], Errors: errs[i]},
					FirstMicros:    first[i],
					LastMicros:     last[i],
				})
			}
			return nil
		},
	})
	return rows, err
}

// TimeSeries returns the buckets that have events, in order of time. A range
// of more than [TimeSeriesRowsMax] buckets is an [*event.Error] that names the
// field "interval". Quantiles are those of [Store.Latency].
func (s *Store) TimeSeries(ctx context.Context, q query.TimeSeries) ([]query.TimeSeriesRow, error) {
	if q.IntervalMicros <= 0 {
		return nil, event.Errorf(event.CodeInvalidValue, "interval", "must be positive")
	}
	if (q.UntilMicros-q.SinceMicros)/q.IntervalMicros >= TimeSeriesRowsMax {
		return nil, event.Errorf(event.CodeInvalidValue, "interval", "divides the time into more than %d buckets", TimeSeriesRowsMax)
	}
	if err := checkLevels(q.Quantiles); err != nil {
		return nil, err
	}
	from, params, settings := s.from(q.Filter, "")
	var (
		micros       proto.ColInt64
		events, errs proto.ColUInt64
		values       proto.ColFloat64
		quantiles    = values.Array()
		rows         []query.TimeSeriesRow
	)
	sql := "SELECT intDiv(toUnixTimestamp64Micro(timestamp), {interval:Int64}) * {interval:Int64} AS bucket," +
		" count() AS events, countIf(error.null = 0) AS errors"
	result := proto.Results{{Name: "bucket", Data: &micros}, {Name: "events", Data: &events}, {Name: "errors", Data: &errs}}
	if len(q.Quantiles) > 0 {
		sql += ", quantilesExactInclusiveIf" + quantileLevels(q.Quantiles) + "(assumeNotNull(latency), latency IS NOT NULL) AS quantiles"
		result = append(result, proto.ResultColumn{Name: "quantiles", Data: quantiles})
	}
	err := s.db.Query(ctx, conn.RoleAnalytics, "timeseries", s.readTimeout(), ch.Query{
		Body:       sql + from + " GROUP BY bucket ORDER BY bucket",
		Parameters: params.Int("interval", q.IntervalMicros),
		Settings:   settings,
		Result:     result,
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				row := query.TimeSeriesRow{Micros: micros[i], ErrorCount: query.ErrorCount{Events: events[i], Errors: errs[i]}}
				if len(q.Quantiles) > 0 {
					row.Quantiles = slices.Clone(quantiles.Row(i))
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}
