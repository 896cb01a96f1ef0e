package clickhouse

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// Occupancy returns which minutes have core rows, tombstones included: the first and the
// last of all minutes, from the metadata of the parts, and every minute of a window,
// from the timestamps in the window. The window has no end if untilMicros is 0.
//
// It takes at most [Config.OccupancyTimeout]. The error wraps [event.ErrTooExpensive]
// if it would take longer, or more memory than the server allows.
func (s *Store) Occupancy(ctx context.Context, sinceMicros, untilMicros int64) (event.Occupancy, error) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.OccupancyTimeout)
	defer cancel()
	o, err := s.occupancy(bounded, sinceMicros, untilMicros)
	if err != nil && ctx.Err() == nil && (bounded.Err() != nil || conn.IsTooExpensive(err)) {
		return o, fmt.Errorf("%w: %w", event.ErrTooExpensive, err)
	}
	return o, err
}

func (s *Store) occupancy(ctx context.Context, sinceMicros, untilMicros int64) (event.Occupancy, error) {
	o := event.Occupancy{SinceMicros: sinceMicros, UntilMicros: untilMicros}
	var (
		rows        proto.ColUInt64
		first, last proto.ColInt64
	)
	err := s.db.Query(ctx, conn.RoleWrite, "occupancy", s.cfg.OccupancyTimeout, ch.Query{
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
	where := "timestamp >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')"
	window := conn.Parameters{}.Int("since", sinceMicros)
	if untilMicros != 0 {
		where += " AND timestamp < fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
		window = window.Int("until", untilMicros)
	}
	var minute proto.ColInt64
	err = s.db.Query(ctx, conn.RoleWrite, "occupied_minutes", s.cfg.OccupancyTimeout, ch.Query{
		Body: `SELECT DISTINCT intDiv(toUnixTimestamp64Micro(timestamp), 60000000) AS minute FROM events
			PREWHERE ` + where,
		Parameters: window,
		Result:     proto.Results{{Name: "minute", Data: &minute}},
		OnResult: func(context.Context, proto.Block) error {
			o.Minutes = append(o.Minutes, minute...)
			return nil
		},
	})
	return o, err
}
