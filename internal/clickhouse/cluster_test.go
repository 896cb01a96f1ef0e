package clickhouse_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/query"
)

// eventTables are those that have rows of events.
var eventTables = []string{"events", "event_contents", "event_embeddings", "event_aliases"}

// onCluster is the configuration of a server's database that is spread.
func onCluster(server *enginetest.Instance, cluster, database string) clickhouse.Config {
	cfg := config(server, database)
	cfg.Cluster = cluster
	return cfg
}

func migrateCluster(t *testing.T, cfg clickhouse.Config) ([]clickhouse.MigratedHost, error) {
	t.Helper()
	return clickhouse.MigrateCluster(t.Context(), cfg, clickhouse.ClusterOptions{}, slog.New(slog.DiscardHandler))
}

// spreadOver has a database on a cluster of the servers, and a store on each.
func spreadOver(t *testing.T, c *enginetest.Cluster, cluster string) (stores []*clickhouse.Store, database string) {
	t.Helper()
	database = c.DatabaseName(t)
	if _, err := migrateCluster(t, onCluster(c.Servers[0], cluster, database)); err != nil {
		t.Fatal(err)
	}
	for _, server := range c.Servers {
		store := open(t, config(server, database))
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		stores = append(stores, store)
	}
	return stores, database
}

// spread is spreadOver two shards that tests share.
func spread(t *testing.T) (stores []*clickhouse.Store, c *enginetest.Cluster, database string) {
	t.Helper()
	c = enginetest.SharedCluster(t)
	stores, database = spreadOver(t, c, enginetest.Shards)
	return stores, c, database
}

// conversationsOf finds n conversations of a shard of two.
func conversationsOf(shard uint32, n int) []string {
	var found []string
	for i := 0; len(found) < n; i++ {
		if name := fmt.Sprint("conversation ", i); event.ConversationHash(name)%2 == shard {
			found = append(found, name)
		}
	}
	return found
}

// everywhere runs a statement on the shard's table of each server.
func everywhere(t *testing.T, c *enginetest.Cluster, statement string) {
	t.Helper()
	for _, server := range c.Servers {
		server.Query(t, statement)
	}
}

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
	occupancy, err := store.Occupancy(ctx, at(t, "2026-02-10T00:00:00Z"), 0)
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
				p, err := store.Conversation(ctx, query.Conversation{ConversationID: name, After: after, LimitEvents: 3, WithEmbeddings: true})
				p.Bytes = 0 // unmerged versions count
				put(fmt.Sprint("page ", page, " of ", name), p, err)
				after = p.Next
			}
			// Of events that need to be measured first.
			_, err := store.Conversation(ctx, query.Conversation{ConversationID: name, LimitEvents: 10, WithEmbeddings: true, BytesMax: 1})
			var large *event.LargeError
			put("size of the first event of "+name, errors.As(err, &large), nil)
			p, err := store.Conversation(ctx, query.Conversation{ConversationID: name, LimitEvents: 10, WithEmbeddings: true, BytesMax: 4000})
			p.Bytes = 0
			put("short page of "+name, p, err)
		}
	}
	whole := query.Filter{SinceMicros: at(t, "2026-01-01T00:00:00Z"), UntilMicros: at(t, "2026-12-01T00:00:00Z")}
	day, one, named := whole, whole, whole
	day.SinceMicros, day.UntilMicros = at(t, "2026-02-10T00:00:00Z"), at(t, "2026-02-12T00:00:00Z")
	one.ConversationID = conversations[len(conversations)-1]
	named.EventName, named.Metadata = "event_b", []query.MetadataFilter{{Key: "plan", Value: "pro"}}
	for name, filter := range map[string]query.Filter{"all": whole, "days": day, "one conversation": one, "some": named} {
		count, err := store.Errors(ctx, filter)
		put("errors of "+name, count, err)
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
		if diff := gocmp.Diff(value, got[name], equateContents); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// Every answer is that of one server with the same rows, whichever server is
// asked, and whether parts are merged or not.
func TestClusterAnswersAsOneServer(t *testing.T) {
	stores, c, database := spread(t)
	single, _, _ := migrated(t)
	var conversations []string
	for i := range 100 {
		conversations = append(conversations, fmt.Sprint("conversation ", i))
	}
	w := newWorldOf(rand.New(rand.NewPCG(3, 4)), conversations, at(t, "2026-01-30T00:00:00Z"), at(t, "2026-03-02T00:00:00Z"), 1000)
	w.insert(t, rand.New(rand.NewPCG(5, 6)), single)
	for _, table := range eventTables {
		everywhere(t, c, "SYSTEM STOP MERGES "+database+"_shard."+table)
	}
	w.insert(t, rand.New(rand.NewPCG(7, 8)), stores...)
	for i, server := range c.Servers {
		if got := server.Query(t, "SELECT count() > 0, countIf(conversation_hash % 2 != "+fmt.Sprint(i)+") FROM "+database+"_shard.events"); got != "1\t0" {
			t.Fatalf("shard %d: some rows, and those of the other: %s", i, got)
		}
	}
	want := answers(t, single, w, conversations)
	views := func(server *enginetest.Instance) {
		w.checkViews(t, func(sql string) string { return server.Query(t, sql) }, database)
	}
	compareAnswers(t, want, answers(t, stores[0], w, conversations))
	views(c.Servers[1])
	for _, table := range eventTables {
		everywhere(t, c, "SYSTEM START MERGES "+database+"_shard."+table)
		everywhere(t, c, "OPTIMIZE TABLE "+database+"_shard."+table+" FINAL")
	}
	compareAnswers(t, want, answers(t, stores[1], w, conversations))
	views(c.Servers[0])
}

// A block is one part on each shard that has rows of it, and parts are counted
// by shard.
func TestClusterBlocks(t *testing.T) {
	stores, c, database := spread(t)
	for _, table := range eventTables {
		everywhere(t, c, "SYSTEM STOP MERGES "+database+"_shard."+table)
	}
	var rows event.Rows
	names := slices.Concat(conversationsOf(0, 2), conversationsOf(1, 2))
	for i := range 4000 {
		name := names[i%4]
		id := event.NewID(at(t, []string{"2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"}[i/4%2])+int64(i/8), name)
		position, version := created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: name, Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("text")}, Version: version})
		rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: id.String(), ID: id, Version: version})
	}
	insert(t, stores[0], rows)
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
			stores, c, database := spread(t)
			// On one of the shards alone: the events of the other wait as well.
			c.Servers[1].Query(t, "ALTER TABLE "+database+"_shard.event_contents ADD CONSTRAINT late CHECK sleep(1) = "+result)
			position, version := created(1)
			var rows event.Rows
			for shard := range uint32(2) {
				conversation := conversationsOf(shard, 1)[0]
				id := event.NewID(at(t, "2026-03-01T00:00:00Z"), conversation)
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
		rows := oneCore(t, conversationsOf(shard, 1)[0])
		return store.Insert(t.Context(), &rows)
	}
	for _, shard := range []uint32{0, 1} {
		t.Run(fmt.Sprint("a violated constraint on shard ", shard), func(t *testing.T) {
			stores, c, database := spread(t)
			c.Servers[shard].Query(t, "ALTER TABLE "+database+"_shard.events ADD CONSTRAINT short CHECK length(conversation_id) < 5")
			if err := one(t, stores[0], shard); !errors.Is(err, event.ErrRejected) || strings.Contains(err.Error(), "conversation'") {
				t.Errorf("got %v, want that the row is rejected, and not the row", err)
			}
			if err := one(t, stores[0], 1-shard); err != nil {
				t.Errorf("the other shard: %v", err)
			}
		})
		t.Run(fmt.Sprint("too many parts on shard ", shard), func(t *testing.T) {
			stores, c, database := spread(t)
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
	stores, _ := spreadOver(t, c, enginetest.Shards)
	store := stores[0]
	here, there := conversationsOf(0, 1)[0], conversationsOf(1, 1)[0]
	rowsHere, rowsThere := oneCore(t, here), oneCore(t, there)
	insert(t, store, rowsHere)
	insert(t, store, rowsThere)
	whole := query.Filter{SinceMicros: at(t, "2026-01-01T00:00:00Z"), UntilMicros: at(t, "2026-12-01T00:00:00Z")}
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
			_, err := store.Conversation(ctx, query.Conversation{ConversationID: there, LimitEvents: 10})
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
	page, err := store.Conversation(t.Context(), query.Conversation{ConversationID: here, LimitEvents: 10, WithEmbeddings: true})
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

// The topic is recorded once, whichever server is asked.
func TestClusterRecordTopic(t *testing.T) {
	stores, c, database := spread(t)
	if err := stores[1].RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Fatal(err)
	}
	if err := stores[0].RecordTopic(t.Context(), 1, "events.g1", "id-2", 12); !errors.Is(err, clickhouse.ErrTopicRecreated) {
		t.Errorf("got %v, want %v", err, clickhouse.ErrTopicRecreated)
	}
	for i, server := range c.Servers {
		if got, want := server.Query(t, "SELECT count() FROM "+database+"_shard.topic_generations"), []string{"1", "0"}[i]; got != want {
			t.Errorf("shard %d has %s records, want %s", i, got, want)
		}
	}
}

func TestClusterRecordTopicAtOnce(t *testing.T) {
	stores, _, _ := spread(t)
	stores = slices.Repeat(stores, 4)
	for generation := 1; generation <= 10; generation++ {
		recordAtOnce(t, stores, generation)
	}
}

// A retention holds on every host, whichever was asked, and what was hidden once
// stays hidden.
func TestClusterRetention(t *testing.T) {
	stores, c, database := spread(t)
	const day = 24 * time.Hour
	now := time.Now()
	var rows event.Rows
	for shard := range uint32(2) {
		for i, days := range []int{70, 40, 20} {
			name := conversationsOf(shard, 1)[0]
			position, version := created(int64(3*shard) + int64(i))
			rows.Cores = append(rows.Cores, event.Core{
				ID: event.NewID(now.Add(-time.Duration(days)*day).UnixMicro(), name), ConversationID: name, EventName: "event_a", Created: position, Version: version,
			})
		}
	}
	insert(t, stores[0], rows)
	for _, step := range []struct {
		keep    time.Duration
		changed bool
		visible uint64 // of 20 days, of both shards; then of 40, then of 70
	}{
		{clickhouse.Forever, false, 6},
		{50 * day, true, 4},
		{50 * day, false, 4},
		{30 * day, true, 2},
		{60 * day, true, 2}, // those of 40 days were hidden already
		{clickhouse.Forever, true, 2},
	} {
		hosts, err := clickhouse.MigrateCluster(t.Context(), onCluster(c.Servers[1], enginetest.Shards, database),
			clickhouse.ClusterOptions{Retention: &step.keep}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("retention of %s: %v", step.keep, err)
		}
		ttl := "0"
		if step.keep != clickhouse.Forever {
			ttl = "4" // contents, embeddings, aliases and events
		}
		for i, h := range hosts {
			if h.Retained != step.changed {
				t.Errorf("retention of %s on host %d: changed is %t, want %t", step.keep, i, h.Retained, step.changed)
			}
			got, err := stores[i].Errors(t.Context(), query.Filter{UntilMicros: now.Add(time.Hour).UnixMicro()})
			if err != nil || got.Events != step.visible {
				t.Errorf("retention of %s: host %d shows %d events, want %d: %v", step.keep, i, got.Events, step.visible, err)
			}
			query := "SELECT count() FROM system.tables WHERE database = '" + database + "_shard' AND engine_full LIKE '% TTL %'"
			if got := c.Servers[i].Query(t, query); got != ttl {
				t.Errorf("retention of %s: %s tables of shard %d have a TTL, want %s", step.keep, got, i, ttl)
			}
		}
	}
	// A store that was opened before sees it too, and a migration changes nothing.
	hosts, err := migrateCluster(t, onCluster(c.Servers[0], enginetest.Shards, database))
	if err != nil {
		t.Fatal(err)
	}
	for i, store := range stores {
		got, err := store.Errors(t.Context(), query.Filter{UntilMicros: now.Add(time.Hour).UnixMicro()})
		if err != nil || got.Events != 2 {
			t.Errorf("after a migration host %d, %+v, shows %d events, want 2: %v", i, hosts[i], got.Events, err)
		}
	}
}

func TestMigrateCluster(t *testing.T) {
	c := enginetest.SharedCluster(t)
	database := c.DatabaseName(t)
	cfg := onCluster(c.Servers[1], enginetest.Shards, database)
	store := open(t, cfg)
	if _, err := store.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "sluice migrate --cluster") || !clickhouse.IsRetryable(err) {
		t.Errorf("before the migration: got %v, want a retryable error that says what to run", err)
	}
	hosts, err := migrateCluster(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var want []clickhouse.MigratedHost
	for i, server := range c.Servers {
		want = append(want, clickhouse.MigratedHost{Addr: server.Addr, Shard: i + 1, Replica: 1, Created: true, Spread: 8})
	}
	if diff := gocmp.Diff(want, hosts); diff != "" {
		t.Error("hosts (-want +got):\n" + diff)
	}
	// A second run finds nothing to do.
	if hosts, err = migrateCluster(t, cfg); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i].Created, want[i].Spread = false, 0
	}
	if diff := gocmp.Diff(want, hosts); diff != "" {
		t.Error("hosts of the second run (-want +got):\n" + diff)
	}
	// The tables are those of a single machine, but for their place.
	_, single, plain := migrated(t)
	tables := "SELECT replaceAll(create_table_query, database || '.', '') FROM system.tables WHERE database = '%s' ORDER BY name FORMAT TSVRaw"
	for _, server := range c.Servers {
		if diff := gocmp.Diff(single.Query(t, fmt.Sprintf(tables, plain)), server.Query(t, fmt.Sprintf(tables, database+"_shard"))); diff != "" {
			t.Error("tables (-single machine +shard):\n" + diff)
		}
		if got := server.Query(t, "SELECT count() FROM system.databases WHERE name LIKE '"+database+"%'"); got != "2" {
			t.Errorf("%s databases, want 2", got)
		}
	}
	if done, err := store.Migrate(t.Context()); err != nil || len(done.Applied)+len(done.Unknown) > 0 {
		t.Errorf("after the migration: %+v, %v", done, err)
	}
	if err := store.Ready(t.Context()); err != nil {
		t.Error(err)
	}

	t.Run("a host that is behind", func(t *testing.T) {
		all, err := clickhouse.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		last := all[len(all)-1]
		c.Servers[0].Query(t, "ALTER TABLE "+database+"_shard.schema_migrations DELETE WHERE version = "+fmt.Sprint(last.Version)+" SETTINGS mutations_sync = 1")
		behind := open(t, config(c.Servers[0], database))
		if _, err := behind.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), last.Name) {
			t.Errorf("got %v, want an error that names %s", err, last.Name)
		}
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Errorf("the other host: %v", err)
		}
		hosts, err := migrateCluster(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if len(hosts[0].Applied) != 1 || hosts[0].Applied[0].Name != last.Name || len(hosts[1].Applied) != 0 {
			t.Errorf("applied %v and %v, want %s on the first", hosts[0].Applied, hosts[1].Applied, last.Name)
		}
	})
	t.Run("views of an older migration", func(t *testing.T) {
		want := schemaOf(t, c.Servers[1], database+"_shard")
		all, err := clickhouse.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		applyLate(t, c.Servers[1], database+"_shard", all[1])
		hosts, err := migrateCluster(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if len(hosts[0].Views) != 0 || len(hosts[1].Views) != 3 {
			t.Errorf("made the views %v and %v, want those of the second", hosts[0].Views, hosts[1].Views)
		}
		if diff := gocmp.Diff(want, schemaOf(t, c.Servers[1], database+"_shard")); diff != "" {
			t.Error("tables (-before +after):\n" + diff)
		}
	})
	t.Run("a column more", func(t *testing.T) {
		everywhere(t, c, "ALTER TABLE "+database+"_shard.events ADD COLUMN more String")
		hosts, err := migrateCluster(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i, server := range c.Servers {
			if got := server.Query(t, "SELECT count() FROM system.columns WHERE database = '"+database+"' AND table = 'events' AND name = 'more'"); got != "1" || hosts[i].Spread != 1 {
				t.Errorf("host %d: columns %s, tables renewed %d", i, got, hosts[i].Spread)
			}
		}
	})
	t.Run("tables of a build that did not finish", func(t *testing.T) {
		c.Servers[0].Query(t, "DROP DATABASE "+database+"_shard SYNC")
		c.Servers[0].Query(t, "CREATE DATABASE "+database+"_shard")
		c.Servers[0].Query(t, "CREATE TABLE "+database+"_shard.events (id UUID) ENGINE = MergeTree ORDER BY id")
		if _, err := migrateCluster(t, cfg); !errors.Is(err, clickhouse.ErrLayout) || !strings.Contains(err.Error(), "DROP DATABASE "+database+"_shard") {
			t.Errorf("got %v, want an error that says what to drop", err)
		}
	})
	t.Run("a host that has lost all", func(t *testing.T) {
		for _, name := range []string{database, database + "_shard"} {
			c.Servers[0].Query(t, "DROP DATABASE "+name+" SYNC")
		}
		hosts, err := migrateCluster(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if !hosts[0].Created || hosts[1].Created {
			t.Errorf("created %v and %v, want the first", hosts[0].Created, hosts[1].Created)
		}
		if got := c.Servers[0].Query(t, "SELECT count() FROM system.columns WHERE database LIKE '"+database+"%' AND table = 'events' AND name = 'more'"); got != "2" {
			t.Errorf("the column that the other has is in %s tables, want 2", got)
		}
	})
}

func TestMigrateClusterAtOnce(t *testing.T) {
	c := enginetest.SharedCluster(t)
	database := c.DatabaseName(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if _, err := migrateCluster(t, onCluster(c.Servers[i%2], enginetest.Shards, database)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, server := range c.Servers {
		if _, err := open(t, config(server, database)).Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		if got := server.Query(t, "SELECT count() FROM system.tables WHERE database = '"+database+"' AND engine = 'Distributed'"); got != "8" {
			t.Errorf("%s Distributed tables, want 8", got)
		}
	}
}

// TestMigrateClusterAtOnceEndsAsOne has many processes migrate a cluster at
// once, of which most die before they are done.
func TestMigrateClusterAtOnceEndsAsOne(t *testing.T) {
	c := enginetest.SharedCluster(t)
	_, plain, single := migrated(t)
	want := schemaOf(t, plain, single)
	all, err := clickhouse.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		database := c.DatabaseName(t)
		if round > 0 { // from the version before, the views of an old one, or both
			if _, err := migrateCluster(t, onCluster(c.Servers[0], enginetest.Shards, database)); err != nil {
				t.Fatal(err)
			}
			applyLate(t, c.Servers[round-1], database+"_shard", all[1])
			everywhere(t, c, fmt.Sprintf("ALTER TABLE %s_shard.schema_migrations DELETE WHERE version > %d SETTINGS mutations_sync = 1", database, len(all)-round))
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				ctx := t.Context()
				if i > 0 { // the first one is not killed
					var kill context.CancelFunc
					ctx, kill = context.WithCancel(ctx)
					defer kill()
					time.AfterFunc(rand.N(time.Second), kill)
				}
				cfg := onCluster(c.Servers[i%2], enginetest.Shards, database)
				_, err := clickhouse.MigrateCluster(ctx, cfg, clickhouse.ClusterOptions{}, slog.New(slog.DiscardHandler))
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, server := range c.Servers {
			if diff := gocmp.Diff(want, schemaOf(t, server, database+"_shard")); diff != "" {
				t.Errorf("round %d, host %d (-of one migration +of many at once):\n%s", round, i, diff)
			}
			if got := server.Query(t, "SELECT count() FROM "+database+"_shard.schema_migrations FINAL"); got != strconv.Itoa(len(all)) {
				t.Errorf("round %d, host %d: %s migrations are recorded, want %d", round, i, got, len(all))
			}
			if _, err := open(t, config(server, database)).Migrate(t.Context()); err != nil {
				t.Errorf("round %d, host %d: %v", round, i, err)
			}
		}
	}
}

func TestMigrateClusterRefuses(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{
		Servers: 3,
		Clusters: map[string][][]int{
			"first": {{0}}, "down": {{0}, {-1}}, "pairs": {{0, 1}}, "uneven": {{0, 1}, {2}}, "swapped": {{1}, {0}, {2}},
			"same_macros": {{0, 2}}, "no_macros": {{0, 1}},
		},
		Macros: []map[string]string{{"shard": "1", "replica": "r1"}, {"shard": "1"}, {"shard": "1", "replica": "r1"}},
	})
	refused := func(t *testing.T, cluster, database string, final bool, want ...string) {
		t.Helper()
		before := c.Servers[0].Query(t, "SELECT count() FROM system.databases")
		_, err := migrateCluster(t, onCluster(c.Servers[0], cluster, database))
		if err == nil || errors.Is(err, clickhouse.ErrLayout) != final || clickhouse.IsRetryable(err) == final {
			t.Fatalf("got %v, final is %v", err, final)
		}
		for _, text := range want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q does not have %q", err, text)
			}
		}
		if after := c.Servers[0].Query(t, "SELECT count() FROM system.databases"); after != before {
			t.Error("something was changed")
		}
	}
	t.Run("an unknown cluster", func(t *testing.T) {
		refused(t, "none", c.DatabaseName(t), false, `no cluster none`, "shards")
	})
	t.Run("a host that is down", func(t *testing.T) {
		refused(t, "down", c.DatabaseName(t), false, "host 127.0.0.1:1,", "shard 2")
	})
	t.Run("shards with different numbers of replicas", func(t *testing.T) {
		refused(t, "uneven", c.DatabaseName(t), false, "shard", "same number")
	})
	t.Run("a macro that is missing", func(t *testing.T) {
		refused(t, "no_macros", c.DatabaseName(t), false, c.Servers[1].Addr, `macro "replica"`)
	})
	t.Run("macros of another host", func(t *testing.T) {
		refused(t, "same_macros", c.DatabaseName(t), false, c.Servers[2].Addr, c.Servers[0].Addr, `"r1"`)
	})
	t.Run("tables of a single machine", func(t *testing.T) {
		database := c.DatabaseName(t)
		store := open(t, config(c.Servers[1], database))
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		refused(t, enginetest.Shards, database, true, c.Servers[1].Addr, database)
		// And a process that was told of the cluster does not use them.
		told := open(t, onCluster(c.Servers[1], enginetest.Shards, database))
		if _, err := told.Migrate(t.Context()); !errors.Is(err, clickhouse.ErrLayout) {
			t.Errorf("got %v, want %v", err, clickhouse.ErrLayout)
		}
	})
	t.Run("tables of another cluster", func(t *testing.T) {
		_, database := spreadOverFirst(t, c)
		refused(t, enginetest.Shards, database, true, "first")
		told := open(t, onCluster(c.Servers[0], enginetest.Shards, database))
		if _, err := told.Migrate(t.Context()); !errors.Is(err, clickhouse.ErrLayout) {
			t.Errorf("got %v, want %v", err, clickhouse.ErrLayout)
		}
	})
	t.Run("other shards than when it was made", func(t *testing.T) {
		_, database := spreadOverFirst(t, c)
		c.Servers[0].Query(t, "ALTER TABLE "+database+".events MODIFY COMMENT 'shards of weight 1, 1'")
		refused(t, "first", database, true, "weight 1, 1", "new database")
		store := open(t, config(c.Servers[0], database))
		if _, err := store.Migrate(t.Context()); !errors.Is(err, clickhouse.ErrLayout) {
			t.Errorf("got %v, want %v", err, clickhouse.ErrLayout)
		}
	})
}

// spreadOverFirst has a database on the cluster of the first server alone.
func spreadOverFirst(t *testing.T, c *enginetest.Cluster) (store *clickhouse.Store, database string) {
	t.Helper()
	database = c.DatabaseName(t)
	if _, err := migrateCluster(t, onCluster(c.Servers[0], "first", database)); err != nil {
		t.Fatal(err)
	}
	store = open(t, config(c.Servers[0], database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, database
}

// Another shard is another database, into which all rows are copied. Its
// statements are those of deploy/cluster/README.md.
func TestAddingAShard(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{Clusters: map[string][][]int{"first": {{0}}}})
	old, from := spreadOverFirst(t, c)
	conversations := slices.Concat(conversationsOf(0, 10), conversationsOf(1, 10))
	w := newWorldOf(rand.New(rand.NewPCG(9, 10)), conversations, at(t, "2026-01-30T00:00:00Z"), at(t, "2026-03-02T00:00:00Z"), 300)
	w.insert(t, rand.New(rand.NewPCG(11, 12)), old)
	if err := old.RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Fatal(err)
	}
	want := answers(t, old, w, conversations)
	stores, to := spreadOver(t, c, enginetest.Shards)
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

// Replicas are made on servers with a real ZooKeeper, which then has each
// table's columns and replicas. The library does not replicate: its tables stay
// read-only, so that this is as far as a test gets here.
func TestMigrateReplicas(t *testing.T) {
	c := enginetest.StartCluster(t, enginetest.ClusterOptions{
		ZooKeeper: kafkatest.StartZooKeeper(t), Clusters: map[string][][]int{"pair": {{0, 1}}},
		Macros: []map[string]string{{"shard": "01", "replica": "a"}, {"shard": "01", "replica": "b"}},
	})
	database := c.DatabaseName(t)
	cfg := onCluster(c.Servers[0], "pair", database)
	hosts, err := migrateCluster(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		if !h.Created || h.Shard != 1 || h.Replica != i+1 || h.Addr != c.Servers[i].Addr {
			t.Errorf("host %d: %+v", i, h)
		}
	}
	for table, engine := range map[string]string{
		"events": "ReplicatedReplacingMergeTree", "event_contents": "ReplicatedReplacingMergeTree", "event_embeddings": "ReplicatedReplacingMergeTree",
		"event_aliases": "ReplicatedReplacingMergeTree", "topic_generations": "ReplicatedMergeTree", "schema_migrations": "ReplacingMergeTree", "erasures": "ReplicatedReplacingMergeTree",
	} {
		for i, server := range c.Servers {
			if got := server.Query(t, "SELECT engine FROM system.tables WHERE database = '"+database+"_shard' AND name = '"+table+"'"); got != engine {
				t.Errorf("host %d, %s: engine %s, want %s", i, table, got, engine)
			}
			if !strings.HasPrefix(engine, "Replicated") {
				continue
			}
			want := "/clickhouse/tables/01/" + database + "/" + table + "\t" + []string{"a", "b"}[i] + "\t2"
			if got := server.Query(t, "SELECT zookeeper_path, replica_name, total_replicas FROM system.replicas WHERE database = '"+database+"_shard' AND table = '"+table+"'"); got != want {
				t.Errorf("host %d, %s is at %q, want %q", i, table, got, want)
			}
		}
	}
	// As on one machine, and the same on all.
	_, single, plain := migrated(t)
	tables := "SELECT replaceAll(create_table_query, database || '.', '') FROM system.tables WHERE database = '%s' ORDER BY name FORMAT TSVRaw"
	want := strings.NewReplacer("ENGINE = ReplacingMergeTree(version)", "", "ENGINE = ReplacingMergeTree(recorded_at)", "", "ENGINE = MergeTree", "").Replace(single.Query(t, fmt.Sprintf(tables, plain)))
	for i, server := range c.Servers {
		got := replicatedEngine.ReplaceAllString(server.Query(t, fmt.Sprintf(tables, database+"_shard")), "")
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("host %d, tables (-single machine +replica):\n%s", i, diff)
		}
	}
	if hosts, err = migrateCluster(t, cfg); err != nil {
		t.Fatal(err)
	}
	for i, h := range hosts {
		if h.Created || h.Spread > 0 || len(h.Applied) > 0 {
			t.Errorf("host %d, the second time: %+v", i, h)
		}
	}
	// A replica that was lost is made again as the other one is.
	c.Servers[1].Query(t, "DROP DATABASE "+database+" SYNC")
	c.Servers[1].Query(t, "DROP DATABASE "+database+"_shard SYNC")
	if hosts, err = migrateCluster(t, cfg); err != nil {
		t.Fatal(err)
	}
	if hosts[0].Created || !hosts[1].Created {
		t.Errorf("made are %v and %v, want the second", hosts[0].Created, hosts[1].Created)
	}
	// An insert asks for both replicas, none of which is active here.
	store := open(t, config(c.Servers[0], database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := oneCore(t, conversationsOf(0, 1)[0])
	if err := store.Insert(t.Context(), &rows); err == nil || !clickhouse.IsRetryable(err) || !strings.Contains(err.Error(), "less than requested quorum (2/2)") {
		t.Errorf("got %v, want a retryable error that asks for two replicas", err)
	}
}

var replicatedEngine = regexp.MustCompile(`ENGINE = Replicated(Replacing)?MergeTree\('/clickhouse/tables/\{shard\}/[a-z0-9_/]+', '\{replica\}'(, version|, recorded_at)?\)`)
