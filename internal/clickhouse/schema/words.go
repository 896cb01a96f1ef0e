package schema

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// wordsMigration is the version of the migration that added the index of words.
const wordsMigration = 10

// IndexWords has the index of words built for the contents that were stored before it
// was added, and returns the number of parts that still lack it. A search reads all
// contents of such parts. ClickHouse builds the index in the background, part by part,
// also after a restart. It writes the index alone, not the contents.
//
// A merge that began before the index was added, and ended after it, leaves a part
// without the index that is not counted. The next merge of that part adds it.
func (s *Schema) IndexWords(ctx context.Context) (parts int, err error) {
	err = s.eachShard(ctx, func(shard *Schema, _ string) error {
		old, running, err := shard.partsWithoutWords(ctx)
		if err != nil {
			return err
		}
		parts += max(old, running)
		if old == 0 || running > 0 {
			return nil
		}
		err = shard.db.Do(ctx, conn.RoleAdmin, shard.cfg.QueryTimeout, ch.Query{
			Body:     "ALTER TABLE event_contents MATERIALIZE INDEX content_words",
			Settings: []ch.Setting{conn.Setting("mutations_sync", "0")},
		})
		if err != nil {
			return fmt.Errorf("build the index of words: %w", conn.WithoutValues(err))
		}
		return nil
	})
	return parts, err
}

// partsWithoutWords returns the number of parts from before the index of words, and of
// those for which it is being built.
func (s *Schema) partsWithoutWords(ctx context.Context) (old, running int, err error) {
	count := func(n *int, query string) error {
		var parts proto.ColUInt64
		return s.db.Query(ctx, conn.RoleAdmin, "words", s.cfg.QueryTimeout, ch.Query{
			Body:       query,
			Parameters: conn.Parameters{}.Text("database", s.cfg.Database).Uint("version", wordsMigration),
			Result:     proto.Results{{Name: "parts", Data: &parts}},
			OnResult: func(context.Context, proto.Block) error {
				for _, rows := range parts {
					*n = int(rows)
				}
				return nil
			},
		})
	}
	// In this order: if the building ends in between, no old part is counted, and it is
	// not begun again.
	err = count(&running, `SELECT toUInt64(sum(parts_to_do)) AS parts FROM system.mutations
		WHERE NOT is_done AND database = {database:String} AND table = 'event_contents' AND command LIKE '%MATERIALIZE INDEX content_words%'`)
	if err != nil {
		return 0, 0, err
	}
	// A part that the building has written is younger than the migration.
	err = count(&old, `SELECT count() AS parts FROM system.parts
		WHERE active AND database = {database:String} AND table = 'event_contents'
			AND modification_time <= (SELECT toDateTime(max(applied_at)) FROM schema_migrations WHERE version = {version:UInt64})`)
	return old, running, err
}
