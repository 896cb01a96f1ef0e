package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

// eventTables are those that have rows of events.
var eventTables = []string{"events", "event_contents", "event_embeddings", "event_aliases"}

// answers are what every method that reads says.
func answers(t *testing.T, store *clickhouse.Store, w *world, conversations []string) map[string]any {
	t.Helper()
	ctx := t.Context()
	all := make(map[string]any)
	put := func(name string, value any, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = value
	}
	var (
		ids     []event.ID
		aliases []string
	)
	for id, ref := range w.refs {
		ids = append(ids, id)
		if ref.Alias != "" {
			aliases = append(aliases, ref.Alias)
		}
	}
	slices.SortFunc(ids, func(a, b event.ID) int { return strings.Compare(a.String(), b.String()) })
	cores, err := store.Cores(ctx, ids)
	put("cores", cores, err)
	states, err := store.CoreStates(ctx, ids)
	put("core states", states, err)
	rows, err := store.Aliases(ctx, aliases)
	put("aliases", rows, err)
	histories, err := store.Histories(ctx, slices.Collect(maps.Values(w.refs)))
	for ref, h := range histories {
		if h.Deleted != 0 { // a merge may have left the last tombstone alone
			histories[ref] = event.History{Stored: h.Stored, Deleted: 1, Expired: h.Expired}
		}
	}
	put("histories", histories, err)
	occupancy, err := store.Occupancy(ctx, clickhousetest.At(t, "2026-02-10T00:00:00Z"), 0)
	slices.Sort(occupancy.Minutes)
	put("occupancy", occupancy, err)
	for i, id := range ids {
		if i%40 == 0 {
			e, err := store.Event(ctx, w.refs[id], 0)
			put(fmt.Sprint("event ", id), e, err)
		}
	}
	for i, name := range conversations {
		if i%20 == 0 {
			for after, page := (*event.ID)(nil), 0; page == 0 || after != nil; page++ {
				p, err := store.List(ctx, query.List{Filter: query.OfConversation(name), After: after, LimitEvents: 3, WithEmbeddings: true})
				p.Bytes = 0 // unmerged versions count
				put(fmt.Sprint("page ", page, " of ", name), p, err)
				after = p.Next
			}
			// Of events that need to be measured first.
			_, err := store.List(ctx, query.List{Filter: query.OfConversation(name), LimitEvents: 10, WithEmbeddings: true, BytesMax: 1})
			var large *event.LargeError
			put("size of the first event of "+name, errors.As(err, &large), nil)
			p, err := store.List(ctx, query.List{Filter: query.OfConversation(name), LimitEvents: 10, WithEmbeddings: true, BytesMax: 4000})
			p.Bytes = 0
			put("short page of "+name, p, err)
		}
	}
	whole := query.Filter{SinceMicros: clickhousetest.At(t, "2026-01-01T00:00:00Z"), UntilMicros: clickhousetest.At(t, "2026-12-01T00:00:00Z")}
	day, one, named := whole, whole, whole
	day.SinceMicros, day.UntilMicros = clickhousetest.At(t, "2026-02-10T00:00:00Z"), clickhousetest.At(t, "2026-02-12T00:00:00Z")
	one.ConversationID = conversations[len(conversations)-1]
	named.EventNames, named.Metadata = []string{"event_b"}, []query.MetadataFilter{{Key: "plan", Value: "pro"}}
	for name, filter := range map[string]query.Filter{"all": whole, "days": day, "one conversation": one, "some": named} {
		var exported []query.Exported
		var failed error
		for e, err := range store.Export(ctx, query.Export{Filter: filter, WithEmbeddings: true}) {
			exported, failed = append(exported, e), err
		}
		put("export of "+name, exported, failed)
		count, err := store.Errors(ctx, filter)
		put("errors of "+name, count, err)
		for _, newest := range []bool{false, true} {
			q := query.List{Filter: filter, Newest: newest, LimitEvents: 150}
			for page := 0; page == 0 || q.After != nil; page++ {
				p, err := store.List(ctx, q)
				p.Bytes = 0
				put(fmt.Sprint("list ", newest, page, " of ", name), p, err)
				q.After = p.Next
			}
		}
		similar, err := store.SearchSimilar(ctx, query.SimilarSearch{Filter: filter, Vector: []float32{0.5, -0.25, 0}, Input: true, Output: true, LimitEvents: 20, BytesMax: 1 << 20})
		similar.Bytes = 0
		put("similar events of "+name, similar, err)
		found, err := fulltext.Parse("user")
		if err != nil {
			t.Fatal(err)
		}
		hits, err := store.SearchText(ctx, query.TextSearch{Filter: filter, Text: found, Fields: query.SearchFields{Input: true, Output: true}, LimitEvents: 50, BytesMax: 1 << 20})
		hits.Bytes = 0
		put("search of "+name, hits, err)
		list := query.ConversationList{Filter: filter, LimitRows: 30, PreviewChars: 100}
		for page := 0; page == 0 || list.After != nil; page++ {
			rows, err := store.ConversationList(ctx, list)
			put(fmt.Sprint("conversation list ", page, " of ", name), rows, err)
			if list.After = nil; len(rows) == list.LimitRows {
				list.After = &query.ConversationPlace{LastMicros: rows[len(rows)-1].LastMicros, ConversationID: rows[len(rows)-1].ConversationID}
			}
		}
		for question, q := range insightsQuestions(t, filter) {
			rows, err := store.Insights(ctx, q)
			put(fmt.Sprint("insights ", question, " of ", name), rows, err)
		}
		for question, q := range funnelQuestions(filter) {
			rows, err := store.Funnel(ctx, q)
			put(fmt.Sprint("funnel ", question, " of ", name), rows, err)
		}
		for question, q := range retentionQuestions(t, filter) {
			rows, err := store.Retention(ctx, q)
			put(fmt.Sprint("retention ", question, " of ", name), rows, err)
		}
		series, err := store.TimeSeries(ctx, query.TimeSeries{Filter: filter, IntervalMicros: 3_600_000_000, Quantiles: []float64{0.5, 0.95}})
		put("series of "+name, series, err)
		for _, by := range []struct{ conversation, name bool }{{}, {true, false}, {false, true}, {true, true}} {
			for _, limit := range []int{5, 1000} {
				latency, err := store.Latency(ctx, query.Latency{Filter: filter, Quantiles: []float64{0.95, 0.5}, ByConversation: by.conversation, ByEventName: by.name, LimitRows: limit})
				put(fmt.Sprint("latency of ", name, by, limit), latency, err)
			}
		}
		for _, order := range []query.Order{query.OrderByErrorRate, query.OrderByErrors, query.OrderByEvents} {
			for _, limit := range []int{5, 1000} {
				top, err := store.Conversations(ctx, query.Conversations{Filter: filter, OrderBy: order, EventsMin: 2, LimitRows: limit})
				put(fmt.Sprint("conversations of ", name, order, limit), top, err)
			}
		}
	}
	return all
}

// compareAnswers compares them with those of another store.
func compareAnswers(t *testing.T, want, got map[string]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d answers, want %d", len(got), len(want))
	}
	for name, value := range want {
		if diff := gocmp.Diff(value, got[name], equateNumbers); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Every answer is that of one server with the same rows, whichever server is
// asked, and whether parts are merged or not.
func TestClusterAnswersAsOneServer(t *testing.T) {
	stores, c, database := clickhousetest.Spread(t)
	single, _, _ := clickhousetest.Migrated(t)
	var conversations []string
	for i := range 100 {
		conversations = append(conversations, fmt.Sprint("conversation ", i))
	}
	w := newWorldOf(rand.New(rand.NewPCG(3, 4)), conversations, text, clickhousetest.At(t, "2026-01-30T00:00:00Z"), clickhousetest.At(t, "2026-03-02T00:00:00Z"), 1000)
	w.insert(t, rand.New(rand.NewPCG(5, 6)), single)
	for _, table := range eventTables {
		clickhousetest.Everywhere(t, c, "SYSTEM STOP MERGES "+database+"_shard."+table)
	}
	w.insert(t, rand.New(rand.NewPCG(7, 8)), stores...)
	for i, server := range c.Servers {
		if got := server.Query(t, "SELECT count() > 0, countIf(conversation_hash % 2 != "+fmt.Sprint(i)+") FROM "+database+"_shard.events"); got != "1\t0" {
			t.Fatalf("shard %d: some rows, and those of the other: %s", i, got)
		}
	}
	want := answers(t, single, w, conversations)
	// These have more conversations than those of TestReads.
	w.checkFunnel(t, single, query.Filter{UntilMicros: query.MicrosMax})
	w.checkRetention(t, single, query.Filter{UntilMicros: query.MicrosMax})
	views := func(server *enginetest.Instance) {
		w.checkViews(t, func(sql string) string { return server.Query(t, sql) }, database)
	}
	compareAnswers(t, want, answers(t, stores[0], w, conversations))
	views(c.Servers[1])
	for _, table := range eventTables {
		clickhousetest.Everywhere(t, c, "SYSTEM START MERGES "+database+"_shard."+table)
		clickhousetest.Everywhere(t, c, "OPTIMIZE TABLE "+database+"_shard."+table+" FINAL")
	}
	compareAnswers(t, want, answers(t, stores[1], w, conversations))
	views(c.Servers[0])
}

// A block is one part on each shard that has rows of it, and parts are counted
// by shard.
func TestClusterBlocks(t *testing.T) {
	stores, c, database := clickhousetest.Spread(t)
	for _, table := range eventTables {
		clickhousetest.Everywhere(t, c, "SYSTEM STOP MERGES "+database+"_shard."+table)
	}
	var rows event.Rows
	names := slices.Concat(clickhousetest.ConversationsOf(0, 2), clickhousetest.ConversationsOf(1, 2))
	for i := range 4000 {
		name := names[i%4]
		id := event.NewID(clickhousetest.At(t, []string{"2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"}[i/4%2])+int64(i/8), name)
		position, version := clickhousetest.Created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: name, Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("text")}, Version: version})
		rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: id.String(), ID: id, Version: version})
	}
	clickhousetest.Insert(t, stores[0], rows)
	for i, store := range stores {
		parts, err := store.Parts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]uint64{"events": 1, "event_contents": 1, "event_aliases": 1, "schema_migrations": parts["schema_migrations"]}
		if diff := gocmp.Diff(want, parts); diff != "" || parts["schema_migrations"] == 0 {
			t.Errorf("server %d, parts (-want +got):\n%s", i, diff)
		}
	}
	for _, server := range c.Servers {
		if got := server.Query(t, "SELECT count(), uniqExact(id) FROM "+database+"_shard.events"); got != "2000\t2000" {
			t.Errorf("rows and ids of a shard: %s", got)
		}
		const want = "event_aliases\t1\nevent_contents\t2\nevents\t2"
		if got := server.Query(t, "SELECT table, count() FROM system.parts WHERE active AND table LIKE 'event%' AND database = '"+
			database+"_shard' GROUP BY table ORDER BY table"); got != want {
			t.Errorf("parts of a shard: %q, want %q", got, want)
		}
	}
}

// No shard shows an event before all of what belongs to it is on its shard, or
// at all where that is refused.
func TestClusterCoresWaitForTheOthers(t *testing.T) {
	for name, result := range map[string]string{"contents that are late": "0", "contents that are refused": "1"} {
		t.Run(name, func(t *testing.T) {
			stores, c, database := clickhousetest.Spread(t)
			// On one of the shards alone: the events of the other wait as well.
			c.Servers[1].Query(t, "ALTER TABLE "+database+"_shard.event_contents ADD CONSTRAINT late CHECK sleep(1) = "+result)
			position, version := clickhousetest.Created(1)
			var rows event.Rows
			for shard := range uint32(2) {
				conversation := clickhousetest.ConversationsOf(shard, 1)[0]
				id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), conversation)
				rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: conversation, Created: position, Version: version})
				rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("text")}, Version: version})
			}
			done := make(chan error, 1)
			go func() { done <- stores[0].Insert(t.Context(), &rows) }()
			counts := func() (counts [4]string) {
				for i, server := range c.Servers {
					counts[i] = server.Query(t, "SELECT count() FROM "+database+"_shard.events")
				}
				for i, server := range c.Servers {
					counts[2+i] = server.Query(t, "SELECT count() FROM "+database+"_shard.event_contents")
				}
				return counts
			}
			sent := false
			for {
				select {
				case err := <-done:
					if refused := result == "1"; errors.Is(err, event.ErrRejected) != refused || (err != nil) != refused {
						t.Fatalf("refused is %v, got %v", refused, err)
					}
					if !sent {
						t.Error("the events were not sent ahead, so this test shows nothing")
					}
					// What the servers still do, they do not finish.
					for _, server := range c.Servers {
						for server.Query(t, "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO%' AND query LIKE '%events%' AND query LIKE '%"+database+"%'") != "0" {
							continue // each turn asks the server, and the test's time is bounded
						}
					}
					got := counts()
					if result == "0" && got != [4]string{"1", "1", "1", "1"} || result == "1" && (got[0] != "0" || got[1] != "0" || got[3] != "0") {
						t.Errorf("events and contents of the shards: %q", got)
					}
					return
				default:
					if c.Servers[1].Query(t, "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO "+database+"_shard.events %'") != "0" {
						sent = true
					}
					if got := counts(); (got[0] != "0" || got[1] != "0") && (got[2] == "0" || got[3] == "0") {
						t.Fatalf("events are there without contents; of the shards: %q", got)
					}
				}
			}
		})
	}
}

// The errors of shards keep their class.
func TestClusterErrorClasses(t *testing.T) {
	one := func(t *testing.T, store *clickhouse.Store, shard uint32) error {
		rows := clickhousetest.OneCore(t, clickhousetest.ConversationsOf(shard, 1)[0])
		return store.Insert(t.Context(), &rows)
	}
	for _, shard := range []uint32{0, 1} {
		t.Run(fmt.Sprint("a violated constraint on shard ", shard), func(t *testing.T) {
			stores, c, database := clickhousetest.Spread(t)
			c.Servers[shard].Query(t, "ALTER TABLE "+database+"_shard.events ADD CONSTRAINT short CHECK length(conversation_id) < 5")
			if err := one(t, stores[0], shard); !errors.Is(err, event.ErrRejected) || strings.Contains(err.Error(), "conversation'") {
				t.Errorf("got %v, want that the row is rejected, and not the row", err)
			}
			if err := one(t, stores[0], 1-shard); err != nil {
				t.Errorf("the other shard: %v", err)
			}
		})
		t.Run(fmt.Sprint("too many parts on shard ", shard), func(t *testing.T) {
			stores, c, database := clickhousetest.Spread(t)
			c.Servers[shard].Query(t, "SYSTEM STOP MERGES "+database+"_shard.events")
			c.Servers[shard].Query(t, "ALTER TABLE "+database+"_shard.events MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
			if err := one(t, stores[0], shard); err != nil {
				t.Fatal(err)
			}
			if err := one(t, stores[0], shard); err == nil || !clickhouse.IsRetryable(err) || !strings.Contains(err.Error(), "parts") {
				t.Errorf("got %v, want a retryable error about parts", err)
			}
		})
	}
}

// While a shard is down there is no answer that needs it, and no insert that
// is acknowledged.
func TestClusterShardDown(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{})
	stores, _ := clickhousetest.SpreadOver(t, c, enginetest.Shards)
	store := stores[0]
	here, there := clickhousetest.ConversationsOf(0, 1)[0], clickhousetest.ConversationsOf(1, 1)[0]
	rowsHere, rowsThere := clickhousetest.OneCore(t, here), clickhousetest.OneCore(t, there)
	clickhousetest.Insert(t, store, rowsHere)
	clickhousetest.Insert(t, store, rowsThere)
	whole := query.Filter{SinceMicros: clickhousetest.At(t, "2026-01-01T00:00:00Z"), UntilMicros: clickhousetest.At(t, "2026-12-01T00:00:00Z")}
	ask := map[string]func(ctx context.Context) error{
		"ready": store.Ready,
		"an insert": func(ctx context.Context) error {
			return store.Insert(ctx, &rowsThere)
		},
		"a lookup": func(ctx context.Context) error {
			_, err := store.Cores(ctx, []event.ID{rowsHere.Cores[0].ID, rowsThere.Cores[0].ID})
			return err
		},
		"aliases": func(ctx context.Context) error {
			_, err := store.Aliases(ctx, []string{"alias"})
			return err
		},
		"histories": func(ctx context.Context) error {
			_, err := store.Histories(ctx, []event.Ref{{ID: rowsHere.Cores[0].ID}, {ID: rowsThere.Cores[0].ID}})
			return err
		},
		"occupancy": func(ctx context.Context) error {
			_, err := store.Occupancy(ctx, 0, 0)
			return err
		},
		"a conversation": func(ctx context.Context) error {
			_, err := store.List(ctx, query.List{Filter: query.OfConversation(there), LimitEvents: 10})
			return err
		},
		"errors": func(ctx context.Context) error {
			_, err := store.Errors(ctx, whole)
			return err
		},
		"conversations": func(ctx context.Context) error {
			_, err := store.Conversations(ctx, query.Conversations{Filter: whole, LimitRows: 10})
			return err
		},
		"parts": func(ctx context.Context) error {
			_, err := store.Parts(ctx)
			return err
		},
	}
	for name, ask := range ask {
		if err := ask(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Stop(t, 1)
	for name, ask := range ask {
		if err := ask(t.Context()); err == nil || !clickhouse.IsRetryable(err) {
			t.Errorf("%s without the shard: got %v, want a retryable error", name, err)
		}
	}
	// What is on the other shard alone is not concerned.
	page, err := store.List(t.Context(), query.List{Filter: query.OfConversation(here), LimitEvents: 10, WithEmbeddings: true})
	if err != nil || len(page.Events) != 1 {
		t.Errorf("a conversation of the shard that is up: %d events, %v", len(page.Events), err)
	}
	if e, err := store.Event(t.Context(), event.Ref{ID: rowsHere.Cores[0].ID}, 0); err != nil || e == nil {
		t.Errorf("an event of the shard that is up: %v, %v", e, err)
	}
	c.Start(t, 1)
	for name, ask := range ask {
		if err := ask(t.Context()); err != nil {
			t.Errorf("%s after the shard is back: %v", name, err)
		}
	}
}

// Another shard is another database, into which all rows are copied. Its
// statements are those of deploy/cluster/README.md.
func TestAddingAShard(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{Clusters: map[string][][]int{"first": {{0}}}})
	old, from := clickhousetest.SpreadOverFirst(t, c)
	conversations := slices.Concat(clickhousetest.ConversationsOf(0, 10), clickhousetest.ConversationsOf(1, 10))
	w := newWorldOf(rand.New(rand.NewPCG(9, 10)), conversations, text, clickhousetest.At(t, "2026-01-30T00:00:00Z"), clickhousetest.At(t, "2026-03-02T00:00:00Z"), 300)
	w.insert(t, rand.New(rand.NewPCG(11, 12)), old)
	if err := old.RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Fatal(err)
	}
	want := answers(t, old, w, conversations)
	stores, to := clickhousetest.SpreadOver(t, c, enginetest.Shards)
	for _, table := range append(slices.Clone(eventTables), "topic_generations") {
		c.Servers[0].Query(t, "INSERT INTO "+to+"."+table+" SELECT * FROM "+from+"."+table+" SETTINGS distributed_foreground_insert = 1, parallel_distributed_insert_select = 0")
	}
	for i, server := range c.Servers {
		if got := server.Query(t, "SELECT count() > 0 FROM "+to+"_shard.events"); got != "1" {
			t.Errorf("shard %d has no rows", i)
		}
	}
	compareAnswers(t, want, answers(t, stores[1], w, conversations))
	if err := stores[1].RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Errorf("the topic: %v", err)
	}
	// What comes after it, from the log again or new, goes to its shard.
	w.insert(t, rand.New(rand.NewPCG(13, 14)), stores...)
	compareAnswers(t, want, answers(t, stores[0], w, conversations))
}
