package schema

import "context"

// MigrationLock runs do under the lock of [Schema.Migrate] and [MigrateCluster].
func (s *Schema) MigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	return s.migrationLock(ctx, name, do)
}

// Statements returns the statements of the migration, without the comments that
// views get.
func (m *Migration) Statements() []string { return m.statements }
