package clickhouse

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// windowGrowth is how much longer each window of a list is than the one before.
	windowGrowth = 4
	// searchGrowth is the same for a search of text. The index finds the rows of a
	// longer window at little more cost.
	searchGrowth = 30
)

// window is a range of time: since ≤ timestamp < until, in Unix microseconds.
type window struct{ since, until int64 }

// windows are adjacent ranges of time that a list is read from one after the other,
// until it has enough rows, so that the first page of a long time does not read all of
// it. They begin at the end where the list begins, with one day, and each is longer
// than the one before. A window ends where a day ends, because a part of a day costs
// as much as the whole of it.
type windows struct {
	left   window
	newest bool
	// days is the length of the next window, and growth how much longer each one is
	// than the one before.
	days, growth int64
}

// windows returns the windows of a range. They do not reach beyond the rows that the
// table has. There is one only if the table has few rows.
func (s *Store) windows(ctx context.Context, since, until int64, newest bool) (*windows, error) {
	var (
		rows        proto.ColUInt64
		first, last proto.ColInt64
		w           = &windows{newest: newest, days: 1, growth: windowGrowth}
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "bounds", s.readTimeout(), ch.Query{
		// The server keeps these figures of each part, so it reads no rows for them.
		Body: "SELECT count() AS rows, toUnixTimestamp64Micro(min(timestamp)) AS first, toUnixTimestamp64Micro(max(timestamp)) AS last FROM events",
		Settings: append(s.readSettings(),
			conn.Setting("optimize_use_implicit_projections", "1")),
		Result: proto.Results{{Name: "rows", Data: &rows}, {Name: "first", Data: &first}, {Name: "last", Data: &last}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range rows {
				if rows[i] == 0 {
					continue
				}
				w.left = window{max(clampMicros(since), first[i]), min(clampMicros(until), last[i]+1)}
				if rows[i] <= uint64(s.cfg.ListRowsMax) {
					w.days = query.MicrosMax / microsPerDay
				}
			}
			return nil
		},
	})
	return w, err
}

// next returns the next window; false after the last one.
func (w *windows) next() (window, bool) {
	if w.left.since >= w.left.until {
		return window{}, false
	}
	next := w.left
	if w.newest {
		day := (next.until - 1) / microsPerDay
		next.since = max(next.since, (day+1-w.days)*microsPerDay)
		w.left.until = next.since
	} else {
		day := next.since / microsPerDay
		next.until = min(next.until, (day+w.days)*microsPerDay)
		w.left.since = next.until
	}
	w.days = min(w.days*w.growth, query.MicrosMax/microsPerDay)
	return next, true
}

// listIDs returns the ids of the first events of a list, at most limit. It reads the
// columns of the sort key and of the filter alone.
func (s *Store) listIDs(ctx context.Context, q query.List, limit int) ([]event.ID, error) {
	bounds := boundAfter(q.Filter, q.After, q.Newest)
	windows, err := s.windows(ctx, bounds.SinceMicros, bounds.UntilMicros, q.Newest)
	if err != nil {
		return nil, err
	}
	var ids []event.ID
	for len(ids) < limit {
		w, ok := windows.next()
		if !ok {
			break
		}
		q.SinceMicros, q.UntilMicros = w.since, w.until
		sel := s.selectPage(q)
		var id proto.ColUUID
		err := s.db.Query(ctx, conn.RoleAnalytics, "list", s.readTimeout(), ch.Query{
			Body:       "SELECT id" + sel.from() + orderBy(q.Newest) + " LIMIT {limit:UInt64}",
			Parameters: sel.params.Int("limit", int64(limit-len(ids))),
			Settings:   sel.settings,
			Result:     proto.Results{{Name: "id", Data: &id}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					ids = append(ids, event.ID(id[i]))
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}
