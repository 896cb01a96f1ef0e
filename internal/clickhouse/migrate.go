package clickhouse

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// ddlTimeout bounds one statement of a migration.
const ddlTimeout = time.Minute

// Migration is one step of the schema.
type Migration struct {
	Version int
	Name    string
	// Checksum is the SHA-256 of its text, in hexadecimal.
	Checksum string

	statements []string
}

// Migrated is what [Store.Migrate] found and did.
type Migrated struct {
	// Applied are the migrations that this call ran.
	Applied []Migration
	// Unknown are applied migrations that this build does not have: a newer
	// build has been here. Schemas of builds N and N+1 run together, so the
	// caller need only log them.
	Unknown []Migration
	// Views are the names of the views that this call made again, because they
	// were missing or not those of the last migration that defines them.
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

// Migrations are those of this build, in order.
func Migrations() ([]Migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	migrations := make([]Migration, 0, len(names))
	for i, path := range names {
		text, err := migrationFiles.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read migration %s: %w", path, err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(path, "migrations/"), ".sql")
		number, _, _ := strings.Cut(name, "_")
		if version, err := strconv.Atoi(number); err != nil || version != i+1 {
			return nil, fmt.Errorf("BUG: migration %s is not number %d", path, i+1)
		}
		sum := sha256.Sum256(text)
		migrations = append(migrations, Migration{
			Version:    i + 1,
			Name:       name,
			Checksum:   hex.EncodeToString(sum[:]),
			statements: statements(string(text)),
		})
	}
	return migrations, nil
}

// statements splits a file where a line ends in a semicolon, outside of comments.
func statements(text string) []string {
	var (
		all     []string
		current strings.Builder
	)
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); trimmed == "" || strings.HasPrefix(trimmed, "--") {
			continue
		}
		if body, ended := strings.CutSuffix(strings.TrimRight(line, " \n"), ";"); ended {
			current.WriteString(body)
			all = append(all, current.String())
			current.Reset()
			continue
		}
		current.WriteString(line)
	}
	if current.Len() > 0 {
		all = append(all, current.String())
	}
	return all
}

// Migrate creates the database and brings its schema up to this build's. Any
// number of processes may migrate at once: one does, and the others wait for it
// until ctx ends. Every statement can be run twice, so that a migration that was
// broken off is run again from its beginning. A migration that was applied with
// another text is an error.
//
// Views that are not those of the last migration that defines them are made
// again. Builds that did not wait for each other could leave older ones.
//
// Where the tables are spread over a cluster, which [MigrateCluster] does, it
// only checks that they are there, up to date, and placed as the cluster is
// now. Errors that wrap [ErrLayout] are final. Call it before [Store.Insert],
// which otherwise does not know of replicas.
func (s *Store) Migrate(ctx context.Context) (Migrated, error) {
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

// CheckSchema is [Store.Migrate] without changing anything: its error wraps
// [event.ErrSchemaMissing] or [event.ErrSchemaOld] where there is something to
// migrate.
func (s *Store) CheckSchema(ctx context.Context) (Migrated, error) {
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

// checkMigrations compares the migrations that were applied, on a cluster those
// of this host's shard, with this build's.
func (s *Store) checkMigrations(ctx context.Context, l layout) (unknown []Migration, err error) {
	database := s.cfg.Database
	if l.cluster != "" {
		database += shardSuffix
	}
	// The connection of /readyz, which must not wait for maintenance.
	applied, err := s.appliedMigrationsOf(ctx, roleHealth, database)
	if err != nil {
		return nil, err
	}
	pending, unknown, err := pendingMigrations(applied)
	if err == nil && len(pending) > 0 {
		err = fmt.Errorf("%w: migration %s was not applied", event.ErrSchemaOld, pending[0].Name)
	}
	return unknown, err
}

// migrateHere is [Store.Migrate] on one machine.
func (s *Store) migrateHere(ctx context.Context) (Migrated, error) {
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
		// Other processes may have changed it since, those of "sluice migrate --cluster" too.
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

// schemaState is how the schema differs from this build's.
type schemaState struct {
	// pending are migrations of this build that were not applied, unknown applied
	// ones that this build does not have.
	pending, unknown []Migration
	// views are the statements of the views that are missing or older than this
	// build's, by name. It is empty where a newer build has been here, whose views
	// may be newer too.
	views map[string]string
}

func (s *schemaState) outdated() bool { return len(s.pending) > 0 || len(s.views) > 0 }

func (s *Store) schemaState(ctx context.Context) (schemaState, error) {
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

// renewViews makes the views that are not this build's, and returns their names.
func (s *Store) renewViews(ctx context.Context) ([]string, error) {
	state, err := s.schemaState(ctx)
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(state.views))
	for _, name := range names {
		if err := s.define(ctx, state.views[name]); err != nil {
			return nil, fmt.Errorf("view %s: %w", name, err)
		}
	}
	return names, nil
}

// viewPattern finds the name of the view that a statement of a migration makes.
var viewPattern = regexp.MustCompile(`^CREATE OR REPLACE VIEW (\w+)`)

// viewComment is what the comment of a view that a migration makes says. It
// tells views apart that several migrations define.
func viewComment(m Migration) string { return "sluice migration " + m.Name }

// commented gives the view of a statement its comment. Other statements stay.
func (m *Migration) commented(statement string) string {
	if !viewPattern.MatchString(statement) {
		return statement
	}
	return statement + "\nCOMMENT '" + viewComment(*m) + "'"
}

// outdatedViews are the statements of the views that are missing, or were made
// by another migration than the last one that defines them.
func (s *Store) outdatedViews(ctx context.Context) (map[string]string, error) {
	migrations, err := Migrations()
	if err != nil {
		return nil, err
	}
	statements, comments := make(map[string]string), make(map[string]string)
	for _, m := range migrations {
		for _, statement := range m.statements {
			if view := viewPattern.FindStringSubmatch(statement); view != nil {
				statements[view[1]], comments[view[1]] = m.commented(statement), viewComment(m)
			}
		}
	}
	var name, comment proto.ColStr
	err = s.query(ctx, roleAdmin, "views", s.cfg.QueryTimeout, ch.Query{
		Body:       "SELECT name, comment FROM system.tables WHERE database = {database:String} AND engine = 'View'",
		Parameters: parameters{}.text("database", s.cfg.Database),
		Result:     proto.Results{{Name: "name", Data: &name}, {Name: "comment", Data: &comment}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range name.Rows() {
				if comments[name.Row(i)] == comment.Row(i) {
					delete(statements, name.Row(i))
				}
			}
			return nil
		},
	})
	return statements, err
}

// errMigrationLock says that the lock was lost before the migrations were done.
// They go on when they are tried again.
var errMigrationLock = errors.New("the lock that keeps other processes from migrating was lost")

// migrationLock runs do while no other process that asks the same server for
// the same name does. It waits for its turn until ctx ends.
//
// ClickHouse has no locks, but it refuses a query whose id is that of a query
// that is running. So the lock is an insert without rows that is begun before do
// and ended after it. It ends with its connection, so that a process that dies
// leaves nothing behind. One that hangs loses the lock after
// migrationLockTimeout; do's context ends then.
func (s *Store) migrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	for waited := false; ; waited = true {
		err := s.tryMigrationLock(ctx, name, do)
		if !ch.IsErr(err, codeQueryIsRunning) {
			return err
		}
		if !waited {
			s.log.Info("another process migrates the database, waiting for it", "database", name)
		}
		pause := time.NewTimer(100 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("wait for another process that migrates database %s: %w", name, ctx.Err())
		}
	}
}

const (
	// codeQueryIsRunning refuses a query with the id of one that is running.
	codeQueryIsRunning = 216
	// migrationLockTimeout is how long the server waits for a process that holds
	// the lock and says nothing; it takes up to twice as long to notice.
	migrationLockTimeout = 10 * time.Minute
)

func (s *Store) tryMigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	// The lock has a connection of its own: those of the pool are few.
	connection := newPool(s.cfg, 1, s.cfg.Database, s.admin.tls, s.dials.Inc)
	defer connection.close()
	locked, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		held  = &acceptedColumn{accepted: make(chan struct{})}
		done  = make(chan struct{})
		ended = make(chan error, 1)
	)
	go func() {
		ended <- connection.do(locked, 2*migrationLockTimeout, ch.Query{
			QueryID: "sluice-migrate-" + name,
			Body:    "INSERT INTO schema_migrations (version) VALUES",
			Input:   proto.Input{{Name: "version", Data: held}},
			OnInput: func(ctx context.Context) error {
				select {
				case <-done:
					return io.EOF
				case <-ctx.Done():
					return ctx.Err()
				}
			},
			Settings: []ch.Setting{
				setting("async_insert", "0"),
				setting("receive_timeout", strconv.Itoa(int(migrationLockTimeout/time.Second))),
			},
		})
		cancel()
	}()
	select {
	case <-held.accepted:
	case err := <-ended:
		return fmt.Errorf("lock database %s for migrations: %w", name, err)
	}
	err := do(locked)
	close(done)
	// Where the lock was lost after the work was done, nothing is amiss.
	if lost := <-ended; lost != nil && err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w (%w): %w", errMigrationLock, withoutValues(lost), err)
	}
	return err
}

// acceptedColumn is the column of an insert that says when the server has begun
// it: the client then infers the column's type from what the server tells of the
// table. OnInput does not say so, as the client may call it for an insert that
// the server has refused.
type acceptedColumn struct {
	proto.ColUInt32
	accepted chan struct{}
}

// Infer is called by the client once.
func (c *acceptedColumn) Infer(proto.ColumnType) error {
	close(c.accepted)
	return nil
}

// beginMigrations creates the database and what records its migrations.
func (s *Store) beginMigrations(ctx context.Context) error {
	if err := s.createDatabase(ctx); err != nil {
		return err
	}
	if err := s.pools[roleAdmin].do(ctx, ddlTimeout, ch.Query{Body: createMigrations}); err != nil {
		return fmt.Errorf("create schema_migrations: %w", err)
	}
	return nil
}

func (s *Store) createDatabase(ctx context.Context) error {
	// The name is checked by Validate.
	if err := s.admin.do(ctx, ddlTimeout, ch.Query{Body: "CREATE DATABASE IF NOT EXISTS " + s.cfg.Database}); err != nil {
		return fmt.Errorf("create database %s: %w", s.cfg.Database, err)
	}
	return nil
}

// pendingMigrations are those of this build that were not applied, and unknown the applied
// ones that this build does not have.
func pendingMigrations(applied []Migration) (pending, unknown []Migration, err error) {
	migrations, err := Migrations()
	if err != nil {
		return nil, nil, err
	}
	has := make(map[int]bool, len(applied))
	for _, a := range applied {
		if a.Version < 1 || a.Version > len(migrations) {
			unknown = append(unknown, a)
			continue
		}
		if want := migrations[a.Version-1]; a.Checksum != want.Checksum {
			return nil, nil, fmt.Errorf("migration %s was applied as %s with checksum %.12s, and this build has %.12s: its text was changed after it was released", want.Name, a.Name, a.Checksum, want.Checksum)
		}
		has[a.Version] = true
	}
	for _, m := range migrations {
		if !has[m.Version] {
			pending = append(pending, m)
		}
	}
	return pending, unknown, nil
}

// apply runs the statements of a migration, and records it.
func (s *Store) apply(ctx context.Context, m Migration, statements []string) error {
	for i, statement := range statements {
		if err := s.define(ctx, m.commented(statement)); err != nil {
			return fmt.Errorf("migration %s, statement %d: %w", m.Name, i+1, err)
		}
	}
	return s.recordMigration(ctx, m)
}

// codeCannotAssignAlter is of a replica that has not applied the last ALTER yet.
const codeCannotAssignAlter = 517

// define runs a statement of DDL, on a replicated table once it may. All
// statements for one database have one query id, so that the server runs one at
// a time, also the last one of a process that died in the middle of it.
func (s *Store) define(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, ddlTimeout)
	defer cancel()
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		err := s.pools[roleAdmin].do(ctx, ddlTimeout, ch.Query{Body: statement, QueryID: "sluice-ddl-" + s.cfg.Database})
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

func (s *Store) appliedMigrations(ctx context.Context) ([]Migration, error) {
	return s.appliedMigrationsOf(ctx, roleAdmin, s.cfg.Database)
}

// appliedMigrationsOf are those that a database, whose name Validate has
// checked, says were applied to it.
func (s *Store) appliedMigrationsOf(ctx context.Context, r role, database string) ([]Migration, error) {
	var (
		version        proto.ColUInt32
		name, checksum proto.ColStr
		applied        []Migration
	)
	err := s.query(ctx, r, "migrations", s.cfg.QueryTimeout, ch.Query{
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

func (s *Store) recordMigration(ctx context.Context, m Migration) error {
	err := s.pools[roleAdmin].do(ctx, s.cfg.InsertTimeout, ch.Query{
		Body: "INSERT INTO schema_migrations SELECT {version:UInt32}, {name:String}, {checksum:String}, now64(6)",
		Parameters: parameters{}.int("version", int64(m.Version)).
			text("name", m.Name).text("checksum", m.Checksum),
		Settings: []ch.Setting{setting("async_insert", "0")},
	})
	if err != nil {
		return fmt.Errorf("record migration %s: %w", m.Name, err)
	}
	return nil
}
