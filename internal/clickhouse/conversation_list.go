package clickhouse

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// previewEvents is how many events at each end of a conversation are looked at
	// for its previews.
	previewEvents = 5
	// eventNamesListed bounds the event names of a conversation in a list.
	eventNamesListed = 100
)

// ConversationList returns a page of conversations, the one with the latest event first, and of
// equal ones in the order of their ids.
//
// The conversations of the page are found in windows of time, the latest one first. Then
// all events of these few conversations are counted.
func (s *Store) ConversationList(ctx context.Context, q query.ConversationList) ([]query.ConversationSummary, error) {
	places, err := s.conversationPlaces(ctx, q)
	if err != nil || len(places) == 0 {
		return nil, err
	}
	return s.summaries(ctx, q, places)
}

// conversationPlaces returns the conversations of a page, in order.
func (s *Store) conversationPlaces(ctx context.Context, q query.ConversationList) ([]query.ConversationPlace, error) {
	windows, err := s.windows(ctx, q.SinceMicros, q.UntilMicros, true)
	if err != nil {
		return nil, err
	}
	until := windows.left.until
	if q.After != nil {
		windows.left.until = min(until, q.After.LastMicros+1)
	}
	for {
		w, ok := windows.next()
		if !ok {
			return nil, nil
		}
		// Each window reaches to the end, because a conversation that has a later event
		// comes earlier in the list.
		f := q.Filter
		f.SinceMicros, f.UntilMicros = w.since, until
		places, err := s.placesIn(ctx, q, f)
		if err != nil {
			return nil, err
		}
		if len(places) == q.LimitRows || w.since == windows.left.since {
			return places, nil
		}
	}
}

// placesIn returns the first conversations with an event of the filter f.
func (s *Store) placesIn(ctx context.Context, q query.ConversationList, f query.Filter) ([]query.ConversationPlace, error) {
	sel := s.selectEvents(f)
	having := ""
	if q.After != nil {
		having = " HAVING last < {last:Int64} OR last = {last:Int64} AND conversation_id > {after:String}"
		sel.params = sel.params.Int("last", q.After.LastMicros).Text("after", q.After.ConversationID)
	}
	var (
		conversation proto.ColStr
		last         proto.ColInt64
		places       []query.ConversationPlace
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "conversation_list", s.readTimeout(), ch.Query{
		Body: "SELECT conversation_id, toUnixTimestamp64Micro(max(timestamp)) AS last" + sel.from() +
			" GROUP BY conversation_id" + having + " ORDER BY last DESC, conversation_id LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", int64(q.LimitRows)),
		Settings:   append(sel.settings, groupsOnShards),
		Result:     proto.Results{{Name: "conversation_id", Data: &conversation}, {Name: "last", Data: &last}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range last {
				places = append(places, query.ConversationPlace{LastMicros: last[i], ConversationID: conversation.Row(i)})
			}
			return nil
		},
	})
	return places, err
}

// summaries returns the summaries of the conversations, in the order of a list.
func (s *Store) summaries(ctx context.Context, q query.ConversationList, places []query.ConversationPlace) ([]query.ConversationSummary, error) {
	sel := s.selectEvents(q.Filter)
	hashes := make([]string, len(places))
	ids := sel.conditions()
	texts := make([]string, len(places))
	for i, p := range places {
		hashes[i] = strconv.FormatUint(uint64(event.ConversationHash(p.ConversationID)), 10)
		texts[i] = p.ConversationID
	}
	sel.bounds += " AND conversation_hash IN (" + strings.Join(hashes, ", ") + ")"
	sel.where += " AND conversation_id IN (" + ids.texts(texts) + ")"
	sel.take(&ids)
	var (
		conversation    proto.ColStr
		events, errs    proto.ColUInt64
		first, last     proto.ColInt64
		names           = new(proto.ColStr).Array()
		heads, tails    = newEndsResult("heads"), newEndsResult("tails")
		rows            []query.ConversationSummary
		inputs, outputs [][]previewed
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "summaries", s.readTimeout(), ch.Query{
		Body: "SELECT conversation_id, count() AS events, countIf(error.null = 0) AS errors," +
			" toUnixTimestamp64Micro(min(timestamp)) AS first, toUnixTimestamp64Micro(max(timestamp)) AS last," +
			" arraySort(groupUniqArray(" + strconv.Itoa(eventNamesListed) + ")(CAST(event_name, 'String'))) AS names" +
			// The second one is in descending order.
			heads.columns("toUnixTimestamp64Micro(timestamp), reinterpretAsUInt128(id)") +
			tails.columns("-toUnixTimestamp64Micro(timestamp), bitNot(reinterpretAsUInt128(id))") +
			sel.from() + " GROUP BY conversation_id",
		Parameters: sel.params,
		Settings:   append(sel.settings, groupsOnShards),
		Result: append(append(proto.Results{
			{Name: "conversation_id", Data: &conversation},
			{Name: "events", Data: &events},
			{Name: "errors", Data: &errs},
			{Name: "first", Data: &first},
			{Name: "last", Data: &last},
			{Name: "names", Data: names},
		}, heads.result()...), tails.result()...),
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				rows = append(rows, query.ConversationSummary{
					ConversationID: conversation.Row(i),
					ErrorCount:     query.ErrorCount{Events: events[i], Errors: errs[i]},
					FirstMicros:    first[i], LastMicros: last[i],
					EventNames: names.Row(i),
				})
				inputs, outputs = append(inputs, heads.row(i)), append(outputs, tails.row(i))
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	firsts, err := s.previews(ctx, event.FieldInput, inputs, q.PreviewChars)
	if err != nil {
		return nil, err
	}
	lasts, err := s.previews(ctx, event.FieldOutput, outputs, q.PreviewChars)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i].FirstInput, rows[i].LastOutput = firsts[i], lasts[i]
	}
	slices.SortFunc(rows, func(a, b query.ConversationSummary) int {
		return cmp.Or(cmp.Compare(b.LastMicros, a.LastMicros), strings.Compare(a.ConversationID, b.ConversationID))
	})
	return rows, nil
}

// previewed is an event whose content may be a preview.
type previewed struct {
	id      event.ID
	created event.Position
}

// endsResult decodes the first events, or the last ones, of each conversation.
type endsResult struct {
	name    string
	ids     proto.ColUUID
	created proto.ColUInt64
	// idLists and createdLists have a list of at most previewEvents for each conversation.
	idLists      proto.ColumnOf[[]uuid.UUID]
	createdLists proto.ColumnOf[[]uint64]
}

func newEndsResult(name string) *endsResult {
	r := &endsResult{name: name}
	r.idLists, r.createdLists = r.ids.Array(), r.created.Array()
	return r
}

// columns returns the SQL of the columns. order is what the events are sorted by.
func (r *endsResult) columns(order string) string {
	return ", arrayMap(e -> e.3, groupArraySorted(" + strconv.Itoa(previewEvents) + ")((" + order + ", id, created)) AS " + r.name + ") AS " + r.name + "_ids" +
		", arrayMap(e -> e.4, " + r.name + ") AS " + r.name + "_created"
}

func (r *endsResult) result() proto.Results {
	return proto.Results{{Name: r.name + "_ids", Data: r.idLists}, {Name: r.name + "_created", Data: r.createdLists}}
}

// row returns the events of conversation i.
func (r *endsResult) row(i int) []previewed {
	ids, created := r.idLists.Row(i), r.createdLists.Row(i)
	events := make([]previewed, len(ids))
	for j := range ids {
		events[j] = previewed{event.ID(ids[j]), event.Position(created[j])}
	}
	return events
}

// previews returns the beginning of the first content that each of the lists has; empty
// where there is none.
func (s *Store) previews(ctx context.Context, f event.Field, lists [][]previewed, chars int) ([]string, error) {
	var ids []event.ID
	for _, list := range lists {
		for _, p := range list {
			ids = append(ids, p.id)
		}
	}
	type beginning struct {
		version event.Version
		text    string
	}
	beginnings := make(map[event.ID]beginning, len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "previews", s.readTimeout(), ids, func(byKey string) ch.Query {
		var (
			id      proto.ColUUID
			text    proto.ColStr
			version proto.ColUInt64
		)
		return ch.Query{
			Body: "SELECT id, leftUTF8(content, {chars:UInt64}) AS text, version FROM event_contents FINAL" + byKey +
				" AND field = {field:String} AND deleted = 0 AND kind != 0",
			Parameters: conn.Parameters{}.Int("chars", int64(chars)).Text("field", f.String()),
			Settings:   s.readSettings(),
			Result:     proto.Results{{Name: "id", Data: &id}, {Name: "text", Data: &text}, {Name: "version", Data: &version}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					beginnings[event.ID(id[i])] = beginning{event.Version(version[i]), text.Row(i)}
				}
				return nil
			},
		}
	})
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(lists))
	for i, list := range lists {
		for _, p := range list {
			if b, ok := beginnings[p.id]; ok && b.version.Counts(p.created) {
				texts[i] = b.text
				break
			}
		}
	}
	return texts, nil
}
