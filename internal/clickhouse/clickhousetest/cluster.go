package clickhousetest

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
)

// OnCluster returns the configuration of a server's database that is spread over
// the cluster.
func OnCluster(server *enginetest.Instance, cluster, database string) clickhouse.Config {
	cfg := Config(server, database)
	cfg.Cluster = cluster
	return cfg
}

// MigrateCluster migrates the cluster of the configuration.
func MigrateCluster(t testing.TB, cfg clickhouse.Config) ([]schema.MigratedHost, error) {
	t.Helper()
	return schema.MigrateCluster(t.Context(), cfg, schema.ClusterOptions{}, slog.New(slog.DiscardHandler))
}

// SpreadOver returns a new database that is spread over the cluster, and a store
// on each of its servers.
func SpreadOver(t testing.TB, c *enginetest.Cluster, cluster string) (stores []*clickhouse.Store, database string) {
	t.Helper()
	database = c.DatabaseName(t)
	if _, err := MigrateCluster(t, OnCluster(c.Servers[0], cluster, database)); err != nil {
		t.Fatal(err)
	}
	for _, server := range c.Servers {
		store := Open(t, Config(server, database))
		if _, err := store.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		stores = append(stores, store)
	}
	return stores, database
}

// Spread is [SpreadOver] on the two shards that tests share.
func Spread(t testing.TB) (stores []*clickhouse.Store, c *enginetest.Cluster, database string) {
	t.Helper()
	c = enginetest.SharedCluster(t)
	stores, database = SpreadOver(t, c, enginetest.Shards)
	return stores, c, database
}

// ConversationsOf finds n conversations of a shard of two.
func ConversationsOf(shard uint32, n int) []string {
	var found []string
	for i := 0; len(found) < n; i++ {
		if name := fmt.Sprint("conversation ", i); event.ConversationHash(name)%2 == shard {
			found = append(found, name)
		}
	}
	return found
}

// Everywhere runs a statement on the shard's table of each server.
func Everywhere(t testing.TB, c *enginetest.Cluster, statement string) {
	t.Helper()
	for _, server := range c.Servers {
		server.Query(t, statement)
	}
}

// SpreadOverFirst has a database on the cluster of the first server alone.
func SpreadOverFirst(t testing.TB, c *enginetest.Cluster) (store *clickhouse.Store, database string) {
	t.Helper()
	database = c.DatabaseName(t)
	if _, err := MigrateCluster(t, OnCluster(c.Servers[0], "first", database)); err != nil {
		t.Fatal(err)
	}
	store = Open(t, Config(c.Servers[0], database))
	if _, err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, database
}
