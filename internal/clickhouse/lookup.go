package clickhouse

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// byKeys selects the rows of the ids in the external table "keys". The tuple is
// the primary key, by whose index they are found. It is only a hint: an id has
// all of its key in it, so that no other column is read to compare.
const byKeys = `id IN (SELECT id FROM keys)
WHERE indexHint((toDate(timestamp), conversation_hash, timestamp) IN (SELECT toDate(timestamp), conversation_hash, timestamp FROM keys))`

// literalKeysMax is the most keys that stand in the text of a query. An external
// table takes a quarter of the time of a query of few keys.
const literalKeysMax = 128

// byLiteralKeys is byKeys with the keys in it. It is false where there are too
// many, or one whose time ClickHouse might not read.
func byLiteralKeys(ids []event.ID) (string, bool) {
	if len(ids) > literalKeysMax {
		return "", false
	}
	names := make([]byte, 0, 40*len(ids))
	keys := make([]byte, 0, 64*len(ids))
	for i, id := range ids {
		at := time.UnixMicro(id.Micros()).UTC()
		if at.Year() < 1971 || at.Year() > 2100 {
			return "", false
		}
		if i > 0 {
			names, keys = append(names, ','), append(keys, ',')
		}
		names = fmt.Appendf(names, "'%s'", id)
		keys = at.AppendFormat(keys, "('2006-01-02',")
		keys = strconv.AppendUint(keys, uint64(id.ConversationHash()), 10)
		keys = at.AppendFormat(keys, ",'2006-01-02 15:04:05.000000')")
	}
	return fmt.Sprintf("id IN (%s) WHERE indexHint((toDate(timestamp), conversation_hash, timestamp) IN (%s))", names, keys), true
}

// Cores returns the core row with the highest version of each of the events
// that has one within the retention, tombstones too. Duplicate ids are allowed.
// The error wraps [event.ErrQueryTooLarge] where the rows take more than
// [Config.LookupBytesMax]; those of one event never do.
func (s *Store) Cores(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	cores, err := s.cores(ctx, conn.RoleWrite, ids, &room{left: s.cfg.LookupBytesMax})
	if isTooLarge(err) {
		// It may be the older versions, which no merge has taken away yet.
		cores, err = s.cores(ctx, conn.RoleWrite, ids, &room{left: s.cfg.LookupBytesMax, newest: true})
	}
	if isTooLarge(err) {
		return nil, fmt.Errorf("%w: core rows of %d events (%w)", event.ErrQueryTooLarge, len(ids), err)
	}
	return cores, err
}

func (s *Store) cores(ctx context.Context, r conn.Role, ids []event.ID, into *room) (map[event.ID]event.Core, error) {
	cores := make(map[event.ID]event.Core, len(ids))
	err := s.eachKeys(ctx, r, "cores", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		columns := newCoreResult()
		return ch.Query{
			Body:     "SELECT " + coreColumns + " FROM events" + into.final() + byKey + " AND visible",
			Settings: into.settings(),
			Result:   columns.result(),
			OnResult: func(context.Context, proto.Block) error {
				for i := range columns.id {
					if old, ok := cores[event.ID(columns.id[i])]; !ok || event.Version(columns.version[i]) > old.Version {
						core := columns.core(i)
						cores[core.ID] = core
						into.takeCore(&core)
					}
				}
				return into.check()
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return cores, nil
}

// CoreStates is [Store.Cores] with only ID, Created, Version and Deleted, for
// updates that touch no column of the core row. Each further column of a
// lookup costs.
func (s *Store) CoreStates(ctx context.Context, ids []event.ID) (map[event.ID]event.Core, error) {
	cores := make(map[event.ID]event.Core, len(ids))
	err := s.eachKeys(ctx, conn.RoleWrite, "core_states", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		var (
			id               proto.ColUUID
			created, version proto.ColUInt64
			deleted          proto.ColUInt8
		)
		return ch.Query{
			Body: "SELECT id, created, version, deleted FROM events" + byKey + " AND visible",
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "created", Data: &created},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := event.ID(id[i])
					if old, ok := cores[key]; !ok || event.Version(version[i]) > old.Version {
						cores[key] = event.Core{
							ID: key, Created: event.Position(created[i]),
							Version: event.Version(version[i]), Deleted: deleted[i] != 0,
						}
					}
				}
				return nil
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return cores, nil
}

// Aliases returns the row with the highest version of each of the aliases that
// has one, tombstones too.
func (s *Store) Aliases(ctx context.Context, aliases []string) (map[string]event.AliasRow, error) {
	return s.aliases(ctx, conn.RoleWrite, aliases)
}

func (s *Store) aliases(ctx context.Context, r conn.Role, aliases []string) (map[string]event.AliasRow, error) {
	found := make(map[string]event.AliasRow, len(aliases))
	// In order, so that each chunk reads its own part of the table.
	aliases = slices.Clone(aliases)
	slices.Sort(aliases)
	for chunk := range slices.Chunk(slices.Compact(aliases), s.cfg.LookupKeysMax) {
		var keys, alias proto.ColStr
		keys.AppendArr(chunk)
		var (
			id      proto.ColUUID
			version proto.ColUInt64
			deleted proto.ColUInt8
		)
		err := s.db.Query(ctx, r, "aliases", s.cfg.LookupTimeout, ch.Query{
			Body:          "SELECT alias, id, version, deleted FROM event_aliases WHERE alias IN (SELECT alias FROM keys)",
			ExternalTable: "keys",
			ExternalData:  proto.Input{{Name: "alias", Data: &keys}},
			Settings:      conn.LookupSettings,
			Result: proto.Results{
				{Name: "alias", Data: &alias},
				{Name: "id", Data: &id},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					row := event.AliasRow{
						Alias: alias.Row(i), ID: event.ID(id[i]),
						Version: event.Version(version[i]), Deleted: deleted[i] == aliasDeleted, Refused: deleted[i] == aliasRefused,
					}
					// The mark of a create that was refused outranks that create's own row.
					if old, ok := found[row.Alias]; !ok || row.Version > old.Version || row.Version == old.Version && row.Refused {
						found[row.Alias] = row
					}
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Histories tells what is left in the tables of each of the events, deleted or
// not, within the retention or not. An event of which nothing is left has no
// entry. It is one lookup by the primary key for all, and one of the aliases
// before it, where there are some; each is cut into chunks of
// [Config.LookupKeysMax].
func (s *Store) Histories(ctx context.Context, refs []event.Ref) (map[event.Ref]event.History, error) {
	histories := make(map[event.Ref]event.History, len(refs))
	var (
		ids     []event.ID
		aliases []string
	)
	for _, ref := range refs {
		if ref.Alias != "" {
			aliases = append(aliases, ref.Alias)
		} else {
			ids = append(ids, ref.ID)
		}
	}
	// Of each internal id, the alias.
	internal := make(map[event.ID]string)
	if len(aliases) > 0 {
		rows, err := s.aliases(ctx, conn.RoleRead, aliases)
		if err != nil {
			return nil, err
		}
		for alias, row := range rows {
			if row.Refused {
				continue
			}
			h := event.History{}
			if row.Deleted {
				h.Deleted = row.Version.Position()
			} else {
				// The row outlives the event, and is of the create that won.
				h.Created = row.Version.Position()
				ids, internal[row.ID] = append(ids, row.ID), alias
			}
			histories[event.Ref{Alias: alias}] = h
		}
	}
	err := s.eachKeys(ctx, conn.RoleRead, "histories", s.cfg.LookupTimeout, ids, func(byKey string) ch.Query {
		var (
			id               proto.ColUUID
			created, deleted proto.ColUInt64
			visible          proto.ColUInt8
		)
		return ch.Query{
			// Of all versions that have not been merged away. An update has the
			// created of its event, so that the least one is the first create's.
			Body: "SELECT id, minIf(created, deleted = 0) AS first_create, minIf(version, deleted = 1) AS first_delete," +
				" toUInt8(max(visible)) AS is_visible FROM events" + byKey + " GROUP BY id",
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "first_create", Data: &created},
				{Name: "first_delete", Data: &deleted},
				{Name: "is_visible", Data: &visible},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := event.ID(id[i])
					ref := event.Ref{ID: key}
					if alias, ok := internal[key]; ok {
						ref = event.Ref{Alias: alias}
					}
					h := histories[ref]
					if created[i] != 0 {
						h.Created = event.Position(created[i])
					}
					if deleted[i] != 0 {
						h.Deleted = event.Version(deleted[i]).Position()
					}
					h.Stored, h.Expired = true, visible[i] == 0
					histories[ref] = h
				}
				return nil
			},
		}
	})
	if err != nil {
		return nil, err
	}
	return histories, nil
}

// Refused returns the refused creates of ids that are not behind an alias, one
// row for each id, as [event.AliasRow] says. It stops after rowsMax of them, and
// more says that there are others.
func (s *Store) Refused(ctx context.Context, rowsMax int) (refused []event.AliasRow, more bool, err error) {
	var (
		alias   proto.ColStr
		id      proto.ColUUID
		version proto.ColUInt64
	)
	err = s.db.Query(ctx, conn.RoleWrite, "refused", s.cfg.LookupTimeout, ch.Query{
		// The marks come first in the order of the table.
		Body: "SELECT alias, any(id) AS id, max(version) AS version FROM event_aliases " +
			"WHERE alias < char(1) AND deleted = " + strconv.Itoa(int(aliasRefused)) + " GROUP BY alias LIMIT {limit:UInt64}",
		Parameters: conn.Parameters{}.Int("limit", int64(rowsMax)+1),
		Settings:   conn.LookupSettings,
		Result:     proto.Results{{Name: "alias", Data: &alias}, {Name: "id", Data: &id}, {Name: "version", Data: &version}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				refused = append(refused, event.AliasRow{
					Alias: alias.Row(i), ID: event.ID(id[i]), Version: event.Version(version[i]), Refused: true,
				})
			}
			return nil
		},
	})
	if err != nil {
		return nil, false, err
	}
	if len(refused) > rowsMax {
		return refused[:rowsMax], true, nil
	}
	return refused, false, nil
}

// eachKeys runs the query for chunks of the ids, in the order of the sort key,
// so that each chunk reads its own part of the table. The query gets the clauses
// that select the rows of a chunk.
func (s *Store) eachKeys(ctx context.Context, r conn.Role, name string, timeout time.Duration, ids []event.ID, query func(byKey string) ch.Query) error {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, compareKeys)
	sorted = slices.Compact(sorted)
	for chunk := range slices.Chunk(sorted, s.cfg.LookupKeysMax) {
		prewhere := " PREWHERE "
		if first := chunk[0].ConversationHash(); !slices.ContainsFunc(chunk, func(id event.ID) bool { return id.ConversationHash() != first }) {
			// Of one conversation: said so that no other shard is asked.
			prewhere += "conversation_hash = " + strconv.FormatUint(uint64(first), 10) + " AND "
		}
		var q ch.Query
		if literal, ok := byLiteralKeys(chunk); ok {
			q = query(prewhere + literal)
		} else {
			q = query(prewhere + byKeys)
			q.ExternalTable, q.ExternalData = "keys", keysTable(chunk)
		}
		q.Settings = append(q.Settings, conn.LookupSettings...)
		if err := s.db.Query(ctx, r, name, timeout, q); err != nil {
			return err
		}
	}
	return nil
}

// keysTable is the external table "keys" of byKeys.
func keysTable(ids []event.ID) proto.Input {
	var (
		hash      = make(proto.ColUInt32, len(ids))
		timestamp = column[event.ID]{typ: typeTimestamp, rows: ids, order: make([]uint64, len(ids)), passes: []put[event.ID]{
			func(b *proto.Buffer, id *event.ID, _ *uint64) { b.PutInt64(id.Micros()) },
		}}
		key = make(proto.ColUUID, len(ids))
	)
	for i, id := range ids {
		hash[i], key[i] = id.ConversationHash(), [16]byte(id)
		timestamp.order[i] = uint64(i)
	}
	return proto.Input{
		{Name: "conversation_hash", Data: hash},
		{Name: "timestamp", Data: &timestamp},
		{Name: "id", Data: key},
	}
}

// compareKeys orders ids nearly as the tables do.
func compareKeys(a, b event.ID) int {
	return cmp.Or(
		cmp.Compare(a.Micros()/microsPerDay, b.Micros()/microsPerDay),
		cmp.Compare(a.ConversationHash(), b.ConversationHash()),
		bytes.Compare(a[:], b[:]),
	)
}

const coreColumns = "id, conversation_id, event_name, error, latency, metadata, alias, created, version, deleted"

// coreResult decodes blocks of coreColumns.
type coreResult struct {
	id                              proto.ColUUID
	conversationID, metadata, alias proto.ColStr
	eventName                       *proto.ColLowCardinality[string]
	errorText                       proto.ColStr
	error                           *proto.ColNullable[string]
	latencies                       proto.ColFloat64
	latency                         *proto.ColNullable[float64]
	created, version                proto.ColUInt64
	deleted                         proto.ColUInt8
}

func newCoreResult() *coreResult {
	r := &coreResult{eventName: new(proto.ColStr).LowCardinality()}
	r.error, r.latency = r.errorText.Nullable(), r.latencies.Nullable()
	return r
}

func (r *coreResult) result() proto.Results {
	return proto.Results{
		{Name: "id", Data: &r.id},
		{Name: "conversation_id", Data: &r.conversationID},
		{Name: "event_name", Data: r.eventName},
		{Name: "error", Data: r.error},
		{Name: "latency", Data: r.latency},
		{Name: "metadata", Data: &r.metadata},
		{Name: "alias", Data: &r.alias},
		{Name: "created", Data: &r.created},
		{Name: "version", Data: &r.version},
		{Name: "deleted", Data: &r.deleted},
	}
}

func (r *coreResult) core(i int) event.Core {
	c := event.Core{
		ID:             event.ID(r.id[i]),
		ConversationID: r.conversationID.Row(i),
		EventName:      r.eventName.Row(i),
		Metadata:       r.metadata.Row(i),
		Alias:          r.alias.Row(i),
		Created:        event.Position(r.created[i]),
		Version:        event.Version(r.version[i]),
		Deleted:        r.deleted[i] != 0,
	}
	if !r.error.IsElemNull(i) {
		c.Error = r.errorText.Row(i)
	}
	if !r.latency.IsElemNull(i) {
		c.Latency, c.HasLatency = r.latencies[i], true
	}
	return c
}
