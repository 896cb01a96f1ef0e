package clickhouse

import (
	"cmp"
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// List returns a page of events. The page ends early, with Next set, before an event
// that does not fit into q.BytesMax, by default [Config.PageBytesMax]. If the first
// event does not fit, the error is a [*event.LargeError]. Embeddings count if the
// query asks for them.
func (s *Store) List(ctx context.Context, q query.List) (query.Page, error) {
	q.BytesMax = cmp.Or(q.BytesMax, s.cfg.PageBytesMax)
	// No event takes less.
	q.LimitEvents = min(q.LimitEvents, max(1, q.BytesMax/eventBytes))
	r, next := &room{left: q.BytesMax}, 1 // one event more tells whether there is a next page
	for range measuresMax {
		page, err := s.page(ctx, q, next, r)
		if !isTooLarge(err) {
			return page, err
		}
		events, err := s.pageSizes(ctx, q)
		if err != nil {
			return query.Page{}, err
		}
		n := fitting(events, q.BytesMax)
		if n == 0 && len(events) > 0 {
			return query.Page{}, &event.LargeError{Bytes: events[0].bytes}
		}
		r = &room{left: q.BytesMax, newest: true}
		if n < len(events) {
			// There is a next page. Its first event must not be read with this page,
			// because it may be the event that does not fit.
			q.LimitEvents, next = n, 0
		}
	}
	return query.Page{}, &event.LargeError{Bytes: 2 * q.BytesMax} // it grows faster than it can be measured
}

// page reads a page into the room. next is 1 if one more event is to be read, to find
// out whether there is a next page, and 0 if it is known that there is one.
func (s *Store) page(ctx context.Context, q query.List, next int, r *room) (query.Page, error) {
	var (
		page  query.Page
		cores []event.Core
		err   error
		limit = q.LimitEvents + next
	)
	if q.ConversationID != "" {
		if cores, err = s.conversationCores(ctx, q, limit, r); err != nil {
			return page, err
		}
		if len(cores) == limit {
			cores = cores[:q.LimitEvents]
			page.Next = &cores[q.LimitEvents-1].ID
		}
	} else {
		ids, err := s.listIDs(ctx, q, limit)
		if err != nil {
			return page, err
		}
		if len(ids) == limit {
			ids = ids[:q.LimitEvents]
			page.Next = &ids[q.LimitEvents-1]
		}
		if cores, err = s.listedCores(ctx, q.Filter, ids, r); err != nil {
			return page, err
		}
	}
	if page.Next != nil {
		last := *page.Next // a copy that does not keep the rows
		page.Next = &last
	}
	if page.Events, err = s.assemble(ctx, cores, q.WithEmbeddings, r); err != nil {
		return query.Page{}, err
	}
	page.Bytes = q.BytesMax - r.left
	return page, nil
}

// conversationCores returns the first core rows of a list of one conversation. It is
// small enough to read whole rows at once.
func (s *Store) conversationCores(ctx context.Context, q query.List, limit int, r *room) ([]event.Core, error) {
	sel := s.selectPage(q)
	columns := newCoreResult()
	var cores []event.Core
	err := s.db.Query(ctx, conn.RoleRead, "conversation", s.readTimeout(), ch.Query{
		Body:       "SELECT " + coreColumns + sel.from() + orderBy(q.Newest) + " LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", int64(limit)),
		Settings:   append(sel.settings, r.settings()...),
		Result:     columns.result(),
		OnResult: func(context.Context, proto.Block) error {
			for i := range columns.id {
				cores = append(cores, columns.core(i))
				r.takeCore(&cores[len(cores)-1])
			}
			return r.check()
		},
	})
	return cores, err
}

// listedCores returns the core rows of the ids, in their order. It leaves out events
// that an update or a delete has taken out of the filter since they were found.
func (s *Store) listedCores(ctx context.Context, f query.Filter, ids []event.ID, r *room) ([]event.Core, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	sel := s.selectEvents(f)
	rows := make(map[event.ID]event.Core, len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "listed", s.readTimeout(), ids, func(byKey string) ch.Query {
		columns := newCoreResult()
		return ch.Query{
			Body:       "SELECT " + coreColumns + " FROM events FINAL" + byKey + " AND visible AND " + sel.where,
			Parameters: sel.params,
			Settings:   append(sel.settings, r.settings()...),
			Result:     columns.result(),
			OnResult: func(context.Context, proto.Block) error {
				for i := range columns.id {
					core := columns.core(i)
					rows[core.ID] = core
					r.takeCore(&core)
				}
				return r.check()
			},
		}
	})
	if err != nil {
		return nil, err
	}
	cores := make([]event.Core, 0, len(rows))
	for _, id := range ids {
		if core, ok := rows[id]; ok {
			cores = append(cores, core)
		}
	}
	return cores, nil
}

// pageSizes returns the sizes of the page's events and of the event after them.
func (s *Store) pageSizes(ctx context.Context, q query.List) ([]sized, error) {
	var events []sized
	if q.ConversationID != "" {
		sel := s.selectPage(q)
		var (
			id    proto.ColUUID
			bytes proto.ColUInt64
		)
		err := s.db.Query(ctx, conn.RoleRead, "sizes", s.readTimeout(), ch.Query{
			Body:       "SELECT id, toUInt64(" + coreBytes + ") AS bytes" + sel.from() + orderBy(q.Newest) + " LIMIT {limit:UInt64}",
			Parameters: sel.params.Int("limit", int64(q.LimitEvents)+1),
			Settings:   sel.settings,
			Result:     proto.Results{{Name: "id", Data: &id}, {Name: "bytes", Data: &bytes}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					events = append(events, sized{event.ID(id[i]), eventBytes + int(bytes[i])})
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
		return events, s.measure(ctx, events, q.WithEmbeddings)
	}
	ids, err := s.listIDs(ctx, q, q.LimitEvents+1)
	if err != nil {
		return nil, err
	}
	return s.sizes(ctx, ids, q.WithEmbeddings)
}

// selectPage returns the selection of the events of a list that come after q.After.
func (s *Store) selectPage(q query.List) selection {
	sel := s.selectEvents(boundAfter(q.Filter, q.After, q.Newest)) // the bounds let the index find the place
	sel.where += sel.after(q.After, q.Newest)
	return sel
}

// boundAfter narrows the times of a filter to what a list can have after an event; nil
// is the beginning of the list.
func boundAfter(f query.Filter, after *event.ID, newest bool) query.Filter {
	switch {
	case after == nil:
	case newest:
		f.UntilMicros = min(f.UntilMicros, after.Micros()+1)
	default:
		f.SinceMicros = max(f.SinceMicros, after.Micros())
	}
	return f
}

// after returns a condition, which begins with AND, of the rows that come after an
// event in a list. It is empty at the beginning of the list.
func (sel *selection) after(after *event.ID, newest bool) string {
	if after == nil {
		return ""
	}
	than := ">"
	if newest {
		than = "<"
	}
	sel.params = sel.params.Int("after", after.Micros()).Text("after_id", after.String())
	return " AND (timestamp, id) " + than + " (fromUnixTimestamp64Micro({after:Int64}, 'UTC'), {after_id:UUID})"
}

// orderBy returns the ORDER BY clause of a list of events.
func orderBy(newest bool) string {
	if newest {
		return " ORDER BY timestamp DESC, id DESC"
	}
	return " ORDER BY timestamp, id"
}
