package clickhouse

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// candidatesMin and candidatesMax bound how many candidates are read in one step.
	candidatesMin = 64
	candidatesMax = 1024
	// narrowAfter is the number of candidates after which the search finds out whether
	// most of them are outside of the filter.
	narrowAfter = 256
	// indexWordsMax bounds the words that the index is asked for. The rest is checked
	// afterwards, as all are.
	indexWordsMax = 32
	// needleWordsMax bounds the words that are looked for in undecoded contents.
	needleWordsMax = 3
)

// SearchText returns the newest events of the filter that have all phrases of the text in
// one of the fields.
//
// It finds candidates by an index of words, in any version of the contents, because
// FINAL would have to read all of them. Then it reads the current version of each
// candidate, and checks it. So neither an old version that matched nor a deleted
// event is found.
func (s *Store) SearchText(ctx context.Context, q query.TextSearch) (query.Hits, error) {
	bounds := boundAfter(q.Filter, q.After, true)
	windows, err := s.windows(ctx, bounds.SinceMicros, bounds.UntilMicros, true)
	if err != nil {
		return query.Hits{}, err
	}
	windows.growth = searchGrowth
	t := &textSearch{s: s, q: q, after: q.After, step: min(max(candidatesMin, 2*q.LimitEvents), candidatesMax)}
	for !t.done {
		w, ok := windows.next()
		if !ok {
			break
		}
		if err := t.search(ctx, w); err != nil {
			return query.Hits{}, err
		}
	}
	return t.hits, nil
}

// textSearch is a search as it goes on.
type textSearch struct {
	s *Store
	q query.TextSearch
	// after is the last candidate that was checked.
	after *event.ID
	step  int
	// seen and inFilter count the candidates, and those of them that are in the filter.
	seen, inFilter int
	hits           query.Hits
	// places are those of the hits.
	places []event.ID
	done   bool
}

// search searches a window.
func (t *textSearch) search(ctx context.Context, w window) error {
	for !t.done {
		ids, err := t.candidates(ctx, w)
		if err != nil {
			return err
		}
		for rest := ids; len(rest) > 0 && !t.done; {
			n, err := t.check(ctx, rest)
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		if len(ids) < t.step {
			return nil
		}
	}
	return nil
}

// check checks the first of the candidates, as many as fit into memory at once, and
// returns how many these were.
func (t *textSearch) check(ctx context.Context, ids []event.ID) (int, error) {
	for n := len(ids); ; n = (n + 1) / 2 {
		r := &room{left: t.q.BytesMax - t.hits.Bytes, newest: n == 1}
		cores, err := t.s.listedCores(ctx, t.q.Filter, ids[:n], r)
		var contents map[fieldOf]event.ContentRow
		if err == nil && len(cores) > 0 {
			contents, err = t.s.contents(ctx, idsOf(cores), r)
		}
		switch {
		case err == nil:
			t.seen, t.inFilter = t.seen+n, t.inFilter+len(cores)
			for i := range cores {
				t.match(&cores[i], contents)
				if t.done {
					return n, nil
				}
			}
			t.after = &ids[n-1]
			return n, nil
		case !isTooLarge(err):
			return 0, err
		case n == 1 && len(t.hits.Hits) > 0:
			t.end(len(t.hits.Hits))
			return n, nil
		case n == 1:
			size, err := t.s.eventSize(ctx, ids[0])
			if err != nil {
				return 0, err
			}
			return 0, &event.LargeError{Bytes: max(size, t.q.BytesMax+1)}
		}
	}
}

// match adds the event to the hits if the text is found in it.
func (t *textSearch) match(core *event.Core, contents map[fieldOf]event.ContentRow) {
	e, ok := assembleOne(core, contents, nil)
	if !ok {
		return
	}
	var highlights []query.Highlight
	for _, f := range [...]struct {
		name     string
		searched bool
		parts    []string
	}{
		{"input", t.q.Fields.Input, textParts(e.Input)},
		{"output", t.q.Fields.Output, textParts(e.Output)},
		{"error", t.q.Fields.Error, []string{e.Error}},
	} {
		if !f.searched {
			continue
		}
		spans, ok := t.q.Text.Match(f.parts)
		if !ok {
			continue
		}
		for _, snippet := range fulltext.Snippets(f.parts, spans) {
			highlights = append(highlights, query.Highlight{Field: f.name, Text: strings.Clone(snippet.Text), Spans: snippet.Spans})
		}
	}
	if len(highlights) == 0 {
		return
	}
	if len(t.hits.Hits) == t.q.LimitEvents {
		t.end(t.q.LimitEvents)
		return
	}
	t.hits.Bytes += eventBytes + len(e.ConversationID) + len(e.Error) + len(e.Metadata) + len(e.Input.Data) + len(e.Output.Data)
	t.hits.Hits = append(t.hits.Hits, query.Hit{Event: e, Score: 1, Highlights: highlights})
	t.places = append(t.places, core.ID)
}

// end ends the page after its first n hits.
func (t *textSearch) end(n int) {
	t.hits.Next, t.done = &t.places[n-1], true
}

// textParts returns the texts of a content.
func textParts(c event.Content) []string {
	switch c.Kind {
	case event.KindString:
		return []string{string(c.Data)}
	case event.KindJSON:
		return fulltext.JSONTexts(c.Data)
	case event.KindNull:
	}
	return nil
}

func idsOf(cores []event.Core) []event.ID {
	ids := make([]event.ID, len(cores))
	for i := range cores {
		ids[i] = cores[i].ID
	}
	return ids
}

// candidates returns the next candidates of the window, at most t.step.
func (t *textSearch) candidates(ctx context.Context, w window) ([]event.ID, error) {
	var ids []event.ID
	words := t.q.Text.Words()
	if t.q.Fields.Input || t.q.Fields.Output {
		found, err := t.find(ctx, w, schema.TableContents, func(b *conditions) {
			switch {
			case !t.q.Fields.Output:
				b.and("field = 'input'")
			case !t.q.Fields.Input:
				b.and("field = 'output'")
			}
			b.likely("content", words)
			b.and("hasAllTokens(words, [" + b.texts(indexWords(words)) + "])")
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, found...)
	}
	if t.q.Fields.Error {
		found, err := t.find(ctx, w, schema.TableEvents, func(b *conditions) {
			b.and("error.null = 0")
			b.likely("assumeNotNull(error)", words)
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, found...)
	}
	slices.SortFunc(ids, func(a, b event.ID) int { return compareInConversation(idKey, &b, &a) })
	ids = slices.Compact(ids)
	return ids[:min(len(ids), t.step)], nil
}

func idKey(id *event.ID) (*event.ID, event.Field) { return id, 0 }

// find returns the ids of the rows of a table for which the conditions that add adds
// hold, newest first.
func (t *textSearch) find(ctx context.Context, w window, table string, add func(b *conditions)) ([]event.ID, error) {
	f := t.q.Filter
	f.SinceMicros, f.UntilMicros = w.since, w.until
	sel := t.s.selectEvents(boundAfter(f, t.after, true))
	b := sel.conditions()
	b.and("deleted = 0")
	add(&b)
	sel.take(&b)
	where := "1" + sel.after(t.after, true)
	if t.seen >= narrowAfter && t.inFilter < t.seen/4 {
		// Most candidates are outside of the filter, so look only among the events inside.
		// All rows of an event are on one shard.
		where += " AND (timestamp, id) IN (SELECT timestamp, id" + sel.from() + ")"
	}
	var id proto.ColUUID
	var ids []event.ID
	err := t.s.db.Query(ctx, conn.RoleAnalytics, "search", t.s.readTimeout(), ch.Query{
		Body: "SELECT DISTINCT timestamp, id FROM " + table + " PREWHERE 1" + sel.bounds + " AND " + b.sql.String() + " WHERE " + where +
			" ORDER BY timestamp DESC, id DESC LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", int64(t.step)),
		Settings:   append(sel.settings, conn.Setting("distributed_product_mode", "local")),
		Result:     proto.Results{{Name: "timestamp", Data: new(proto.ColDateTime64)}, {Name: "id", Data: &id}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				ids = append(ids, event.ID(id[i]))
			}
			return nil
		},
	})
	return ids, err
}

// indexWords returns the words that the index is asked for.
func indexWords(words []string) []string {
	var indexed []string
	for _, word := range words {
		indexed = append(indexed, fulltext.IndexWords(word)...)
	}
	// Longer words are seldom the more common ones.
	slices.SortFunc(indexed, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	indexed = slices.Compact(indexed)
	return indexed[:min(len(indexed), indexWordsMax)]
}

// likely adds a cheap condition that holds for every text of the column that has the
// words. It keeps the contents that no index has yet from being decoded.
func (b *conditions) likely(column string, words []string) {
	words = slices.Clone(words)
	slices.SortStableFunc(words, func(a, b string) int { return len(b) - len(a) })
	for _, word := range words[:min(len(words), needleWordsMax)] {
		folded, needles := fulltext.Needles(word)
		condition := "multiSearchAny(" + column + ", [" + b.texts(needles) + "])"
		if folded != "" {
			condition = "(positionCaseInsensitive(" + column + ", " + b.text(folded) + ") > 0 OR " + condition + ")"
		}
		b.and(condition)
	}
}
