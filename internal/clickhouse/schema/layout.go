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

// On a cluster each host has two databases: one with the tables of its shard,
// and one, of the configured name, with a Distributed table over each of them.
// All queries and inserts name tables of the second, and are the same as on one
// machine.

// ErrLayout is wrapped by errors of [Schema.Migrate] and [MigrateCluster] that
// say that the tables are there, but not as they were asked for: on a cluster
// or not, on another one, replicated or not, or on other shards than those that
// their rows were placed by. Trying again does not help.
var ErrLayout = errors.New("the tables are laid out otherwise")

// shardSuffix makes the name of a shard's database.
const shardSuffix = "_shard"

// shardingKeys place the rows of each table. One conversation is on one shard,
// so that what is asked of it is asked there alone, and views join there. Each
// view has its table's key, to be pruned by.
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

// layout is how the tables of a database lie.
type layout struct {
	// tables says that there are some.
	tables bool
	// cluster is the servers' name of the cluster that they are spread over,
	// empty for none.
	cluster string
	// placed is what the tables say of the shards that their rows are placed by.
	placed string
	// replicated says that the tables are, not those that they are Distributed over.
	replicated bool
	// replicas is how many each shard has, 0 where its tables are not replicated,
	// and until Migrate has looked at those.
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

// migratedCluster is [Schema.Migrate] where the tables are spread.
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
