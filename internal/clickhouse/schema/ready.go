package schema

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Ready returns nil when the server answers and has the tables of this build, on
// a cluster those of every shard. The error wraps [event.ErrSchemaMissing] where
// the server has no tables, and [event.ErrSchemaOld] where they lack a migration.
// It reads only. Calls at the same time share one check, so that many callers
// cost the server no more than one, and none waits for others.
func (s *Schema) Ready(ctx context.Context) error {
	checked := s.ready.DoChan("", func() (any, error) {
		// The check goes on for the others when this caller leaves.
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
		// Nothing is as old, which the partitions' own metadata says; but with a
		// LIMIT of 0 no shard would be asked.
		Body:   "SELECT id FROM events WHERE timestamp < toDateTime64('1971-01-01 00:00:00', 6, 'UTC') LIMIT 1",
		Result: proto.Results{{Name: "id", Data: new(proto.ColUUID)}},
	})
	if err != nil {
		s.checked.Store(false) // the tables may come back as others
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
