package clickhouse

import (
	"context"
	"net"
)

// MigrationLock is what [Store.Migrate] and [MigrateCluster] do their work under.
func (s *Store) MigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	return s.migrationLock(ctx, name, do)
}

// Statements are those of the migration, without the comments that views get.
func (m *Migration) Statements() []string { return m.statements }

// NewConn is what the client of a pool reads from and writes to.
func NewConn(c net.Conn) net.Conn { return &abortableConn{Conn: c} }
