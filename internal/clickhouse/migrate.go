package clickhouse

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
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

// Migrate creates the database and brings its schema up to this build's.
// ClickHouse has no locks, so every statement can be run twice, and any
// number of processes may migrate at once. A migration that was applied with
// another text is an error.
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

// migrateHere is [Store.Migrate] on one machine.
func (s *Store) migrateHere(ctx context.Context) (Migrated, error) {
	var done Migrated
	applied, err := s.beginMigrations(ctx)
	if err != nil {
		return done, err
	}
	pending, unknown, err := pendingMigrations(applied)
	if err != nil {
		return done, err
	}
	done.Unknown = unknown
	for _, m := range pending {
		if err := s.apply(ctx, m, m.statements); err != nil {
			return done, err
		}
		done.Applied = append(done.Applied, m)
	}
	return done, nil
}

// beginMigrations creates the database and what records its migrations, and
// returns those that were applied to it.
func (s *Store) beginMigrations(ctx context.Context) ([]Migration, error) {
	if err := s.createDatabase(ctx); err != nil {
		return nil, err
	}
	if err := s.pool.do(ctx, ddlTimeout, ch.Query{Body: createMigrations}); err != nil {
		return nil, fmt.Errorf("create schema_migrations: %w", err)
	}
	return s.appliedMigrations(ctx)
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
		if err := s.define(ctx, statement); err != nil {
			return fmt.Errorf("migration %s, statement %d: %w", m.Name, i+1, err)
		}
	}
	return s.recordMigration(ctx, m)
}

// codeCannotAssignAlter is of a replica that has not applied the last ALTER yet.
const codeCannotAssignAlter = 517

// define runs a statement of DDL, on a replicated table once it may.
func (s *Store) define(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, ddlTimeout)
	defer cancel()
	for {
		err := s.pool.do(ctx, ddlTimeout, ch.Query{Body: statement})
		if !ch.IsErr(err, codeCannotAssignAlter) {
			return err
		}
		pause := time.NewTimer(100 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

func (s *Store) appliedMigrations(ctx context.Context) ([]Migration, error) {
	var (
		version        proto.ColUInt32
		name, checksum proto.ColStr
		applied        []Migration
	)
	err := s.query(ctx, "migrations", s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT version, any(name) AS name, checksum FROM schema_migrations GROUP BY version, checksum ORDER BY version, checksum",
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
	err := s.pool.do(ctx, s.cfg.InsertTimeout, ch.Query{
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
