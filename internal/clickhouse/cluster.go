package clickhouse

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// On a cluster each host has two databases: one with the tables of its shard,
// and one, of the configured name, with a Distributed table over each of them.
// All queries and inserts name tables of the second, and are the same as on one
// machine.

// ErrLayout is wrapped by errors of [Store.Migrate] and [MigrateCluster] that
// say that the tables are there, but not as they were asked for: on a cluster
// or not, on another one, replicated or not, or on other shards than those that
// their rows were placed by. Trying again does not help.
var ErrLayout = errors.New("the tables are laid out otherwise")

// shardSuffix makes the name of a shard's database.
const shardSuffix = "_shard"

// clusterName is what may stand in DDL, where parameters cannot.
var clusterName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// shardingKeys place the rows of each table. One conversation is on one shard,
// so that what is asked of it is asked there alone, and views join there. Each
// view has its table's key, to be pruned by.
var shardingKeys = map[string]string{ //nolint:gochecknoglobals // a constant table
	tableEvents:             "conversation_hash",
	tableContents:           "conversation_hash",
	tableEmbeddings:         "conversation_hash",
	tableAliases:            "xxHash64(alias)",
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
func (s *Store) findLayout(ctx context.Context) (layout, error) {
	var (
		l                    layout
		engine, full, remark proto.ColStr
	)
	err := s.admin.do(ctx, s.cfg.QueryTimeout, ch.Query{
		Body:       "SELECT engine, engine_full, comment FROM system.tables WHERE database = {database:String} AND name = 'events'",
		Parameters: parameters{}.text("database", s.cfg.Database),
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
		return l, fmt.Errorf("look for tables: %w", withoutValues(err))
	}
	return l, nil
}

// migratedCluster is [Store.Migrate] where the tables are spread.
func (s *Store) migratedCluster(ctx context.Context, l layout) (Migrated, error) {
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
	defer shard.Close()
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
	s.spread.Store(&l)
	done.Unknown = unknown
	return done, nil
}

// openShard opens the shard's own tables on a host of the cluster.
func (s *Store) openShard(addr string) (*Store, error) {
	cfg := s.cfg
	cfg.Addr, cfg.Cluster, cfg.Database = addr, "", s.cfg.Database+shardSuffix
	return New(cfg, s.log, nil)
}

// member is a host of a cluster, as a server has it.
type member struct {
	shard, weight, replica int
	internalReplication    bool
	host                   string
	port                   int
}

func (m *member) addr() string { return net.JoinHostPort(m.host, strconv.Itoa(m.port)) }

// at names the host in an error.
func (m *member) at(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("host %s, shard %d, replica %d: %w", m.addr(), m.shard, m.replica, err)
}

// members are the hosts of a cluster, by shard and replica.
type members []member

// members reads the hosts of a cluster, as this host has them.
func (s *Store) members(ctx context.Context, cluster string) (members, error) {
	var (
		all                    members
		shard, weight, replica proto.ColUInt32
		internal               proto.ColUInt8
		host                   proto.ColStr
		port                   proto.ColUInt16
	)
	err := s.admin.do(ctx, s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT toUInt32(shard_num) AS shard, toUInt32(shard_weight) AS weight, toUInt32(replica_num) AS replica,
				toUInt8(internal_replication) AS internal, toString(host_name) AS host, toUInt16(port) AS port
			FROM system.clusters WHERE cluster = {cluster:String} ORDER BY shard, replica`,
		Parameters: parameters{}.text("cluster", cluster),
		Result: proto.Results{
			{Name: "shard", Data: &shard},
			{Name: "weight", Data: &weight},
			{Name: "replica", Data: &replica},
			{Name: "internal", Data: &internal},
			{Name: "host", Data: &host},
			{Name: "port", Data: &port},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range shard {
				all = append(all, member{
					shard: int(shard[i]), weight: int(weight[i]), replica: int(replica[i]),
					internalReplication: internal[i] != 0, host: host.Row(i), port: int(port[i]),
				})
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the hosts of cluster %s: %w", cluster, withoutValues(err))
	}
	return all, nil
}

// clusters are the names of those that this host knows.
func (s *Store) clusters(ctx context.Context) ([]string, error) {
	var (
		name  proto.ColStr
		names []string
	)
	err := s.admin.do(ctx, s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT DISTINCT cluster AS name FROM system.clusters ORDER BY name",
		Result: proto.Results{{Name: "name", Data: &name}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				names = append(names, name.Row(i))
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the names of clusters: %w", withoutValues(err))
	}
	return names, nil
}

// check reports what no table can be spread over.
func (ms members) check(cluster string) error {
	if len(ms) == 0 {
		return fmt.Errorf("cluster %s is not in remote_servers of this host", cluster)
	}
	count := make(map[int]int)
	for _, m := range ms {
		count[m.shard]++
	}
	// A quorum is one number for an insert, whichever shards its rows are of.
	for shard, n := range count {
		if n != count[ms[0].shard] {
			return fmt.Errorf("cluster %s: shard %d has replicas %d, and shard %d has %d: all need the same number", cluster, shard, n, ms[0].shard, count[ms[0].shard])
		}
	}
	for _, m := range ms {
		if count[m.shard] > 1 && !m.internalReplication {
			return fmt.Errorf("cluster %s: shard %d has replicas, and internal_replication is not true in remote_servers", cluster, m.shard)
		}
	}
	return nil
}

// replicas is how many each shard has.
func (ms members) replicas() int {
	n := 0
	for _, m := range ms {
		if m.shard == ms[0].shard {
			n++
		}
	}
	return n
}

// placement tells what rows are placed by: the key's value modulo the sum of
// the weights. It is the comment of each Distributed table.
func (ms members) placement() string {
	var weights []string
	for i, m := range ms {
		if i == 0 || ms[i-1].shard != m.shard {
			weights = append(weights, strconv.Itoa(m.weight))
		}
	}
	return "shards of weight " + strings.Join(weights, ", ")
}

func (ms members) misplaced(cluster, placed string) error {
	return fmt.Errorf("the rows are placed by %q, and cluster %s has %q now: what is there would be looked for elsewhere; make a new database on the changed cluster, and copy the rows into it: %w",
		placed, cluster, ms.placement(), ErrLayout)
}

// ClusterOptions are those of [MigrateCluster].
type ClusterOptions struct {
	// Replicated makes replicated tables though each shard has one replica, so
	// that others can join it later. They are where there are several.
	Replicated bool
	// Retention is set on all hosts, unless it is nil; see [Store.SetRetention].
	Retention *time.Duration
}

// MigratedHost is what [MigrateCluster] did to a host.
type MigratedHost struct {
	// Addr is host:port of the native protocol.
	Addr           string
	Shard, Replica int
	// Created says that the host had no tables, and has all of them now.
	Created bool
	// Applied are the migrations that an older host was behind by.
	Applied []Migration
	// Views are the names of the shard's views that were made again, because they
	// were missing or not those of the last migration that defines them.
	Views []string
	// Spread is how many Distributed tables were made or renewed.
	Spread int
	// Retained says that the retention was another.
	Retained bool
}

// MigrateCluster brings the schema of all hosts of the configured cluster up to
// this build's, and spreads the tables over its shards. It speaks to each host
// by the name and port that system.clusters of the configured server has, with
// the same user, password and TLS; so these must be what this machine can
// reach. It can be run again, after any error, and by several processes at
// once, which wait for each other. Errors that are about a host name it. Nothing
// is changed before every host was reached and found fit.
//
// There is no ON CLUSTER in it: that would have every statement wait in a queue
// in Keeper for hosts that may be down, and clusters without replicas need no
// Keeper.
func MigrateCluster(ctx context.Context, cfg Config, opts ClusterOptions, log *slog.Logger) ([]MigratedHost, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Cluster == "" {
		return nil, errors.New("clickhouse: Cluster: is required")
	}
	c := &cluster{name: cfg.Cluster, cfg: cfg.withDefaults(), replicated: opts.Replicated, retention: opts.Retention, log: log}
	defer c.close()
	run := func(ctx context.Context, steps ...func(context.Context) error) error {
		for _, step := range steps {
			if err := step(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if err := run(ctx, c.open, c.check, c.begin); err != nil {
		return nil, err
	}
	// All processes ask the same host for the lock: the first of the cluster.
	err := c.hosts[0].back.migrationLock(ctx, c.cfg.Database, func(ctx context.Context) error {
		return run(ctx, c.check, c.update, c.create, c.spread, c.retain)
	})
	if err != nil {
		return nil, err
	}
	done := make([]MigratedHost, len(c.hosts))
	for i, h := range c.hosts {
		done[i] = h.done
	}
	return done, nil
}

// cluster is what [MigrateCluster] works on.
type cluster struct {
	name       string
	cfg        Config
	replicated bool
	retention  *time.Duration
	log        *slog.Logger
	members    members
	hosts      []*host
}

// host is one of a cluster's.
type host struct {
	member
	// front has the Distributed tables, back those of the shard.
	front, back *Store
	// pending are the migrations of this build that the shard's tables lack;
	// empty says that it has none.
	pending []Migration
	empty   bool
	done    MigratedHost
}

func (c *cluster) close() {
	for _, h := range c.hosts {
		h.front.Close()
		h.back.Close()
	}
}

// each calls do for every host, and returns its first error.
func (c *cluster) each(do func(h *host) error) error {
	for _, h := range c.hosts {
		if err := do(h); err != nil {
			return h.at(err)
		}
	}
	return nil
}

// open finds the hosts.
func (c *cluster) open(ctx context.Context) error {
	first, err := New(c.cfg, c.log, nil)
	if err != nil {
		return err
	}
	defer first.Close()
	if c.members, err = first.members(ctx, c.name); err != nil {
		return err
	}
	if len(c.members) == 0 {
		known, err := first.clusters(ctx)
		if err != nil {
			return err
		}
		return fmt.Errorf("%s knows no cluster %s in remote_servers; it knows: %s", c.cfg.Addr, c.name, strings.Join(known, ", "))
	}
	if err := c.members.check(c.name); err != nil {
		return err
	}
	for _, m := range c.members {
		h := &host{member: m, done: MigratedHost{Addr: m.addr(), Shard: m.shard, Replica: m.replica}}
		cfg := c.cfg
		cfg.Addr = m.addr()
		if h.front, err = New(cfg, c.log, nil); err != nil {
			return h.at(err)
		}
		if h.back, err = h.front.openShard(m.addr()); err != nil {
			h.front.Close()
			return h.at(err)
		}
		c.hosts = append(c.hosts, h)
	}
	c.replicated = c.replicated || c.members.replicas() > 1
	return nil
}

// check looks at every host, and changes nothing.
func (c *cluster) check(ctx context.Context) error {
	err := c.each(func(h *host) error {
		theirs, err := h.front.members(ctx, c.name)
		if err != nil {
			return err
		}
		if !slices.Equal(theirs, c.members) {
			return fmt.Errorf("it has other hosts in cluster %s than %s has; remote_servers must be the same on all", c.name, c.cfg.Addr)
		}
		l, err := h.front.findLayout(ctx)
		switch {
		case err != nil:
			return err
		case l.tables && l.cluster == "":
			return fmt.Errorf("database %s has tables of a single machine: %w", c.cfg.Database, ErrLayout)
		case l.tables && l.cluster != c.name:
			return fmt.Errorf("database %s is spread over cluster %s: %w", c.cfg.Database, l.cluster, ErrLayout)
		case l.tables && l.placed != c.members.placement():
			return c.members.misplaced(c.name, l.placed)
		}
		shard, err := h.back.findLayout(ctx)
		if err != nil {
			return err
		}
		if shard.replicated {
			c.replicated = true // as they are
		}
		if shard.tables && !shard.replicated && c.replicated {
			return fmt.Errorf("the tables in %s are not replicated: %w", h.back.cfg.Database, ErrLayout)
		}
		return nil
	})
	if err != nil || !c.replicated {
		return err
	}
	return c.checkMacros(ctx)
}

// checkMacros checks what the replicas are told apart by in Keeper.
func (c *cluster) checkMacros(ctx context.Context) error {
	type place struct{ shard, replica string }
	var (
		taken  = make(map[place]*host)
		shards = make(map[int]string)
		owner  = make(map[string]int)
	)
	return c.each(func(h *host) error {
		macros, err := h.front.macros(ctx)
		if err != nil {
			return err
		}
		for _, name := range []string{"shard", "replica"} {
			if macros[name] == "" {
				return fmt.Errorf("it has no macro %q, which replicated tables need", name)
			}
		}
		at := place{macros["shard"], macros["replica"]}
		if other := taken[at]; other != nil {
			return fmt.Errorf("its macros shard %q and replica %q are those of host %s too", at.shard, at.replica, other.addr())
		}
		taken[at] = h
		if s, ok := shards[h.shard]; ok && s != at.shard {
			return fmt.Errorf("its macro shard is %q, and %q on another replica of the shard", at.shard, s)
		}
		if n, ok := owner[at.shard]; ok && n != h.shard {
			return fmt.Errorf("its macro shard %q is that of shard %d too", at.shard, n)
		}
		shards[h.shard], owner[at.shard] = at.shard, h.shard
		return nil
	})
}

func (s *Store) macros(ctx context.Context) (map[string]string, error) {
	var (
		name, value proto.ColStr
		all         = make(map[string]string)
	)
	err := s.admin.do(ctx, s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT macro, substitution FROM system.macros",
		Result: proto.Results{{Name: "macro", Data: &name}, {Name: "substitution", Data: &value}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				all[name.Row(i)] = value.Row(i)
			}
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read macros: %w", withoutValues(err))
	}
	return all, nil
}

// begin makes the databases of the shards, and the tables that record their
// migrations.
func (c *cluster) begin(ctx context.Context) error {
	return c.each(func(h *host) error { return h.back.beginMigrations(ctx) })
}

// update migrates the hosts that have tables: one migration on all of them
// before the next, because replicas of a table must agree on its columns.
func (c *cluster) update(ctx context.Context) error {
	migrations, err := Migrations()
	if err != nil {
		return err
	}
	err = c.each(func(h *host) error {
		applied, err := h.back.appliedMigrations(ctx)
		if err != nil {
			return err
		}
		h.empty = len(applied) == 0
		h.pending, _, err = pendingMigrations(applied)
		return err
	})
	if err != nil {
		return err
	}
	for _, m := range migrations {
		statements := slices.Clone(m.statements)
		if c.replicated {
			for i, text := range statements {
				statements[i] = replicatedStatement(text, c.cfg.Database)
			}
		}
		err := c.each(func(h *host) error {
			has := func(p Migration) bool { return p.Version == m.Version }
			if h.empty || !slices.ContainsFunc(h.pending, has) {
				return nil
			}
			h.done.Applied = append(h.done.Applied, m)
			return h.back.apply(ctx, m, statements)
		})
		if err != nil {
			return err
		}
	}
	return c.each(func(h *host) error {
		if h.empty {
			return nil
		}
		views, err := h.back.renewViews(ctx)
		h.done.Views = views
		return err
	})
}

// create makes the tables of the hosts that have none: those of a host that has
// them, as they are now, or else what all migrations come to. Not by the
// migrations themselves, because a replica cannot begin with the columns that
// its table had once.
func (c *cluster) create(ctx context.Context) error {
	empty := func(h *host) bool { return h.empty }
	if !slices.ContainsFunc(c.hosts, empty) {
		return nil
	}
	var (
		model *Store
		err   error
	)
	if i := slices.IndexFunc(c.hosts, func(h *host) bool { return !h.empty }); i >= 0 {
		model = c.hosts[i].back
	} else {
		h := c.hosts[0]
		var drop func() error
		if model, drop, err = h.scratch(ctx); err != nil {
			return h.at(err)
		}
		defer func() {
			if err := drop(); err != nil {
				c.log.Warn("a database that is not needed any more stays", "error", h.at(err))
			}
		}()
	}
	applied, err := model.appliedMigrations(ctx)
	if err != nil {
		return err
	}
	statements, err := model.creates(ctx)
	if err != nil {
		return err
	}
	return c.each(func(h *host) error {
		if !h.empty {
			return nil
		}
		for _, text := range statements {
			text = strings.ReplaceAll(text, model.cfg.Database+".", h.back.cfg.Database+".")
			if c.replicated {
				text = replicatedStatement(text, c.cfg.Database)
			}
			if err := h.back.define(ctx, text); err != nil {
				return fmt.Errorf("create the shard's tables: %w", err)
			}
		}
		if err := c.checkCreated(ctx, h, model); err != nil {
			return err
		}
		for _, m := range applied {
			if err := h.back.recordMigration(ctx, m); err != nil {
				return err
			}
		}
		h.done.Created = true
		return nil
	})
}

// checkCreated compares the tables of a host with those that they were made
// like. A process of another build that died while it made them may have left
// some, which have no rows yet.
func (c *cluster) checkCreated(ctx context.Context, h *host, model *Store) error {
	want, err := model.definitions(ctx)
	if err != nil {
		return err
	}
	got, err := h.back.definitions(ctx)
	if err != nil {
		return err
	}
	for name, w := range want {
		g := got[name]
		if g.columns != w.columns || !c.replicated && g.engine != w.engine || g.comment != w.comment {
			return fmt.Errorf("%s in %s is of another build that did not finish; run \"DROP DATABASE %[2]s\" on this host, and migrate again: %w",
				name, h.back.cfg.Database, ErrLayout)
		}
	}
	return nil
}

// scratch is a new database with all migrations, whose tables are looked at and
// dropped.
func (h *host) scratch(ctx context.Context) (model *Store, drop func() error, err error) {
	var b [4]byte
	rand.Read(b[:]) // never fails
	cfg := h.back.cfg
	cfg.Database += "_" + hex.EncodeToString(b[:])
	if model, err = New(cfg, h.back.log, nil); err != nil {
		return nil, nil, err
	}
	drop = func() error {
		defer model.Close()
		// Also when ctx has ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ddlTimeout)
		defer cancel()
		return model.admin.do(ctx, ddlTimeout, ch.Query{Body: "DROP DATABASE IF EXISTS " + cfg.Database + " SYNC"})
	}
	if _, err = model.migrateHere(ctx); err != nil {
		return nil, nil, errors.Join(err, drop())
	}
	return model, drop, nil
}

// creates are the statements that make the database's tables and then its
// views, where they do not exist.
func (s *Store) creates(ctx context.Context) ([]string, error) {
	var (
		text       proto.ColStr
		statements []string
	)
	err := s.query(ctx, roleAdmin, "creates", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT create_table_query AS text FROM system.tables
			WHERE database = {database:String} AND name != 'schema_migrations' ORDER BY engine = 'View', name`,
		Parameters: parameters{}.text("database", s.cfg.Database),
		Result:     proto.Results{{Name: "text", Data: &text}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range text.Rows() {
				statements = append(statements, createPattern.ReplaceAllString(text.Row(i), "CREATE $1 IF NOT EXISTS "))
			}
			return nil
		},
	})
	return statements, err
}

var (
	createPattern = regexp.MustCompile(`^CREATE (TABLE|VIEW) (?:IF NOT EXISTS )?`)
	tablePattern  = regexp.MustCompile(`^CREATE TABLE (?:IF NOT EXISTS )?(?:\w+\.)?(\w+)`)
	enginePattern = regexp.MustCompile(`\bENGINE = ((?:Replacing)?MergeTree)(?:\(([^)]*)\))?`)
)

// replicatedStatement makes the table of a CREATE TABLE replicated, and leaves
// all other statements as they are. Replicas of a shard find each other by the
// path, so that it has the name that all of them have for the database.
func replicatedStatement(text, database string) string {
	table := tablePattern.FindStringSubmatch(text)
	if table == nil {
		return text
	}
	return enginePattern.ReplaceAllStringFunc(text, func(engine string) string {
		m := enginePattern.FindStringSubmatch(engine)
		arguments := []string{"'/clickhouse/tables/{shard}/" + database + "/" + table[1] + "'", "'{replica}'"}
		if m[2] != "" {
			arguments = append(arguments, m[2])
		}
		return "ENGINE = Replicated" + m[1] + "(" + strings.Join(arguments, ", ") + ")"
	})
}

// spread makes the Distributed tables, the last step: who finds them finds what
// they are of.
func (c *cluster) spread(ctx context.Context) error {
	return c.each(func(h *host) error {
		if err := h.front.createDatabase(ctx); err != nil {
			return err
		}
		fronts, err := h.front.definitions(ctx)
		if err != nil {
			return err
		}
		backs, err := h.back.definitions(ctx)
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(backs)) {
			if name == "schema_migrations" || name == tableErasures {
				continue // each shard's own
			}
			key, ok := shardingKeys[name]
			if !ok {
				return fmt.Errorf("BUG: table %s has no sharding key", name)
			}
			want := definition{
				engine:  fmt.Sprintf("Distributed('%s', '%s', '%s', %s)", c.name, h.back.cfg.Database, name, key),
				comment: c.members.placement(), columns: backs[name].columns,
			}
			if fronts[name] == want {
				continue
			}
			create := "CREATE TABLE IF NOT EXISTS "
			if _, ok := fronts[name]; ok {
				create = "CREATE OR REPLACE TABLE "
			}
			// Without a list, its columns are those of the shard's table.
			err := h.front.define(ctx, create+name+" ENGINE = "+want.engine+" COMMENT '"+want.comment+"'")
			if err != nil && !ch.IsErr(err, codeTableExists) { // another process made it
				return fmt.Errorf("spread %s: %w", name, err)
			}
			h.done.Spread++
		}
		return nil
	})
}

// retain sets the retention. What a Distributed table shows hangs on its own
// definition, so that hosts hide events before any shard may drop their rows,
// and show them only when all shards keep them.
func (c *cluster) retain(ctx context.Context) error {
	if c.retention == nil {
		return nil
	}
	keep := *c.retention
	set := func(h *host, s *Store) error {
		changed, err := s.SetRetention(ctx, keep)
		h.done.Retained = h.done.Retained || changed
		return err
	}
	err := c.each(func(h *host) error {
		tables, _, err := h.front.retentions(ctx)
		if err != nil {
			return err
		}
		now := tables[tableEvents].keep
		if shrinks := keep != Forever && (now == Forever || now > keep); !shrinks {
			return nil
		}
		return set(h, h.front)
	})
	if err != nil {
		return err
	}
	if err := c.each(func(h *host) error { return set(h, h.back) }); err != nil {
		return err
	}
	return c.each(func(h *host) error { return set(h, h.front) })
}

// codeTableExists is of two processes that replace a table at once.
const codeTableExists = 57

// definition is what two tables must have in common, or one must be.
type definition struct{ engine, comment, columns string }

// definitions are those of all tables and views.
func (s *Store) definitions(ctx context.Context) (map[string]definition, error) {
	var (
		name, engine, remark, columns proto.ColStr
		all                           = make(map[string]definition)
	)
	err := s.query(ctx, roleAdmin, "definitions", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT t.name AS name, t.engine_full AS engine, t.comment AS remark, c.columns AS columns
			FROM system.tables AS t
			LEFT JOIN
			(
				SELECT table, toString(arraySort(groupArray((position, name, type, default_kind, default_expression)))) AS columns
				FROM system.columns WHERE database = {database:String} GROUP BY table
			) AS c ON c.table = t.name
			WHERE t.database = {database:String}`,
		Parameters: parameters{}.text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "name", Data: &name},
			{Name: "engine", Data: &engine},
			{Name: "remark", Data: &remark},
			{Name: "columns", Data: &columns},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				all[name.Row(i)] = definition{engine.Row(i), remark.Row(i), columns.Row(i)}
			}
			return nil
		},
	})
	return all, err
}

// quorumSettings have an insert return when every replica has the rows. A
// lookup or a reader may come to any of them, and must find what was
// acknowledged: an update that does not find its event is refused for good.
// A majority would not do, as reads do not ask one. And
// select_sequential_consistency, which would refuse a replica that is behind
// and not ask another, works only for inserts that wait for each other.
//
// So while a replica is down nothing is applied. Nothing is lost meanwhile: the
// log still acknowledges writes, and reads ask the other replicas.
func (s *Store) quorumSettings(replicas int) []ch.Setting {
	return []ch.Setting{
		setting("insert_quorum", strconv.Itoa(replicas)),
		setting("insert_quorum_parallel", "1"),
		// The server's error comes first, because it says why.
		setting("insert_quorum_timeout", strconv.FormatInt((s.cfg.InsertTimeout/2).Milliseconds(), 10)),
	}
}

// insertSettings are those of every insert of events.
func (s *Store) insertSettings() []ch.Setting {
	if l := s.spread.Load(); l != nil && l.replicas > 0 {
		return slices.Concat(insertSettings, s.quorumSettings(l.replicas))
	}
	return insertSettings
}

// mayWait says whether an insert that is sent, and not ended, shows nothing. A
// replicated table of some servers shows a block when it is there.
func (s *Store) mayWait() bool {
	l := s.spread.Load()
	return l == nil || l.replicas == 0
}
