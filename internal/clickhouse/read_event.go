package clickhouse

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// readGrace is how much longer a reader waits for the server than its query may take
// there. So a query that takes too long ends with the server's error, and a timeout
// here means that the server does not answer.
const readGrace = 5 * time.Second

// readTimeout returns how long a reader waits for the answer to a query.
func (s *Store) readTimeout() time.Duration { return s.cfg.QueryTimeout + readGrace }

// readSettings returns the settings that make a query of a reader correct and bounded.
func (s *Store) readSettings() []ch.Setting {
	seconds := strconv.FormatFloat(s.cfg.QueryTimeout.Seconds(), 'f', 3, 64)
	return []ch.Setting{
		// Versions of one event share a partition: both follow from the id.
		conn.Setting("do_not_merge_across_partitions_select_final", "1"),
		// The skip indexes are on columns of the sort key, which all versions of a row
		// share, so they may skip granules before FINAL without another check.
		conn.Setting("use_skip_indexes_if_final", "1"),
		conn.Setting("use_skip_indexes_if_final_exact_mode", "0"),
		// The conditions on the day use the primary key. A granule has times of nearly all of
		// its day, so to look at the times of each would save no rows, and costs more than
		// to read them. The index is for queries that name no day.
		conn.Setting("ignore_data_skipping_indices", "timestamp_minmax"),
		conn.Setting("max_execution_time", seconds),
		conn.Setting("timeout_overflow_mode", "throw"),
		conn.Setting("max_memory_usage", strconv.FormatInt(s.cfg.QueryMemoryBytesMax, 10)),
		conn.Setting("use_query_cache", "0"),
	}
}

// Event returns the event, or nil if it does not exist or is deleted. An event with an
// alias is found only by its alias, not by its internal id. The error of an event
// that takes more than bytesMax bytes of memory is a [*event.LargeError]; a bytesMax
// of 0 means [Config.PageBytesMax]. Concurrent calls share queries: see [gather].
func (s *Store) Event(ctx context.Context, ref event.Ref, bytesMax int) (*event.Event, error) {
	bytesMax = cmp.Or(bytesMax, s.cfg.PageBytesMax)
	gathered := bytesMax <= gatherBytesMax
	if gathered {
		e, err := s.gather.wait(ctx, ref, bytesMax, s.readBatch)
		if !errors.Is(err, errAlone) {
			return e, err
		}
	}
	id := ref.ID
	if ref.Alias != "" {
		rows, err := s.aliases(ctx, conn.RoleRead, []string{ref.Alias})
		if err != nil {
			return nil, err
		}
		row, ok := rows[ref.Alias]
		if !ok || row.Deleted || row.Refused {
			return nil, nil
		}
		id = row.ID
	}
	r := &room{left: bytesMax}
	for try := range measuresMax {
		if try > 0 || !gathered {
			e, err := s.event(ctx, id, ref.Alias, r)
			if !isTooLarge(err) {
				return e, err
			}
		}
		size, err := s.eventSize(ctx, id)
		if err != nil {
			return nil, err
		}
		if size > bytesMax {
			return nil, &event.LargeError{Bytes: size}
		}
		r = &room{left: bytesMax, newest: true}
	}
	return nil, &event.LargeError{Bytes: 2 * bytesMax} // it grows faster than it can be measured
}

func (s *Store) event(ctx context.Context, id event.ID, alias string, r *room) (*event.Event, error) {
	cores, err := s.cores(ctx, conn.RoleRead, []event.ID{id}, r)
	if err != nil {
		return nil, err
	}
	core, ok := cores[id]
	if !ok || core.Deleted || core.Alias != alias {
		return nil, nil
	}
	// The core row is read first. If the event is deleted after that, its contents
	// are tombstones, because a delete writes the other tables before the core row.
	events, err := s.assemble(ctx, []event.Core{core}, true, r)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	return &events[0], nil
}

// eventSize returns the memory that the event takes.
func (s *Store) eventSize(ctx context.Context, id event.ID) (int, error) {
	events, err := s.sizes(ctx, []event.ID{id}, true)
	if err != nil {
		return 0, err
	}
	return events[0].bytes, nil
}
