package schema

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// errMigrationLock says that the lock was lost before the migrations were done. They
// continue when Migrate is called again.
var errMigrationLock = errors.New("the lock that keeps other processes from migrating was lost")

// migrationLock runs do under the lock of the name: no other process that uses the
// same server runs under the same lock meanwhile. It waits for the lock until ctx
// ends.
//
// ClickHouse has no locks, but it refuses a query whose id is that of a running
// query. So the lock is an insert without rows that begins before do and ends after
// it. The insert ends with its connection, so a process that dies leaves nothing
// behind. A process that hangs loses the lock after migrationLockTimeout, and the
// context of do ends.
func (s *Schema) migrationLock(ctx context.Context, name string, do func(context.Context) error) error {
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
	// codeQueryIsRunning is the error for a query with the id of a running query.
	codeQueryIsRunning = 216
	// migrationLockTimeout is how long the server waits for a process that holds the
	// lock and sends nothing. It takes up to twice as long to notice.
	migrationLockTimeout = 10 * time.Minute
)

func (s *Schema) tryMigrationLock(ctx context.Context, name string, do func(context.Context) error) error {
	// The lock has a connection of its own, because the pool has few.
	connection := s.db.Dedicated()
	defer connection.Close()
	locked, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		held  = &acceptedColumn{accepted: make(chan struct{})}
		done  = make(chan struct{})
		ended = make(chan error, 1)
	)
	go func() {
		ended <- connection.Do(locked, 2*migrationLockTimeout, ch.Query{
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
				conn.Setting("async_insert", "0"),
				conn.Setting("receive_timeout", strconv.Itoa(int(migrationLockTimeout/time.Second))),
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
	// It does no harm if the lock was lost after the work was done.
	if lost := <-ended; lost != nil && err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w (%w): %w", errMigrationLock, conn.WithoutValues(lost), err)
	}
	return err
}

// acceptedColumn is the column of an insert that reports when the server has begun
// the insert: the client then infers the type of the column from the server's
// description of the table. OnInput does not report that, because the client may
// call it for an insert that the server has refused.
type acceptedColumn struct {
	proto.ColUInt32
	accepted chan struct{}
}

// Infer is called by the client once.
func (c *acceptedColumn) Infer(proto.ColumnType) error {
	close(c.accepted)
	return nil
}
