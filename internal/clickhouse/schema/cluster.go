package schema

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// ClusterOptions are the options of [MigrateCluster].
type ClusterOptions struct {
	// Replicated creates replicated tables even if each shard has only one replica,
	// so that others can join later. With several replicas the tables are replicated
	// in any case.
	Replicated bool
	// Retention is set on all hosts, unless it is nil; see [Schema.SetRetention].
	Retention *time.Duration
}

// MigratedHost describes what [MigrateCluster] did on a host.
type MigratedHost struct {
	// Addr is host:port of the native protocol.
	Addr           string
	Shard, Replica int
	// Created says that the host had no tables and now has all of them.
	Created bool
	// Applied are the migrations that the host lacked.
	Applied []Migration
	// Views are the names of the shard's views that were created again, because they
	// were missing or older than the last migration that defines them.
	Views []string
	// Spread is how many Distributed tables were made or renewed.
	Spread int
	// Retained says that the retention was changed.
	Retained bool
}

// MigrateCluster migrates all hosts of the configured cluster to the schema of this
// build, and spreads the tables over its shards. It connects to each host by the
// name and port in system.clusters of the configured server, with the same user,
// password and TLS, so this machine must be able to reach these.
//
// It can be run again after any error, and by several processes at once, which
// wait for each other. Errors about a host name the host. Nothing is changed
// before every host was reached and checked.
//
// It does not use ON CLUSTER, because each statement would wait in a queue in
// Keeper for hosts that may be down, and a cluster without replicas needs no
// Keeper.
func MigrateCluster(ctx context.Context, cfg conn.Config, opts ClusterOptions, log *slog.Logger) ([]MigratedHost, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Cluster == "" {
		return nil, errors.New("clickhouse: Cluster: is required")
	}
	c := &cluster{name: cfg.Cluster, cfg: cfg.WithDefaults(), replicated: opts.Replicated, retention: opts.Retention, log: log}
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
	// All processes take the lock on the same host, the first of the cluster.
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

// cluster is one run of [MigrateCluster].
type cluster struct {
	name       string
	cfg        conn.Config
	replicated bool
	retention  *time.Duration
	log        *slog.Logger
	members    members
	hosts      []*host
}

// host is a host of the cluster that is migrated.
type host struct {
	member
	// front is the database with the Distributed tables, back that of the shard.
	front, back *Schema
	// pending are the migrations of this build that the shard lacks. empty says that
	// the shard has no tables.
	pending []Migration
	empty   bool
	done    MigratedHost
}

func (c *cluster) close() {
	for _, h := range c.hosts {
		h.front.close()
		h.back.close()
	}
}

// each calls do for every host and returns the first error.
func (c *cluster) each(do func(h *host) error) error {
	for _, h := range c.hosts {
		if err := do(h); err != nil {
			return h.at(err)
		}
	}
	return nil
}

// open reads the hosts of the cluster and connects to them.
func (c *cluster) open(ctx context.Context) error {
	first, err := open(c.cfg, c.log)
	if err != nil {
		return err
	}
	defer first.close()
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
		if h.front, err = open(cfg, c.log); err != nil {
			return h.at(err)
		}
		if h.back, err = h.front.openShard(m.addr()); err != nil {
			h.front.close()
			return h.at(err)
		}
		c.hosts = append(c.hosts, h)
	}
	c.replicated = c.replicated || c.members.replicas() > 1
	return nil
}

// check checks every host and changes nothing.
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
			c.replicated = true // because the existing tables are
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

// checkMacros checks the macros by which Keeper tells the replicas apart.
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

func (s *Schema) macros(ctx context.Context) (map[string]string, error) {
	var (
		name, value proto.ColStr
		all         = make(map[string]string)
	)
	err := s.db.DoServer(ctx, s.cfg.QueryTimeout, ch.Query{
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
		return nil, fmt.Errorf("read macros: %w", conn.WithoutValues(err))
	}
	return all, nil
}

// begin creates the databases of the shards and the tables that record their
// migrations.
func (c *cluster) begin(ctx context.Context) error {
	return c.each(func(h *host) error { return h.back.beginMigrations(ctx) })
}

// update migrates the hosts that have tables. It runs one migration on all of them
// before the next, because the replicas of a table must agree on its columns.
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

// retain sets the retention. What a Distributed table shows depends on its own
// definition. So hosts hide events before any shard may drop their rows, and show
// them only when all shards keep them.
func (c *cluster) retain(ctx context.Context) error {
	if c.retention == nil {
		return nil
	}
	keep := *c.retention
	set := func(h *host, s *Schema) error {
		changed, err := s.SetRetention(ctx, keep)
		h.done.Retained = h.done.Retained || changed
		return err
	}
	err := c.each(func(h *host) error {
		tables, _, err := h.front.retentions(ctx)
		if err != nil {
			return err
		}
		now := tables[TableEvents].keep
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
