package schema

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migration is one step of the schema.
type Migration struct {
	Version int
	Name    string
	// Checksum is the SHA-256 of the migration's text, in hexadecimal.
	Checksum string

	statements []string
}

// Migrations returns the migrations of this build, in order.
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

// statements splits the text of a migration at each line that ends in a semicolon,
// outside of comments.
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

// pendingMigrations returns the migrations of this build that were not applied, and
// the applied migrations that this build does not have.
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
