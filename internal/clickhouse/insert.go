package clickhouse

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
)

// block is one insert: rows of one partition of one table.
type block struct {
	table string
	rows  int
	input func(e *encoder) proto.Input
	done  func(e *encoder)
}

// Insert writes the rows: aliases, contents and embeddings first, then core rows, so
// that no reader sees an event without its contents. The server receives the core
// rows while it writes the rest, and the end of their insert when the rest is
// durable. Each insert is one block of one partition; on a cluster, each shard gets
// its rows of the block.
//
// Insert returns when everything is durable on the server, on a cluster on all
// replicas of each shard. After an error, any part of the rows may be there;
// inserting them again is harmless. The error wraps [event.ErrRejected] if a row was
// refused because of its data.
//
// The rows must not change until Insert returns. Rows of one key should be folded into
// one before, because a block keeps all of them until a merge.
func (s *Store) Insert(ctx context.Context, rows *event.Rows) error {
	aliases := cut(s, rows.Aliases, nil,
		func(r *event.AliasRow) int { return len(r.Alias) + 32 },
		func(order []uint64) block {
			return block{schema.TableAliases, len(order), func(e *encoder) proto.Input { return bind(e, e.aliases, rows.Aliases, order) }, func(e *encoder) { release(e.aliases) }}
		})
	contents := cut(s, rows.Contents,
		func(r *event.ContentRow) (*event.ID, event.Field) { return &r.ID, r.Field },
		func(r *event.ContentRow) int { return len(r.Content.Data) + 48 },
		func(order []uint64) block {
			return block{schema.TableContents, len(order), func(e *encoder) proto.Input { return bind(e, e.contents, rows.Contents, order) }, func(e *encoder) { release(e.contents) }}
		})
	embeddings := cut(s, rows.Embeddings,
		func(r *event.EmbeddingRow) (*event.ID, event.Field) { return &r.ID, r.Field },
		func(r *event.EmbeddingRow) int { return len(r.Vector) + 48 },
		func(order []uint64) block {
			return block{schema.TableEmbeddings, len(order), func(e *encoder) proto.Input { return bind(e, e.embeddings, rows.Embeddings, order) }, func(e *encoder) { release(e.embeddings) }}
		})
	fault.Point(fault.InsertBegun)
	others := slices.Concat(aliases, contents, embeddings)
	g, ctx := errgroup.WithContext(ctx)
	written := make(chan struct{})
	g.Go(func() error {
		if err := s.insertBlocks(ctx, others); err != nil {
			return err
		}
		fault.Point(fault.InsertOthers)
		close(written)
		return nil
	})
	g.Go(func() error { return s.insertCores(ctx, rows.Cores, len(others), written) })
	return g.Wait()
}

// insertCores inserts the core rows. They become visible only after the other rows are
// written.
func (s *Store) insertCores(ctx context.Context, rows []event.Core, others int, written <-chan struct{}) error {
	blocks := cut(s, rows,
		func(r *event.Core) (*event.ID, event.Field) { return &r.ID, 0 },
		func(r *event.Core) int {
			return len(r.ConversationID) + len(r.Error) + len(r.Metadata) + len(r.Alias) + 80
		},
		func(order []uint64) block {
			return block{schema.TableEvents, len(order), func(e *encoder) proto.Input { return e.coreInput(rows, order) }, func(e *encoder) { e.releaseCores() }}
		})
	// An insert that is sent ahead holds a connection and memory of the server. So
	// there is at most one, and only if it does not wait long. Replicated tables may
	// show a block before the insert ends, so there it is not sent ahead.
	if len(blocks) == 1 && others <= s.cfg.InsertConcurrency && s.cfg.WriteConnectionsMax > 1 && !s.Replicated() {
		select {
		case e := <-s.ahead:
			defer func() { s.ahead <- e }()
			return s.insert(ctx, e, 2*s.cfg.InsertTimeout, &blocks[0], written)
		default:
		}
	}
	select {
	case <-written:
		return s.insertBlocks(ctx, blocks)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) insertBlocks(ctx context.Context, blocks []block) error {
	if len(blocks) == 0 {
		return nil
	}
	if len(blocks) == 1 {
		return s.insertBlock(ctx, blocks[0])
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.InsertConcurrency)
	for _, b := range blocks {
		g.Go(func() error { return s.insertBlock(ctx, b) })
	}
	return g.Wait()
}

func (s *Store) insertBlock(ctx context.Context, b block) error {
	select {
	case e := <-s.encoders:
		defer func() { s.encoders <- e }()
		return s.insert(ctx, e, s.cfg.InsertTimeout, &b, nil)
	case <-ctx.Done():
		return fmt.Errorf("insert %d rows into %s: %w", b.rows, b.table, ctx.Err())
	}
}

// insert sends a block and ends the insert. If after is not nil, it ends the insert only
// once after is closed. No row is visible before the end.
func (s *Store) insert(ctx context.Context, e *encoder, timeout time.Duration, b *block, after <-chan struct{}) error {
	defer b.done(e)
	start := time.Now()
	input := b.input(e)
	q := ch.Query{
		Body:     "INSERT INTO " + b.table + " " + input.Columns() + " VALUES",
		Input:    input,
		Settings: s.InsertSettings(),
	}
	if after != nil {
		q.OnInput = func(ctx context.Context) error { // called when the block is sent
			b.done(e) // there is no second block
			select {
			case <-after:
				start = time.Now() // the wait is not part of the insert's time
				return io.EOF
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if err := s.db.Do(ctx, conn.RoleWrite, timeout, q); err != nil {
		return fmt.Errorf("insert %d rows into %s: %w", b.rows, b.table, conn.InsertError(err))
	}
	s.insertSeconds.WithLabelValues(b.table).Observe(time.Since(start).Seconds())
	s.insertedRows.WithLabelValues(b.table).Add(float64(b.rows))
	return nil
}
