package schema

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Parts returns the number of active parts in the fullest partition of each table.
// ClickHouse limits this number: inserts slow down at 1,000. On a cluster it is the
// number of the fullest shard, as one replica of each shard has it.
func (s *Schema) Parts(ctx context.Context) (map[string]uint64, error) {
	var (
		table proto.ColStr
		count proto.ColUInt64
		parts = make(map[string]uint64)
	)
	from, shard, database := "system.parts", "", s.cfg.Database
	if l := s.layout.Load(); l != nil {
		from, shard, database = "cluster('"+l.cluster+"', system.parts)", ", _shard_num", database+shardSuffix
	}
	err := s.db.Query(ctx, conn.RoleAdmin, "parts", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT table, max(n) AS parts FROM (
				SELECT table, count() AS n FROM ` + from + `
				WHERE active AND database = {database:String} GROUP BY table, partition_id` + shard + `
			) GROUP BY table`,
		Parameters: conn.Parameters{}.Text("database", database),
		Result:     proto.Results{{Name: "table", Data: &table}, {Name: "parts", Data: &count}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range count {
				parts[table.Row(i)] = count[i]
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return parts, nil
}
