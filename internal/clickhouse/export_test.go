package clickhouse

import "context"

// MigrationLock is what [Store.Migrate] and [MigrateCluster] do their work under.
func (s *Store) MigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	return s.migrationLock(ctx, name, do)
}

// Statements are those of the migration, without the comments that views get.
func (m *Migration) Statements() []string { return m.statements }
