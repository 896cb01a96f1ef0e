package schema

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// create creates the tables of the hosts that have none. They are copies of the
// tables of a host that has some, or otherwise of a scratch database with all
// migrations. It does not run the migrations themselves, because a replica cannot
// begin with columns that its table had earlier.
func (c *cluster) create(ctx context.Context) error {
	empty := func(h *host) bool { return h.empty }
	if !slices.ContainsFunc(c.hosts, empty) {
		return nil
	}
	var (
		model *Schema
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
				c.log.Warn("could not drop the scratch database of the migration; drop it by hand", "error", h.at(err))
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

// checkCreated compares the new tables of a host with their model. A process of
// another build that died while it created them may have left some, which have no
// rows yet.
func (c *cluster) checkCreated(ctx context.Context, h *host, model *Schema) error {
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

// scratch creates a database with all migrations, to read the definitions of its
// tables. The caller calls drop.
func (h *host) scratch(ctx context.Context) (model *Schema, drop func() error, err error) {
	var b [4]byte
	rand.Read(b[:]) // never fails
	cfg := h.back.cfg
	cfg.Database += "_" + hex.EncodeToString(b[:])
	if model, err = open(cfg, h.back.log); err != nil {
		return nil, nil, err
	}
	drop = func() error {
		defer model.close()
		// The database is dropped even if ctx has ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ddlTimeout)
		defer cancel()
		return model.db.DoServer(ctx, ddlTimeout, ch.Query{Body: "DROP DATABASE IF EXISTS " + cfg.Database + " SYNC"})
	}
	if _, err = model.migrateHere(ctx); err != nil {
		return nil, nil, errors.Join(err, drop())
	}
	return model, drop, nil
}

// creates returns the statements that create the tables of the database, and then
// its views, if they do not exist.
func (s *Schema) creates(ctx context.Context) ([]string, error) {
	var (
		text       proto.ColStr
		statements []string
	)
	err := s.db.Query(ctx, conn.RoleAdmin, "creates", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT create_table_query AS text FROM system.tables
			WHERE database = {database:String} AND name != 'schema_migrations' ORDER BY engine = 'View', name`,
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
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

// replicatedStatement changes a CREATE TABLE so that the table is replicated, and
// returns all other statements unchanged. Replicas of a shard find each other by
// the path, so the path has the configured name of the database, which is the
// same for all of them.
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
