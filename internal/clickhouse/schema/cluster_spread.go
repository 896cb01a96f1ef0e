package schema

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// spread creates the Distributed tables. It comes last, so that the tables of the
// shards are there when a process finds a Distributed table.
func (c *cluster) spread(ctx context.Context) error {
	return c.each(func(h *host) error {
		if err := h.front.createDatabase(ctx); err != nil {
			return err
		}
		fronts, err := h.front.definitions(ctx)
		if err != nil {
			return err
		}
		backs, err := h.back.definitions(ctx)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(backs)) {
			if name == "schema_migrations" || name == tableErasures {
				continue // these stay on their shard
			}
			key, ok := shardingKeys[name]
			if !ok {
				return fmt.Errorf("BUG: table %s has no sharding key", name)
			}
			want := definition{
				engine:  fmt.Sprintf("Distributed('%s', '%s', '%s', %s)", c.name, h.back.cfg.Database, name, key),
				comment: c.members.placement(), columns: backs[name].columns,
			}
			if fronts[name] == want {
				continue
			}
			create := "CREATE TABLE IF NOT EXISTS "
			if _, ok := fronts[name]; ok {
				create = "CREATE OR REPLACE TABLE "
			}
			// Without a list of columns, the table has those of the shard's table.
			err := h.front.define(ctx, create+name+" ENGINE = "+want.engine+" COMMENT '"+want.comment+"'")
			if err != nil && !ch.IsErr(err, codeTableExists) { // another process made it
				return fmt.Errorf("spread %s: %w", name, err)
			}
			h.done.Spread++
		}
		return nil
	})
}

// codeTableExists is the error when two processes replace a table at once.
const codeTableExists = 57

// definition is the part of a table's definition that is compared.
type definition struct{ engine, comment, columns string }

// definitions returns the definitions of all tables and views of the database.
func (s *Schema) definitions(ctx context.Context) (map[string]definition, error) {
	var (
		name, engine, remark, columns proto.ColStr
		all                           = make(map[string]definition)
	)
	err := s.db.Query(ctx, conn.RoleAdmin, "definitions", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT t.name AS name, t.engine_full AS engine, t.comment AS remark, c.columns AS columns
			FROM system.tables AS t
			LEFT JOIN
			(
				SELECT table, toString(arraySort(groupArray((position, name, type, default_kind, default_expression)))) AS columns
				FROM system.columns WHERE database = {database:String} GROUP BY table
			) AS c ON c.table = t.name
			WHERE t.database = {database:String}`,
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "name", Data: &name},
			{Name: "engine", Data: &engine},
			{Name: "remark", Data: &remark},
			{Name: "columns", Data: &columns},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				all[name.Row(i)] = definition{engine.Row(i), remark.Row(i), columns.Row(i)}
			}
			return nil
		},
	})
	return all, err
}
