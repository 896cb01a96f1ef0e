package schema

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// A tombstone covers a row if the row has the same key, is not a tombstone, and is
// still in a part: such a row is deleted, whatever its version. The search for
// covered rows takes the tombstones in batches in the order of their keys, and looks
// up the keys of each batch by the primary index. So it needs the memory of one
// batch, and reads at most the ids of the table once, mostly far less.
//
// A pair of a tombstone and a covered row is new if either is in a part that was not
// searched before. So the search takes only the tombstones of new parts, and looks
// for rows in all parts. That misses a new row under an old tombstone, so all
// tombstones are searched from time to time.

const (
	// searchTimeout bounds one query of a search, which uses one thread. The longest
	// query reads a column of one byte of a whole month.
	searchTimeout = 15 * time.Minute
	// searchBytesMax bounds the server's memory for one query of a search.
	searchBytesMax = 1 << 30
)

// searchState records what has been searched of a month.
type searchState struct {
	// parts are the parts whose tombstones covered nothing when they were searched.
	parts map[part]struct{}
	// whole is when all of the month's tombstones were searched last, in
	// microseconds of the server's Unix time; 0 for never.
	whole int64
	// grown says that new parts came after that.
	grown bool
	// covered is the key of a row that a tombstone covers, nil if none was found.
	covered *tombstoneKey
}

// tombstoneKey is the key of a row and of the tombstone that covers it. In the table
// events, field is 0.
type tombstoneKey struct {
	id    event.ID
	field int8
}

// search is one search of a month.
type search struct {
	tableMonth

	state *searchState
	// from are the parts whose tombstones are searched. whole says that from has all
	// parts.
	from  []part
	whole bool
	// ended says that the search is complete; state has its result.
	ended bool
}

// searchTable searches months of one table. After an error, the searches that are not
// complete have not ended.
func (s *Schema) searchTable(ctx context.Context, months []*search, now int64, after time.Duration) error {
	if err := s.lookAgain(ctx, months); err != nil {
		return err
	}
	var open []*search
	for _, m := range months {
		if !m.ended && !m.begin(now, after) {
			m.end(now)
		}
		if !m.ended {
			open = append(open, m)
		}
	}
	if len(open) == 0 {
		return nil
	}
	if err := s.searchMonths(ctx, open); err != nil {
		return err
	}
	for _, m := range open {
		m.end(now)
	}
	return nil
}

// begin decides which parts to search, and reports whether there are any.
func (m *search) begin(now int64, after time.Duration) bool {
	if len(m.parts) == 0 || len(m.parts) == 1 && m.parts[0].merged {
		return false // one merged part has one row for each key
	}
	for _, p := range m.parts {
		if _, ok := m.state.parts[p]; !ok {
			m.from = append(m.from, p)
		}
	}
	grown := m.state.grown || len(m.from) > 0
	m.whole = m.state.whole == 0 || m.since != 0 || grown && now-m.state.whole >= after.Microseconds()
	if m.whole {
		m.from = m.parts
	}
	return len(m.from) > 0
}

// end records the result of the search.
func (m *search) end(now int64) {
	m.ended = true
	if m.state.covered != nil {
		return
	}
	m.state.parts = make(map[part]struct{}, len(m.parts))
	for _, p := range m.parts {
		m.state.parts[p] = struct{}{}
	}
	switch {
	case m.whole || len(m.parts) <= 1:
		m.state.whole, m.state.grown = now, false
	case len(m.from) > 0:
		m.state.grown = true
	}
}

// lookAgain ends the search of the months that still have the covered row that was
// found before. It forgets a row that ClickHouse's own merges have removed.
func (s *Schema) lookAgain(ctx context.Context, months []*search) error {
	var waiting []*search
	for _, m := range months {
		if m.state.covered != nil {
			waiting = append(waiting, m)
		}
	}
	for chunk := range slices.Chunk(waiting, s.cfg.LookupKeysMax) {
		keys := make([]tombstoneKey, len(chunk))
		for i, m := range chunk {
			keys[i] = *m.state.covered
		}
		found, err := s.lookUnder(ctx, chunk, keys, "")
		if err != nil {
			return err
		}
		for _, m := range chunk {
			_, m.ended = found[m.partition]
			if !m.ended {
				m.state.covered = nil
			}
		}
	}
	return nil
}

// aloneFrom is the number of tombstones from which a merged part is searched by
// itself.
const aloneFrom = 1000

// searchMonths searches months of one table until it has found a covered row in each,
// or there is none.
func (s *Schema) searchMonths(ctx context.Context, months []*search) error {
	counts, err := s.countTombstones(ctx, months)
	if err != nil {
		return err
	}
	// Most parts have few tombstones, so the parts of all months are searched together.
	var (
		together []string
		of       []*search
		sum      uint64
	)
	rest := func() error {
		if sum == 0 {
			return nil
		}
		err := s.searchParts(ctx, of, together, "")
		together, of, sum = nil, nil, 0
		return err
	}
	for _, m := range months {
		for _, p := range m.from {
			n := counts[p.name]
			if n == 0 || m.state.covered != nil {
				continue
			}
			if p.merged && n >= aloneFrom {
				// The tombstones of a merged part cover nothing in the same part, so it
				// need not be read for them.
				if err := s.searchParts(ctx, []*search{m}, []string{p.name}, p.name); err != nil {
					return err
				}
				continue
			}
			if sum+n > uint64(s.cfg.LookupKeysMax) {
				if err := rest(); err != nil {
					return err
				}
			}
			together, sum = append(together, p.name), sum+n
			if len(of) == 0 || of[len(of)-1] != m {
				of = append(of, m)
			}
		}
	}
	return rest()
}

// inParts selects the rows of the parts in the parameter. The name of a part contains
// its partition.
const inParts = "_part IN (SELECT arrayJoin(splitByChar(',', {parts:String})))"

// countTombstones returns the number of tombstones of each part that has any. It reads
// one column of one byte.
func (s *Schema) countTombstones(ctx context.Context, months []*search) (map[string]uint64, error) {
	var (
		parts  []string
		name   proto.ColStr
		n      proto.ColUInt64
		counts = make(map[string]uint64)
	)
	for _, m := range months {
		for _, p := range m.from {
			parts = append(parts, p.name)
		}
	}
	err := s.db.Query(ctx, conn.RoleAdmin, "tombstones", searchTimeout, ch.Query{
		Body: "SELECT CAST(_part AS String) AS part, count() AS n FROM " + months[0].table + `
			PREWHERE deleted = 1 WHERE ` + inParts + ` GROUP BY part`,
		Parameters: conn.Parameters{}.Text("parts", strings.Join(parts, ",")),
		Settings:   searchSettings(),
		Result:     proto.Results{{Name: "part", Data: &name}, {Name: "n", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range n {
				counts[name.Row(i)] = n[i]
			}
			return nil
		},
	})
	return counts, err
}

// searchParts is searchMonths for some parts, batch by batch. The tombstones cover no
// row of the part but, which is skipped; but is empty if there is no such part.
func (s *Schema) searchParts(ctx context.Context, months []*search, parts []string, but string) error {
	open := func(m *search) bool { return m.state.covered == nil }
	for last := (*tombstoneKey)(nil); slices.ContainsFunc(months, open); {
		keys, err := s.tombstones(ctx, months[0].tableMonth, parts, last)
		if err != nil || len(keys) == 0 {
			return err
		}
		under, err := s.lookUnder(ctx, months, keys, but)
		if err != nil {
			return err
		}
		for _, m := range months {
			if key, ok := under[m.partition]; ok {
				m.state.covered = &key
			}
		}
		if len(keys) < s.cfg.LookupKeysMax {
			return nil
		}
		last = &keys[len(keys)-1]
	}
	return nil
}

// tombstones returns the keys of the next batch of tombstones in the parts, in the
// order of the table. A part that is gone has none.
func (s *Schema) tombstones(ctx context.Context, m tableMonth, parts []string, last *tombstoneKey) ([]tombstoneKey, error) {
	after := ""
	params := conn.Parameters{}.Text("parts", strings.Join(parts, ",")).Int("limit", int64(s.cfg.LookupKeysMax))
	if last != nil {
		// The primary index does not use the first condition, so the second repeats it in
		// a form that the index uses.
		after = ` AND (toDate(timestamp), conversation_hash, timestamp, id, f) > (toDate({at:DateTime64(6, 'UTC')}), {hash:UInt32}, {at:DateTime64(6, 'UTC')}, {id:UUID}, {field:Int8})
			AND (toDate(timestamp) > toDate({at:DateTime64(6, 'UTC')}) OR toDate(timestamp) = toDate({at:DateTime64(6, 'UTC')}) AND conversation_hash >= {hash:UInt32})`
		params = params.Text("at", time.UnixMicro(last.id.Micros()).UTC().Format("2006-01-02 15:04:05.000000")).
			Uint("hash", uint64(last.id.ConversationHash())).Text("id", last.id.String()).Int("field", int64(last.field))
	}
	settings := searchSettings()
	if len(parts) > 1 {
		// Reading many parts in order takes buffers for all of them at once. Sorting one
		// batch is cheaper.
		settings = append(settings, conn.Setting("optimize_read_in_order", "0"))
	}
	var (
		id   proto.ColUUID
		f    proto.ColInt8
		keys []tombstoneKey
	)
	err := s.db.Query(ctx, conn.RoleAdmin, "tombstones", searchTimeout, ch.Query{
		Body: "SELECT id, " + m.field() + " AS f FROM " + m.table + " PREWHERE deleted = 1 WHERE " + inParts + after + `
			ORDER BY toDate(timestamp), conversation_hash, timestamp, id` + m.orderByField() + ` LIMIT {limit:UInt64}`,
		Parameters: params,
		Settings:   settings,
		Result:     proto.Results{{Name: "id", Data: &id}, {Name: "f", Data: &f}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range f {
				keys = append(keys, tombstoneKey{event.ID(id[i]), f[i]})
			}
			return nil
		},
	})
	return keys, err
}

// field returns the expression of a row's field as a number.
func (m *tableMonth) field() string {
	if m.table == TableEvents {
		return "toInt8(0)"
	}
	return "toInt8(field)"
}

// orderByField returns the end of the sort key.
func (m *tableMonth) orderByField() string {
	if m.table == TableEvents {
		return ""
	}
	return ", field"
}

// lookUnder returns one covered key for each partition: one of the keys for which the
// month has a row that is not a tombstone, outside of the part but. The months are of
// one table, and there are at most LookupKeysMax keys.
func (s *Schema) lookUnder(ctx context.Context, months []*search, keys []tombstoneKey, but string) (map[string]tombstoneKey, error) {
	var (
		hash      = make(proto.ColUInt32, len(keys))
		timestamp = new(proto.ColDateTime64).WithPrecision(proto.PrecisionMicro).WithLocation(time.UTC)
		uuid      = make(proto.ColUUID, len(keys))
		field     = make(proto.ColInt8, len(keys))
	)
	for i, k := range keys {
		hash[i], uuid[i], field[i] = k.id.ConversationHash(), [16]byte(k.id), k.field
		timestamp.Data = append(timestamp.Data, proto.DateTime64(k.id.Micros()))
	}
	partitions := make([]string, len(months))
	for i, m := range months {
		partitions[i] = m.partition
	}
	var (
		partition proto.ColStr
		id        proto.ColUUID
		f         proto.ColInt8
		found     = make(map[string]tombstoneKey)
	)
	err := s.db.Query(ctx, conn.RoleAdmin, "under_tombstones", searchTimeout, ch.Query{
		Body: "SELECT CAST(_partition_id AS String) AS p, id, " + months[0].field() + " AS f FROM " + months[0].table + `
			PREWHERE deleted = 0 AND (id, f) IN (SELECT id, f FROM keys)
			WHERE indexHint((toDate(timestamp), conversation_hash, timestamp, id) IN (SELECT toDate(timestamp), conversation_hash, timestamp, id FROM keys))
			AND has(splitByChar(',', {partitions:String}), _partition_id) AND _part != {but:String}
			LIMIT 1 BY p LIMIT {months:UInt64}`,
		Parameters:    conn.Parameters{}.Text("partitions", strings.Join(partitions, ",")).Text("but", but).Uint("months", uint64(len(months))),
		ExternalTable: "keys",
		ExternalData: proto.Input{
			{Name: "conversation_hash", Data: hash},
			{Name: "timestamp", Data: timestamp},
			{Name: "id", Data: uuid},
			{Name: "f", Data: field},
		},
		Settings: slices.Concat(conn.LookupSettings, searchSettings()),
		Result:   proto.Results{{Name: "p", Data: &partition}, {Name: "id", Data: &id}, {Name: "f", Data: &f}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range f {
				found[partition.Row(i)] = tombstoneKey{event.ID(id[i]), f[i]}
			}
			return nil
		},
	})
	return found, err
}

func searchSettings() []ch.Setting {
	return []ch.Setting{conn.Setting("max_threads", "1"), conn.Setting("max_memory_usage", strconv.Itoa(searchBytesMax))}
}
