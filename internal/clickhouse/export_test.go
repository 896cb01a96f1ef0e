package clickhouse

import (
	"context"
	"errors"
	"net"

	"github.com/sluicehq/sluice/internal/event"
)

// MigrationLock is what [Store.Migrate] and [MigrateCluster] do their work under.
func (s *Store) MigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	return s.migrationLock(ctx, name, do)
}

// Statements are those of the migration, without the comments that views get.
func (m *Migration) Statements() []string { return m.statements }

// NewConn is what the client of a pool reads from and writes to.
func NewConn(c net.Conn) net.Conn { return &abortableConn{Conn: c} }

// ReadTogether reads events in one batch, as readers that come at the same time
// do. Of an event that is not to be read in a batch, alone is true.
func (s *Store) ReadTogether(ctx context.Context, refs []event.Ref, bytesMax int) (found []*event.Event, alone []bool, err error) {
	batch := make([]*wanted, len(refs))
	for i, ref := range refs {
		batch[i] = &wanted{ref: ref, bytesMax: bytesMax}
	}
	s.readBatch(ctx, batch)
	for _, w := range batch {
		found, alone = append(found, w.found), append(alone, errors.Is(w.err, errAlone))
		if w.err != nil && !errors.Is(w.err, errAlone) {
			err = w.err
		}
	}
	return found, alone, err
}
