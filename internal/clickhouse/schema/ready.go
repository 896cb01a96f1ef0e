package schema

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Ready returns nil if the server answers and has the tables of this build, on a
// cluster those of every shard. The error wraps [event.ErrSchemaMissing] if there
// are no tables, and [event.ErrSchemaOld] if they lack a migration. Ready only
// reads. Concurrent calls share one check, so that many callers cost the server no
// more than one, and none waits for another.
func (s *Schema) Ready(ctx context.Context) error {
	checked := s.ready.DoChan("", func() (any, error) {
		// The check continues for the others if this caller leaves.
		return nil, s.check(context.WithoutCancel(ctx))
	})
	select {
	case result := <-checked:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Schema) check(ctx context.Context) error {
	err := s.db.Query(ctx, conn.RoleHealth, "ready", s.cfg.DialTimeout, ch.Query{
		// No event is that old, so the metadata of the partitions suffices to answer.
		// With a LIMIT of 0 no shard would be asked.
		Body:   "SELECT id FROM events WHERE timestamp < toDateTime64('1971-01-01 00:00:00', 6, 'UTC') LIMIT 1",
		Result: proto.Results{{Name: "id", Data: new(proto.ColUUID)}},
	})
	if err != nil {
		s.checked.Store(false) // the tables may be others when they come back
		return err
	}
	if s.checked.Load() {
		return nil
	}
	l, err := s.findLayout(ctx)
	if err != nil {
		return err
	}
	if _, err := s.checkMigrations(ctx, l); err != nil {
		return err
	}
	s.checked.Store(true)
	return nil
}
