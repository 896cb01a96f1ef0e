package schema

import (
	"context"
	"fmt"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// ddlTimeout bounds one statement of a migration.
const ddlTimeout = time.Minute

// Migrated describes what [Schema.Migrate] found and did.
type Migrated struct {
	// Applied are the migrations that this call ran.
	Applied []Migration
	// Unknown are applied migrations that this build does not have, because a newer
	// build ran before. The schemas of builds N and N+1 work together, so the caller
	// only needs to log them.
	Unknown []Migration
	// Views are the names of the views that this call created again, because they
	// were missing or older than the last migration that defines them.
	Views []string
}

const createMigrations = `CREATE TABLE IF NOT EXISTS schema_migrations
(
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY (version, checksum)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1`

// Migrate creates the database and migrates it to the schema of this build. Any
// number of processes may call it at once: one migrates, and the others wait for it
// until ctx ends. Every statement can be run twice, so an interrupted migration is
// run again from its beginning. It is an error if a migration was applied with
// another text.
//
// Migrate also creates views again that are older than the last migration that
// defines them. Builds that did not wait for each other could leave such views.
//
// On a cluster, where [MigrateCluster] creates the tables, Migrate only checks that
// they exist, are up to date, and are placed as the cluster is now. Errors that
// wrap [ErrLayout] are final. Call Migrate before inserts, which otherwise do not
// wait for replicas.
func (s *Schema) Migrate(ctx context.Context) (Migrated, error) {
	l, err := s.findLayout(ctx)
	if err != nil {
		return Migrated{}, err
	}
	switch {
	case l.cluster != "":
		return s.migratedCluster(ctx, l)
	case s.cfg.Cluster != "" && l.tables:
		return Migrated{}, fmt.Errorf("database %s has tables of its own, and none of cluster %s: %w", s.cfg.Database, s.cfg.Cluster, ErrLayout)
	case s.cfg.Cluster != "":
		return Migrated{}, fmt.Errorf("database %s is empty; run \"sluice migrate --cluster %s\"", s.cfg.Database, s.cfg.Cluster)
	}
	return s.migrateHere(ctx)
}

// CheckSchema is [Schema.Migrate], but changes nothing. The error wraps
// [event.ErrSchemaMissing] or [event.ErrSchemaOld] if there is something to
// migrate.
func (s *Schema) CheckSchema(ctx context.Context) (Migrated, error) {
	l, err := s.findLayout(ctx)
	if err != nil {
		return Migrated{}, err
	}
	if l.cluster != "" {
		return s.migratedCluster(ctx, l)
	}
	unknown, err := s.checkMigrations(ctx, l)
	return Migrated{Unknown: unknown}, err
}

// checkMigrations compares the applied migrations with those of this build. On a
// cluster it looks at the shard of this host.
func (s *Schema) checkMigrations(ctx context.Context, l layout) (unknown []Migration, err error) {
	database := s.cfg.Database
	if l.cluster != "" {
		database += shardSuffix
	}
	// On a connection of its own role: /readyz must not wait for maintenance.
	applied, err := s.appliedMigrationsOf(ctx, conn.RoleHealth, database)
	if err != nil {
		return nil, err
	}
	pending, unknown, err := pendingMigrations(applied)
	if err == nil && len(pending) > 0 {
		err = fmt.Errorf("%w: migration %s was not applied", event.ErrSchemaOld, pending[0].Name)
	}
	return unknown, err
}

// migrateHere is [Schema.Migrate] on a single machine.
func (s *Schema) migrateHere(ctx context.Context) (Migrated, error) {
	if err := s.beginMigrations(ctx); err != nil {
		return Migrated{}, err
	}
	state, err := s.schemaState(ctx)
	if err != nil || !state.outdated() {
		return Migrated{Unknown: state.unknown}, err
	}
	var done Migrated
	spread := false
	err = s.migrationLock(ctx, s.cfg.Database, func(ctx context.Context) error {
		// Another process may have changed the schema since, or "sluice migrate --cluster".
		l, err := s.findLayout(ctx)
		if spread = l.cluster != ""; err != nil || spread {
			return err
		}
		state, err := s.schemaState(ctx)
		if err != nil {
			return err
		}
		done.Unknown = state.unknown
		for _, m := range state.pending {
			if err := s.apply(ctx, m, m.statements); err != nil {
				return err
			}
			done.Applied = append(done.Applied, m)
		}
		done.Views, err = s.renewViews(ctx)
		return err
	})
	if err == nil && spread {
		return s.Migrate(ctx)
	}
	return done, err
}

// schemaState describes how the schema differs from that of this build.
type schemaState struct {
	// pending are the migrations of this build that were not applied. unknown are the
	// applied migrations that this build does not have.
	pending, unknown []Migration
	// views has the statements of the views that are missing or older than those of
	// this build, by name. It is empty if a newer build ran before, because its views
	// may be newer too.
	views map[string]string
}

func (s *schemaState) outdated() bool { return len(s.pending) > 0 || len(s.views) > 0 }

func (s *Schema) schemaState(ctx context.Context) (schemaState, error) {
	var state schemaState
	applied, err := s.appliedMigrations(ctx)
	if err != nil {
		return state, err
	}
	if state.pending, state.unknown, err = pendingMigrations(applied); err != nil || len(state.unknown) > 0 {
		return state, err
	}
	state.views, err = s.outdatedViews(ctx)
	return state, err
}

// beginMigrations creates the database and the table that records its migrations.
func (s *Schema) beginMigrations(ctx context.Context) error {
	if err := s.createDatabase(ctx); err != nil {
		return err
	}
	if err := s.db.Do(ctx, conn.RoleAdmin, ddlTimeout, ch.Query{Body: createMigrations}); err != nil {
		return fmt.Errorf("create schema_migrations: %w", err)
	}
	return nil
}

func (s *Schema) createDatabase(ctx context.Context) error {
	// The name is checked by Validate.
	if err := s.db.DoServer(ctx, ddlTimeout, ch.Query{Body: "CREATE DATABASE IF NOT EXISTS " + s.cfg.Database}); err != nil {
		return fmt.Errorf("create database %s: %w", s.cfg.Database, err)
	}
	return nil
}

// apply runs the statements of a migration and records the migration.
func (s *Schema) apply(ctx context.Context, m Migration, statements []string) error {
	for i, statement := range statements {
		if err := s.define(ctx, m.commented(statement)); err != nil {
			return fmt.Errorf("migration %s, statement %d: %w", m.Name, i+1, err)
		}
	}
	return s.recordMigration(ctx, m)
}

// codeCannotAssignAlter is the error of a replica that has not applied the last
// ALTER yet.
const codeCannotAssignAlter = 517

// define runs a DDL statement. On a replicated table it waits until the last ALTER
// is applied. All statements for one database have one query id, so that the
// server runs one at a time, and a statement of a process that died ends first. The
// loop is written out, because a library for the backoff would not make it shorter.
func (s *Schema) define(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, ddlTimeout)
	defer cancel()
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		err := s.db.Do(ctx, conn.RoleAdmin, ddlTimeout, ch.Query{Body: statement, QueryID: "sluice-ddl-" + s.cfg.Database})
		if !ch.IsErr(err, codeCannotAssignAlter, codeQueryIsRunning) {
			return err
		}
		pause := time.NewTimer(delay)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

func (s *Schema) appliedMigrations(ctx context.Context) ([]Migration, error) {
	return s.appliedMigrationsOf(ctx, conn.RoleAdmin, s.cfg.Database)
}

// appliedMigrationsOf returns the migrations that are recorded in a database, whose
// name Validate has checked.
func (s *Schema) appliedMigrationsOf(ctx context.Context, r conn.Role, database string) ([]Migration, error) {
	var (
		version        proto.ColUInt32
		name, checksum proto.ColStr
		applied        []Migration
	)
	err := s.db.Query(ctx, r, "migrations", s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT version, any(name) AS name, checksum FROM " + database + ".schema_migrations GROUP BY version, checksum ORDER BY version, checksum",
		Result: proto.Results{{Name: "version", Data: &version}, {Name: "name", Data: &name}, {Name: "checksum", Data: &checksum}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range version {
				applied = append(applied, Migration{Version: int(version[i]), Name: name.Row(i), Checksum: checksum.Row(i)})
			}
			return nil
		},
	})
	return applied, err
}

func (s *Schema) recordMigration(ctx context.Context, m Migration) error {
	err := s.db.Do(ctx, conn.RoleAdmin, s.cfg.InsertTimeout, ch.Query{
		Body: "INSERT INTO schema_migrations SELECT {version:UInt32}, {name:String}, {checksum:String}, now64(6)",
		Parameters: conn.Parameters{}.Int("version", int64(m.Version)).
			Text("name", m.Name).Text("checksum", m.Checksum),
		Settings: []ch.Setting{conn.Setting("async_insert", "0")},
	})
	if err != nil {
		return fmt.Errorf("record migration %s: %w", m.Name, err)
	}
	return nil
}
