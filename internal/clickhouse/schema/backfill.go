package schema

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// backfill says how the parts of a table that are older than a migration get what the
// migration added.
type backfill struct {
	// name says in errors what is added.
	name  string
	table string
	// command is the rest of an ALTER TABLE that adds it to all parts.
	command string
	// oldParts counts the active parts that lack it, as "parts". It has the parameter
	// "database".
	oldParts string
}

// backfill starts the work on each shard that has old parts and is not at work yet. It
// returns the number of parts that are left on all shards.
func (s *Schema) backfill(ctx context.Context, b *backfill) (parts int, err error) {
	err = s.eachShard(ctx, func(shard *Schema, _ string) error {
		old, running, err := shard.partsWithout(ctx, b)
		if err != nil {
			return err
		}
		parts += max(old, running)
		if old == 0 || running > 0 {
			return nil
		}
		err = shard.db.Do(ctx, conn.RoleAdmin, shard.cfg.QueryTimeout, ch.Query{
			Body:     "ALTER TABLE " + b.table + " " + b.command,
			Settings: []ch.Setting{conn.Setting("mutations_sync", "0")},
		})
		if err != nil {
			return fmt.Errorf("build %s: %w", b.name, conn.WithoutValues(err))
		}
		return nil
	})
	return parts, err
}

// partsWithout returns the number of parts that lack what the backfill adds, and the
// number of those that ClickHouse is at work on.
func (s *Schema) partsWithout(ctx context.Context, b *backfill) (old, running int, err error) {
	count := func(n *int, query string) error {
		var parts proto.ColUInt64
		return s.db.Query(ctx, conn.RoleAdmin, "backfill", s.cfg.QueryTimeout, ch.Query{
			Body:       query,
			Parameters: conn.Parameters{}.Text("database", s.cfg.Database).Text("table", b.table).Text("command", "%"+b.command+"%"),
			Result:     proto.Results{{Name: "parts", Data: &parts}},
			OnResult: func(context.Context, proto.Block) error {
				for _, rows := range parts {
					*n = int(rows)
				}
				return nil
			},
		})
	}
	// In this order: if the work ends in between, no old part is counted, and the work is
	// not started again.
	err = count(&running, `SELECT toUInt64(sum(parts_to_do)) AS parts FROM system.mutations
		WHERE NOT is_done AND database = {database:String} AND table = {table:String} AND command LIKE {command:String}`)
	if err != nil {
		return 0, 0, err
	}
	err = count(&old, b.oldParts)
	return old, running, err
}
