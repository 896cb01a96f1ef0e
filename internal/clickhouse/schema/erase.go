package schema

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// A delete writes tombstones. The content under a tombstone leaves the disk when a
// merge takes in both rows. ClickHouse's own merges do that in a bounded time only
// for months that are small and get no more writes: merges by age stop at 150 GiB,
// and never begin while a small part is always young. So Sluice asks for the merge
// of a whole month. That rewrites the month, so Sluice asks only if a tombstone
// covers something: see erase_search.go.

// mergeTimeout bounds the merge of one month: 30 TB at 120 MB/s take 3 days.
const mergeTimeout = 7 * day

// mergeSettings are the settings of the merge of a whole month.
var mergeSettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	// Otherwise a merge that could not begin would look like one that was made.
	conn.Setting("optimize_throw_if_noop", "1"),
	// The merge can begin once no other merge of the month is running.
	conn.Setting("lock_acquire_timeout", "600"),
	conn.Setting("max_execution_time", "0"),
}

// Unerased is a month of a table, on one shard, that still has a deleted row under
// its tombstone.
type Unerased struct {
	Table, Partition string
	// Host is host:port of the replica of the shard that was asked. It is empty on a
	// single machine.
	Host string
	// Parts is the number of active parts.
	Parts int
	// Waited is how long, at most, the deleted row has waited for a merge.
	Waited time.Duration
}

// Erasures finds the months that have deleted content on the disk, and merges them.
// It remembers which parts it has searched, so that a search reads little of what
// an earlier search has read. It may be used by one goroutine at a time.
type Erasures struct {
	schema *Schema
	after  time.Duration
	months map[monthKey]*searchState
}

// monthKey names a month of a table on a host. The host is empty on a single machine.
type monthKey struct{ host, table, partition string }

// Erasures returns an [Erasures] that has searched nothing yet. Deleted content is due
// to be merged once it has waited for the duration after. Every month that changes
// is searched from the beginning once in that time; with 0, by each call.
func (s *Schema) Erasures(after time.Duration) *Erasures {
	return &Erasures{schema: s, after: after, months: make(map[monthKey]*searchState)}
}

// Unerased finds the months in which deleted content is still on the disk, and
// returns those first that have waited longest. The first call that finds a month
// records in the database since when it waits. On a cluster Unerased asks one
// replica of each shard. It returns the months that it found also with an error.
//
// The next call finds a new tombstone over content. New content under an older
// tombstone, which a replay of the log or a create of a deleted id can cause, is
// found only by a search from the beginning. It counts as waiting since the last
// such search, so it waits no longer than other content.
func (e *Erasures) Unerased(ctx context.Context) ([]Unerased, error) {
	var all []Unerased
	err := e.schema.eachShard(ctx, func(shard *Schema, host string) error {
		found, err := e.unerasedHost(ctx, shard, host)
		all = append(all, found...)
		return err
	})
	slices.SortStableFunc(all, func(a, b Unerased) int { return cmp.Compare(b.Waited, a.Waited) })
	return all, err
}

// unerasedHost is [Erasures.Unerased] for the tables of one host, in no order.
func (e *Erasures) unerasedHost(ctx context.Context, here *Schema, host string) ([]Unerased, error) {
	months, now, err := here.listMonths(ctx)
	if err != nil {
		return nil, err
	}
	// The states of months that are gone are dropped.
	states := make(map[monthKey]*searchState, len(months))
	for _, m := range months {
		key := monthKey{host, m.table, m.partition}
		if states[key] = e.months[key]; states[key] == nil {
			states[key] = &searchState{}
		}
	}
	maps.DeleteFunc(e.months, func(key monthKey, _ *searchState) bool { return key.host == host })
	maps.Copy(e.months, states)
	var (
		found  []Unerased
		record []waiting
		failed []error
	)
	for len(months) > 0 {
		n := 1
		for n < len(months) && months[n].table == months[0].table {
			n++
		}
		searches := make([]*search, n)
		for i, m := range months[:n] {
			searches[i] = &search{tableMonth: m, state: states[monthKey{host, m.table, m.partition}]}
		}
		if err := here.searchTable(ctx, searches, now, e.after); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", months[0].table, err))
		}
		months = months[n:]
		for _, m := range searches {
			since := m.waitingSince(now, e.after)
			if since != m.since || m.whole && since == 0 {
				record = append(record, waiting{m.table, m.partition, since})
			}
			if since != 0 {
				found = append(found, Unerased{
					Table: m.table, Partition: m.partition, Host: host, Parts: len(m.parts),
					Waited: time.Duration(now-since) * time.Microsecond,
				})
			}
		}
	}
	if err := here.recordWaiting(ctx, record...); err != nil {
		failed = append(failed, err)
	}
	return found, errors.Join(failed...)
}

// waitingSince returns since when, at the earliest, the month's deleted content has
// waited, in microseconds of the server's Unix time; 0 if there is none.
func (m *search) waitingSince(now int64, after time.Duration) int64 {
	switch {
	case !m.ended:
		return m.since // holds until a search shows something else
	case m.state.covered == nil:
		return 0
	case m.since != 0:
		return m.since
	case m.whole && m.clean != 0:
		// The content may have come right after the last search from the beginning.
		return min(now, max(m.clean, now-after.Microseconds()))
	}
	return now
}

// Erase merges all parts of a month of a table, so that no part has content that was
// deleted before. That writes the month once, and needs as much free disk as the
// month takes. The old parts leave the disk some minutes later, after ClickHouse's
// old_parts_lifetime. Two processes may erase at once, which is harmless but twice
// the work.
func (e *Erasures) Erase(ctx context.Context, u Unerased) error {
	here := e.schema
	if u.Host != "" {
		shard, err := e.schema.openShard(u.Host)
		if err != nil {
			return err
		}
		defer shard.close()
		here = shard
	}
	err := here.db.DoServer(ctx, mergeTimeout, ch.Query{
		// The name of the table is from a constant list, and the partition is digits.
		Body:     "OPTIMIZE TABLE " + here.cfg.Database + "." + u.Table + " PARTITION ID '" + u.Partition + "' FINAL",
		Settings: mergeSettings,
	})
	if err != nil {
		return fmt.Errorf("merge %s, partition %s: %w", u.Table, u.Partition, conn.WithoutValues(err))
	}
	if state := e.months[monthKey{u.Host, u.Table, u.Partition}]; state != nil {
		state.covered = nil
	}
	return here.recordWaiting(ctx, waiting{u.Table, u.Partition, 0})
}

// tableMonth is a partition of a table, as a host has it.
type tableMonth struct {
	table, partition string
	// parts are the active parts. There are none if only the record is left.
	parts []part
	// since is when the waiting content was found, 0 if there is none. clean is when
	// the last search from the beginning, or the last merge, ended; 0 if that is not
	// known. Both are in microseconds of the server's Unix time.
	since, clean int64
}

// part is an active part. Parts with the same name and hash have the same files.
type part struct {
	name, hash string
	// merged says that a merge made it, which leaves one row of each key.
	merged bool
}

// listMonths returns the months that the tables with contents have or that are
// recorded. If there are any, it also returns the server's Unix time in
// microseconds.
func (s *Schema) listMonths(ctx context.Context) (all []tableMonth, now int64, err error) {
	var (
		table, partition, name, hash proto.ColStr
		level                        proto.ColUInt32
		since, clean, clock          proto.ColInt64
	)
	err = s.db.Query(ctx, conn.RoleAdmin, "unerased", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT *, toUnixTimestamp64Micro(now64(6)) AS clock FROM
			(
				SELECT table, partition_id, name, hash_of_all_files AS hash, level, toInt64(0) AS since, toInt64(0) AS clean FROM system.parts
				WHERE active AND database = {database:String} AND table IN ('events', 'event_contents', 'event_embeddings')
				UNION ALL
				SELECT toString(name), partition_id, '', '', 0, toUnixTimestamp64Micro(waiting_since) AS waiting, if(waiting = 0, toUnixTimestamp64Micro(recorded_at), 0) FROM erasures FINAL
			)
			WHERE match(partition_id, '^[0-9]+$')
			ORDER BY table, partition_id, name`,
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "table", Data: &table},
			{Name: "partition_id", Data: &partition},
			{Name: "name", Data: &name},
			{Name: "hash", Data: &hash},
			{Name: "level", Data: &level},
			{Name: "since", Data: &since},
			{Name: "clean", Data: &clean},
			{Name: "clock", Data: &clock},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range level {
				if n := len(all); n == 0 || all[n-1].table != table.Row(i) || all[n-1].partition != partition.Row(i) {
					all = append(all, tableMonth{table: table.Row(i), partition: partition.Row(i)})
				}
				m := &all[len(all)-1]
				if name.Row(i) == "" {
					m.since, m.clean = since[i], clean[i]
				} else {
					m.parts = append(m.parts, part{name.Row(i), hash.Row(i), level[i] > 0})
				}
				now = clock[i]
			}
			return nil
		},
	})
	return all, now, err
}

// waiting is a row of the table erasures: since when a partition has deleted content,
// in microseconds of Unix time; 0 if it has none.
type waiting struct {
	table, partition string
	since            int64
}

// recordWaiting records the months in one insert.
func (s *Schema) recordWaiting(ctx context.Context, months ...waiting) error {
	if len(months) == 0 {
		return nil
	}
	lines := make([]string, len(months))
	for i, m := range months {
		lines[i] = fmt.Sprint(m.table, " ", m.partition, " ", m.since)
	}
	err := s.db.Do(ctx, conn.RoleAdmin, s.cfg.InsertTimeout, ch.Query{
		Body: `INSERT INTO erasures SELECT m[1], m[2], fromUnixTimestamp64Micro(toInt64(m[3]), 'UTC'), now64(6)
			FROM (SELECT splitByChar(' ', arrayJoin(splitByChar(',', {months:String}))) AS m)`,
		Parameters: conn.Parameters{}.Text("months", strings.Join(lines, ",")),
		Settings:   []ch.Setting{conn.Setting("async_insert", "0")},
	})
	if err != nil {
		return fmt.Errorf("record erasures: %w", conn.WithoutValues(err))
	}
	return nil
}
