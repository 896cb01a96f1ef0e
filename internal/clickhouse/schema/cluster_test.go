package schema_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/query"
)

// The topic is recorded once, whichever server is asked.
func TestClusterRecordTopic(t *testing.T) {
	stores, c, database := clickhousetest.Spread(t)
	if err := stores[1].RecordTopic(t.Context(), 1, "events.g1", "id-1", 12); err != nil {
		t.Fatal(err)
	}
	if err := stores[0].RecordTopic(t.Context(), 1, "events.g1", "id-2", 12); !errors.Is(err, schema.ErrTopicRecreated) {
		t.Errorf("got %v, want %v", err, schema.ErrTopicRecreated)
	}
	for i, server := range c.Servers {
		if got, want := server.Query(t, "SELECT count() FROM "+database+"_shard.topic_generations"), []string{"1", "0"}[i]; got != want {
			t.Errorf("shard %d has %s records, want %s", i, got, want)
		}
	}
}

func TestClusterRecordTopicAtOnce(t *testing.T) {
	stores, _, _ := clickhousetest.Spread(t)
	stores = slices.Repeat(stores, 4)
	for generation := 1; generation <= 10; generation++ {
		recordAtOnce(t, stores, generation)
	}
}

// A retention holds on every host, whichever was asked, and what was hidden once
// stays hidden.
func TestClusterRetention(t *testing.T) {
	stores, c, database := clickhousetest.Spread(t)
	const day = 24 * time.Hour
	now := time.Now()
	var rows event.Rows
	for shard := range uint32(2) {
		for i, days := range []int{70, 40, 20} {
			name := clickhousetest.ConversationsOf(shard, 1)[0]
			position, version := clickhousetest.Created(int64(3*shard) + int64(i))
			rows.Cores = append(rows.Cores, event.Core{
				ID: event.NewID(now.Add(-time.Duration(days)*day).UnixMicro(), name), ConversationID: name, EventName: "event_a", Created: position, Version: version,
			})
		}
	}
	clickhousetest.Insert(t, stores[0], rows)
	for _, step := range []struct {
		keep    time.Duration
		changed bool
		visible uint64 // of 20 days, of both shards; then of 40, then of 70
	}{
		{schema.Forever, false, 6},
		{50 * day, true, 4},
		{50 * day, false, 4},
		{30 * day, true, 2},
		{60 * day, true, 2}, // those of 40 days were hidden already
		{schema.Forever, true, 2},
	} {
		hosts, err := schema.MigrateCluster(t.Context(), clickhousetest.OnCluster(c.Servers[1], enginetest.Shards, database),
			schema.ClusterOptions{Retention: &step.keep}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("retention of %s: %v", step.keep, err)
		}
		ttl := "0"
		if step.keep != schema.Forever {
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
	hosts, err := clickhousetest.MigrateCluster(t, clickhousetest.OnCluster(c.Servers[0], enginetest.Shards, database))
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
	cfg := clickhousetest.OnCluster(c.Servers[1], enginetest.Shards, database)
	store := clickhousetest.Open(t, cfg)
	if _, err := store.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "sluice migrate --cluster") || !clickhouse.IsRetryable(err) {
		t.Errorf("before the migration: got %v, want a retryable error that says what to run", err)
	}
	hosts, err := clickhousetest.MigrateCluster(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var want []schema.MigratedHost
	for i, server := range c.Servers {
		want = append(want, schema.MigratedHost{Addr: server.Addr, Shard: i + 1, Replica: 1, Created: true, Spread: 8})
	}
	if diff := gocmp.Diff(want, hosts); diff != "" {
		t.Error("hosts (-want +got):\n" + diff)
	}
	// A second run finds nothing to do.
	if hosts, err = clickhousetest.MigrateCluster(t, cfg); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		want[i].Created, want[i].Spread = false, 0
	}
	if diff := gocmp.Diff(want, hosts); diff != "" {
		t.Error("hosts of the second run (-want +got):\n" + diff)
	}
	// The tables are those of a single machine, but for their place.
	_, single, plain := clickhousetest.Migrated(t)
	for _, server := range c.Servers {
		if diff := gocmp.Diff(schemaOf(t, single, plain), schemaOf(t, server, database+"_shard")); diff != "" {
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
		all, err := schema.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		last := all[len(all)-1]
		c.Servers[0].Query(t, "ALTER TABLE "+database+"_shard.schema_migrations DELETE WHERE version = "+fmt.Sprint(last.Version)+" SETTINGS mutations_sync = 1")
		behind := clickhousetest.Open(t, clickhousetest.Config(c.Servers[0], database))
		if _, err := behind.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), last.Name) {
			t.Errorf("got %v, want an error that names %s", err, last.Name)
		}
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Errorf("the other host: %v", err)
		}
		hosts, err := clickhousetest.MigrateCluster(t, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if len(hosts[0].Applied) != 1 || hosts[0].Applied[0].Name != last.Name || len(hosts[1].Applied) != 0 {
			t.Errorf("applied %v and %v, want %s on the first", hosts[0].Applied, hosts[1].Applied, last.Name)
		}
	})
	t.Run("views of an older migration", func(t *testing.T) {
		want := schemaOf(t, c.Servers[1], database+"_shard")
		all, err := schema.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		applyLate(t, c.Servers[1], database+"_shard", all[1])
		hosts, err := clickhousetest.MigrateCluster(t, cfg)
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
		clickhousetest.Everywhere(t, c, "ALTER TABLE "+database+"_shard.events ADD COLUMN more String")
		hosts, err := clickhousetest.MigrateCluster(t, cfg)
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
		if _, err := clickhousetest.MigrateCluster(t, cfg); !errors.Is(err, schema.ErrLayout) || !strings.Contains(err.Error(), "DROP DATABASE "+database+"_shard") {
			t.Errorf("got %v, want an error that says what to drop", err)
		}
	})
	t.Run("a host that has lost all", func(t *testing.T) {
		for _, name := range []string{database, database + "_shard"} {
			c.Servers[0].Query(t, "DROP DATABASE "+name+" SYNC")
		}
		hosts, err := clickhousetest.MigrateCluster(t, cfg)
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
			if _, err := clickhousetest.MigrateCluster(t, clickhousetest.OnCluster(c.Servers[i%2], enginetest.Shards, database)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, server := range c.Servers {
		if _, err := clickhousetest.Open(t, clickhousetest.Config(server, database)).Migrate(t.Context()); err != nil {
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
	_, plain, single := clickhousetest.Migrated(t)
	want := schemaOf(t, plain, single)
	all, err := schema.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		database := c.DatabaseName(t)
		if round > 0 { // from the version before, the views of an old one, or both
			if _, err := clickhousetest.MigrateCluster(t, clickhousetest.OnCluster(c.Servers[0], enginetest.Shards, database)); err != nil {
				t.Fatal(err)
			}
			applyLate(t, c.Servers[round-1], database+"_shard", all[1])
			clickhousetest.Everywhere(t, c, fmt.Sprintf("ALTER TABLE %s_shard.schema_migrations DELETE WHERE version > %d SETTINGS mutations_sync = 1", database, len(all)-round))
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
				cfg := clickhousetest.OnCluster(c.Servers[i%2], enginetest.Shards, database)
				_, err := schema.MigrateCluster(ctx, cfg, schema.ClusterOptions{}, slog.New(slog.DiscardHandler))
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
			if _, err := clickhousetest.Open(t, clickhousetest.Config(server, database)).Migrate(t.Context()); err != nil {
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
		_, err := clickhousetest.MigrateCluster(t, clickhousetest.OnCluster(c.Servers[0], cluster, database))
		if err == nil || errors.Is(err, schema.ErrLayout) != final || clickhouse.IsRetryable(err) == final {
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
		store := clickhousetest.Open(t, clickhousetest.Config(c.Servers[1], database))
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		refused(t, enginetest.Shards, database, true, c.Servers[1].Addr, database)
		// And a process that was told of the cluster does not use them.
		told := clickhousetest.Open(t, clickhousetest.OnCluster(c.Servers[1], enginetest.Shards, database))
		if _, err := told.Migrate(t.Context()); !errors.Is(err, schema.ErrLayout) {
			t.Errorf("got %v, want %v", err, schema.ErrLayout)
		}
	})
	t.Run("tables of another cluster", func(t *testing.T) {
		_, database := clickhousetest.SpreadOverFirst(t, c)
		refused(t, enginetest.Shards, database, true, "first")
		told := clickhousetest.Open(t, clickhousetest.OnCluster(c.Servers[0], enginetest.Shards, database))
		if _, err := told.Migrate(t.Context()); !errors.Is(err, schema.ErrLayout) {
			t.Errorf("got %v, want %v", err, schema.ErrLayout)
		}
	})
	t.Run("other shards than when it was made", func(t *testing.T) {
		_, database := clickhousetest.SpreadOverFirst(t, c)
		c.Servers[0].Query(t, "ALTER TABLE "+database+".events MODIFY COMMENT 'shards of weight 1, 1'")
		refused(t, "first", database, true, "weight 1, 1", "new database")
		store := clickhousetest.Open(t, clickhousetest.Config(c.Servers[0], database))
		if _, err := store.Migrate(t.Context()); !errors.Is(err, schema.ErrLayout) {
			t.Errorf("got %v, want %v", err, schema.ErrLayout)
		}
	})
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
	cfg := clickhousetest.OnCluster(c.Servers[0], "pair", database)
	hosts, err := clickhousetest.MigrateCluster(t, cfg)
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
	_, single, plain := clickhousetest.Migrated(t)
	want := strings.NewReplacer("ENGINE = ReplacingMergeTree(version)", "", "ENGINE = ReplacingMergeTree(recorded_at)", "", "ENGINE = MergeTree", "").Replace(schemaOf(t, single, plain))
	for i, server := range c.Servers {
		got := replicatedEngine.ReplaceAllString(schemaOf(t, server, database+"_shard"), "")
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("host %d, tables (-single machine +replica):\n%s", i, diff)
		}
	}
	if hosts, err = clickhousetest.MigrateCluster(t, cfg); err != nil {
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
	if hosts, err = clickhousetest.MigrateCluster(t, cfg); err != nil {
		t.Fatal(err)
	}
	if hosts[0].Created || !hosts[1].Created {
		t.Errorf("made are %v and %v, want the second", hosts[0].Created, hosts[1].Created)
	}
	// An insert asks for both replicas, none of which is active here.
	store := clickhousetest.Open(t, clickhousetest.Config(c.Servers[0], database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := clickhousetest.OneCore(t, clickhousetest.ConversationsOf(0, 1)[0])
	if err := store.Insert(t.Context(), &rows); err == nil || !clickhouse.IsRetryable(err) || !strings.Contains(err.Error(), "less than requested quorum (2/2)") {
		t.Errorf("got %v, want a retryable error that asks for two replicas", err)
	}
}

var replicatedEngine = regexp.MustCompile(`ENGINE = Replicated(Replacing)?MergeTree\('/clickhouse/tables/\{shard\}/[a-z0-9_/]+', '\{replica\}'(, version|, recorded_at)?\)`)
