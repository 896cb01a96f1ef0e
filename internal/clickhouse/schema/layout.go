package schema

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// On a cluster each host has two databases. One has the tables of its shard. The
// other has the configured name and a Distributed table over each of those. All
// queries and inserts use the second database, so they are the same as on one
// machine.

// ErrLayout is wrapped by errors of [Schema.Migrate] and [MigrateCluster] when the
// tables exist with another layout than configured: on a cluster or on a single
// machine, on another cluster, replicated or not, or placed by other shards.
// Trying again does not help.
var ErrLayout = errors.New("the tables are laid out otherwise")

// shardSuffix follows the configured name in the name of a shard's database.
const shardSuffix = "_shard"

// shardingKeys has the sharding key of each table. A conversation is on one shard,
// so that queries about it go to that shard alone and views join there. A view
// has the key of its table, so that shards can be skipped for it too.
var shardingKeys = map[string]string{ //nolint:gochecknoglobals // a constant table
	TableEvents:             "conversation_hash",
	TableContents:           "conversation_hash",
	TableEmbeddings:         "conversation_hash",
	TableAliases:            "xxHash64(alias)",
	tableGenerations:        "bitAnd(generation, 0)", // all on the first shard
	"live_events":           "conversation_hash",
	"live_event_contents":   "conversation_hash",
	"live_event_embeddings": "conversation_hash",
}

// layout says how the tables of a database are spread over servers.
type layout struct {
	// tables says that the database has tables.
	tables bool
	// cluster is the name, in remote_servers, of the cluster that the tables are
	// spread over. It is empty on a single machine.
	cluster string
	// placed describes the shards by which the rows were placed; see placement.
	placed string
	// replicated says that these tables are replicated, not those that a Distributed
	// table is over.
	replicated bool
	// replicas is the number of replicas of each shard. It is 0 if the tables are not
	// replicated, and until Migrate has looked at them.
	replicas int
}

// distributedTo finds the cluster of a Distributed table.
var distributedTo = regexp.MustCompile(`^Distributed\('([^']+)'`)

// findLayout reads the layout of the configured database on this host.
func (s *Schema) findLayout(ctx context.Context) (layout, error) {
	var (
		l                    layout
		engine, full, remark proto.ColStr
	)
	err := s.db.DoServer(ctx, s.cfg.QueryTimeout, ch.Query{
		Body:       "SELECT engine, engine_full, comment FROM system.tables WHERE database = {database:String} AND name = 'events'",
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "engine", Data: &engine}, {Name: "engine_full", Data: &full}, {Name: "comment", Data: &remark},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range engine.Rows() {
				l.tables, l.replicated = true, strings.HasPrefix(engine.Row(i), "Replicated")
				if m := distributedTo.FindStringSubmatch(full.Row(i)); m != nil {
					l.cluster, l.placed = m[1], remark.Row(i)
				}
			}
			return nil
		},
	})
	if err != nil {
		return l, fmt.Errorf("look for tables: %w", conn.WithoutValues(err))
	}
	return l, nil
}

// migratedCluster is [Schema.Migrate] for tables that are spread over a cluster.
func (s *Schema) migratedCluster(ctx context.Context, l layout) (Migrated, error) {
	var done Migrated
	if s.cfg.Cluster != "" && s.cfg.Cluster != l.cluster {
		return done, fmt.Errorf("database %s is spread over cluster %s, not %s: %w", s.cfg.Database, l.cluster, s.cfg.Cluster, ErrLayout)
	}
	members, err := s.members(ctx, l.cluster)
	if err != nil {
		return done, err
	}
	if err := members.check(l.cluster); err != nil {
		return done, err
	}
	if now := members.placement(); now != l.placed {
		return done, members.misplaced(l.cluster, l.placed)
	}
	shard, err := s.openShard(s.cfg.Addr)
	if err != nil {
		return done, err
	}
	defer shard.close()
	applied, err := shard.appliedMigrations(ctx)
	if err != nil {
		return done, err
	}
	pending, unknown, err := pendingMigrations(applied)
	if err != nil {
		return done, err
	}
	if len(pending) > 0 {
		return done, fmt.Errorf("migration %s is missing on this host; run \"sluice migrate --cluster %s\"", pending[0].Name, l.cluster)
	}
	tables, err := shard.findLayout(ctx)
	if err != nil {
		return done, err
	}
	if tables.replicated {
		l.replicas = members.replicas()
	}
	s.layout.Store(&l)
	done.Unknown = unknown
	return done, nil
}
