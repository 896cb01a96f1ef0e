package clickhouse

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

// Occupancy tells which minutes have core rows, tombstones too: the first and
// the last of all, which the parts' own metadata has, and each one since a
// time, which reads the timestamps since then.
func (s *Store) Occupancy(ctx context.Context, sinceMicros int64) (event.Occupancy, error) {
	o := event.Occupancy{SinceMicros: sinceMicros}
	var (
		rows        proto.ColUInt64
		first, last proto.ColInt64
	)
	err := s.query(ctx, "occupancy", s.cfg.LookupTimeout, ch.Query{
		Body: "SELECT count() AS n, toUnixTimestamp64Micro(min(timestamp)) AS first, toUnixTimestamp64Micro(max(timestamp)) AS last FROM events",
		Result: proto.Results{
			{Name: "n", Data: &rows}, {Name: "first", Data: &first}, {Name: "last", Data: &last},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range rows {
				o.Empty, o.FirstMicros, o.LastMicros = rows[i] == 0, first[i], last[i]
			}
			return nil
		},
	})
	if err != nil || o.Empty {
		return o, err
	}
	var minute proto.ColInt64
	err = s.query(ctx, "occupied_minutes", s.cfg.LookupTimeout, ch.Query{
		Body: `SELECT DISTINCT intDiv(toUnixTimestamp64Micro(timestamp), 60000000) AS minute FROM events
			PREWHERE timestamp >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')`,
		Parameters: parameters{}.int("since", sinceMicros),
		Result:     proto.Results{{Name: "minute", Data: &minute}},
		OnResult: func(context.Context, proto.Block) error {
			o.Minutes = append(o.Minutes, minute...)
			return nil
		},
	})
	return o, err
}
