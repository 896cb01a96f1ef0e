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

// byKeys selects the rows of the ids in the external table "keys". The index of the
// primary key, which is the tuple, finds them. The tuple is only a hint for the
// index: the id determines the whole key, so no other column is compared.
const byKeys = `id IN (SELECT id FROM keys)
WHERE indexHint((toDate(timestamp), conversation_hash, timestamp) IN (SELECT toDate(timestamp), conversation_hash, timestamp FROM keys))`

// literalKeysMax is the most keys in the text of a query. With few keys, an external
// table would take a quarter of the query's time.
const literalKeysMax = 128

// byLiteralKeys returns byKeys with the keys in the text. It returns false if there are
// too many keys, or one with a time that ClickHouse might not parse.
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

// eachKeys runs a query for each chunk of the ids. The ids are in the order of the sort
// key, so that each chunk reads its own part of the table. query gets the clauses
// that select the rows of a chunk.
func (s *Store) eachKeys(ctx context.Context, r conn.Role, name string, timeout time.Duration, ids []event.ID, query func(byKey string) ch.Query) error {
	sorted := slices.Clone(ids)
	slices.SortFunc(sorted, compareKeys)
	sorted = slices.Compact(sorted)
	for chunk := range slices.Chunk(sorted, s.cfg.LookupKeysMax) {
		prewhere := " PREWHERE "
		if first := chunk[0].ConversationHash(); !slices.ContainsFunc(chunk, func(id event.ID) bool { return id.ConversationHash() != first }) {
			// All ids are of one conversation. The condition keeps the query from the
			// other shards.
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

// keysTable returns the external table "keys" for byKeys.
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

// compareKeys orders ids almost as the tables do.
func compareKeys(a, b event.ID) int {
	return cmp.Or(
		cmp.Compare(a.Micros()/microsPerDay, b.Micros()/microsPerDay),
		cmp.Compare(a.ConversationHash(), b.ConversationHash()),
		bytes.Compare(a[:], b[:]),
	)
}
