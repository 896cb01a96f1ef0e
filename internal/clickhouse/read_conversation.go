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

// Conversation returns a page of a conversation's events. The page ends early, with
// Next set, before an event that does not fit into q.BytesMax, by default
// [Config.PageBytesMax]. If the first event does not fit, the error is a
// [*event.LargeError]. Embeddings count if the query asks for them.
func (s *Store) Conversation(ctx context.Context, q query.Conversation) (query.Page, error) {
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
func (s *Store) page(ctx context.Context, q query.Conversation, next int, r *room) (query.Page, error) {
	from, params := pageFrom(q)
	columns := newCoreResult()
	var cores []event.Core
	err := s.db.Query(ctx, conn.RoleRead, "conversation", s.readTimeout(), ch.Query{
		Body:       "SELECT " + coreColumns + from,
		Parameters: params.Int("limit", int64(q.LimitEvents+next)),
		Settings:   append(s.readSettings(), r.settings()...),
		Result:     columns.result(),
		OnResult: func(context.Context, proto.Block) error {
			for i := range columns.id {
				cores = append(cores, columns.core(i))
				r.takeCore(&cores[len(cores)-1])
			}
			return r.check()
		},
	})
	if err != nil {
		return query.Page{}, err
	}
	var page query.Page
	if len(cores) == q.LimitEvents+next {
		cores = cores[:q.LimitEvents]
		next := cores[q.LimitEvents-1].ID
		page.Next = &next
	}
	if page.Events, err = s.assemble(ctx, cores, q.WithEmbeddings, r); err != nil {
		return query.Page{}, err
	}
	page.Bytes = q.BytesMax - r.left
	return page, nil
}

// pageSizes returns the sizes of the page's events and of the event after them.
func (s *Store) pageSizes(ctx context.Context, q query.Conversation) ([]sized, error) {
	from, params := pageFrom(q)
	var (
		id     proto.ColUUID
		bytes  proto.ColUInt64
		events []sized
	)
	err := s.db.Query(ctx, conn.RoleRead, "sizes", s.readTimeout(), ch.Query{
		Body:       "SELECT id, toUInt64(" + coreBytes + ") AS bytes" + from,
		Parameters: params.Int("limit", int64(q.LimitEvents)+1),
		Settings:   s.readSettings(),
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

// pageFrom returns the clauses that select the core rows of a page, at most as many as
// the parameter "limit", which the caller adds to params.
func pageFrom(q query.Conversation) (from string, params conn.Parameters) {
	from = " FROM events FINAL PREWHERE visible AND conversation_hash = {hash:UInt32}"
	params = conn.Parameters{}.Uint("hash", uint64(event.ConversationHash(q.ConversationID))).
		Text("conversation_id", q.ConversationID)
	where := " WHERE deleted = 0 AND conversation_id = {conversation_id:String}"
	if q.After != nil {
		const after = "fromUnixTimestamp64Micro({after:Int64}, 'UTC')"
		from += " AND timestamp >= " + after + " AND indexHint(toDate(timestamp) >= toDate(" + after + "))"
		where += " AND (timestamp, id) > (" + after + ", {after_id:UUID})"
		params = params.Int("after", q.After.Micros()).Text("after_id", q.After.String())
	}
	return from + where + " ORDER BY timestamp, id LIMIT {limit:UInt64}", params
}
