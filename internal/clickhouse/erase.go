package clickhouse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// A delete writes tombstones, and the content is gone when a merge takes in both.
// ClickHouse's own merges do that in a bounded time only for months that are small
// and left alone: merges by age stop at 150 GiB, and never begin where a small
// part is always young. So somebody has to ask for the merge of a whole month.

const (
	// mergeTimeout bounds the merge of one month: 30 TB at 120 MB/s take 3 days.
	mergeTimeout = 7 * day
	// scanTimeout bounds the search of a month for tombstones, of which one column
	// of bytes is read, by one thread.
	scanTimeout = 15 * time.Minute
)

// mergeSettings are those of a merge of a whole month.
var mergeSettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	// Else a merge that could not be begun would look like one that was made.
	setting("optimize_throw_if_noop", "1"),
	// It can be begun once no other merge of the month is running.
	setting("lock_acquire_timeout", "600"),
	setting("max_execution_time", "0"),
}

// Unerased is a month of a table, on one shard, that has tombstones beside other
// parts: content that was deleted may still be in one of these.
type Unerased struct {
	Table, Partition string
	// Host is host:port of the shard's replica that was asked, empty where the
	// tables are not spread over a cluster.
	Host string
	// Parts are the active ones.
	Parts uint64
	// Waited is how long the tombstones have been known.
	Waited time.Duration

	// since is that in microseconds of the server's Unix time; 0 for not yet.
	since int64
}

// Unerased finds the months in which deleted content may still be on the disk,
// those first that have waited longest. Since when each does is recorded in the
// database, by the first call that finds it. On a cluster one replica of each
// shard is asked. What was found is returned with an error, too.
func (s *Store) Unerased(ctx context.Context) ([]Unerased, error) {
	var (
		all []Unerased
		err error
	)
	if l := s.spread.Load(); l != nil {
		all, err = s.unerasedCluster(ctx, l.cluster)
	} else {
		all, err = s.unerasedHere(ctx, "")
	}
	slices.SortStableFunc(all, func(a, b Unerased) int { return cmp.Compare(b.Waited, a.Waited) })
	return all, err
}

// unerasedCluster asks each shard.
func (s *Store) unerasedCluster(ctx context.Context, cluster string) ([]Unerased, error) {
	members, err := s.members(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var (
		all    []Unerased
		failed []error
	)
	for len(members) > 0 {
		n := 1
		for n < len(members) && members[n].shard == members[0].shard {
			n++
		}
		found, err := s.unerasedShard(ctx, members[:n])
		all = append(all, found...)
		failed = append(failed, err)
		members = members[n:]
	}
	return all, errors.Join(failed...)
}

// unerasedShard asks the first replica of a shard that answers.
func (s *Store) unerasedShard(ctx context.Context, replicas members) ([]Unerased, error) {
	var failed []error
	for _, m := range replicas {
		shard, err := s.openShard(m.addr())
		if err != nil {
			return nil, err
		}
		defer shard.Close()
		if err := shard.Ready(ctx); err != nil {
			failed = append(failed, m.at(err))
			continue
		}
		found, err := shard.unerasedHere(ctx, m.addr())
		return found, m.at(err)
	}
	return nil, errors.Join(failed...)
}

// unerasedHere is Unerased on one host, in no order.
func (s *Store) unerasedHere(ctx context.Context, host string) ([]Unerased, error) {
	candidates, now, err := s.unmerged(ctx)
	if err != nil {
		return nil, err
	}
	var (
		found  []Unerased
		failed []error
	)
	for _, u := range candidates {
		waits, err := s.look(ctx, &u, now)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s, partition %s: %w", u.Table, u.Partition, err))
		}
		if waits {
			u.Host, u.Waited = host, time.Duration(now-u.since)*time.Microsecond
			found = append(found, u)
		}
	}
	return found, errors.Join(failed...)
}

// look finds out whether the month's tombstones wait, and records what is new.
func (s *Store) look(ctx context.Context, u *Unerased, now int64) (waits bool, err error) {
	if u.Parts > 1 {
		if waits, err = s.hasTombstones(ctx, u); err != nil {
			return false, err
		}
	}
	switch {
	case waits && u.since == 0:
		u.since = now
		return true, s.recordWaiting(ctx, u, now)
	case !waits && u.since != 0:
		return false, s.recordWaiting(ctx, u, 0)
	}
	return waits, nil
}

// Erase merges a month of a table whole, so that no part has content that was
// deleted before. That writes the month once, and needs as much free disk as it
// takes. The parts that were merged leave the disk some minutes later, after
// ClickHouse's old_parts_lifetime. It is harmless, but twice the work, if two
// processes do it at once.
func (s *Store) Erase(ctx context.Context, u Unerased) error {
	here := s
	if u.Host != "" {
		shard, err := s.openShard(u.Host)
		if err != nil {
			return err
		}
		defer shard.Close()
		here = shard
	}
	err := here.admin.do(ctx, mergeTimeout, ch.Query{
		// The table's name is from a constant list, and the partition's is digits.
		Body:     "OPTIMIZE TABLE " + here.cfg.Database + "." + u.Table + " PARTITION ID '" + u.Partition + "' FINAL",
		Settings: mergeSettings,
	})
	if err != nil {
		return fmt.Errorf("merge %s, partition %s: %w", u.Table, u.Partition, withoutValues(err))
	}
	return here.recordWaiting(ctx, &u, 0)
}

// unmerged are the months that have several parts, or are recorded as waiting,
// and the server's time, in microseconds of Unix time, if there are any.
func (s *Store) unmerged(ctx context.Context) (all []Unerased, now int64, err error) {
	var (
		name, partition proto.ColStr
		parts           proto.ColUInt64
		since, clock    proto.ColInt64
	)
	err = s.query(ctx, "unmerged", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT name, partition_id, sum(n) AS parts, max(at) AS since, toUnixTimestamp64Micro(now64(6)) AS clock FROM
			(
				SELECT table AS name, partition_id, count() AS n, toInt64(0) AS at FROM system.parts
				WHERE active AND database = {database:String} AND table IN ('events', 'event_contents', 'event_embeddings')
				GROUP BY table, partition_id HAVING n > 1
				UNION ALL
				SELECT toString(name), partition_id, toUInt64(0), toUnixTimestamp64Micro(waiting_since) FROM erasures FINAL
				WHERE waiting_since > 0
			)
			WHERE match(partition_id, '^[0-9]+$')
			GROUP BY name, partition_id ORDER BY partition_id, name`,
		Parameters: parameters{}.text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "name", Data: &name},
			{Name: "partition_id", Data: &partition},
			{Name: "parts", Data: &parts},
			{Name: "since", Data: &since},
			{Name: "clock", Data: &clock},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range parts {
				all = append(all, Unerased{Table: name.Row(i), Partition: partition.Row(i), Parts: parts[i], since: since[i]})
				now = clock[i]
			}
			return nil
		},
	})
	return all, now, err
}

// hasTombstones reports whether any part of the partition has one. It may have
// met what was under it; but a create of an event that is deleted leaves its
// content under a tombstone that was merged long ago.
func (s *Store) hasTombstones(ctx context.Context, u *Unerased) (bool, error) {
	var n proto.ColUInt64
	found := false
	err := s.query(ctx, "tombstones", scanTimeout, ch.Query{
		Body:       "SELECT count() AS n FROM (SELECT 1 FROM " + u.Table + " PREWHERE deleted = 1 WHERE _partition_id = {partition:String} LIMIT 1)",
		Parameters: parameters{}.text("partition", u.Partition),
		Settings:   []ch.Setting{setting("max_threads", "1")},
		Result:     proto.Results{{Name: "n", Data: &n}},
		OnResult: func(context.Context, proto.Block) error {
			found = found || slices.Contains(n, 1)
			return nil
		},
	})
	return found, err
}

// recordWaiting records since when the partition's tombstones wait; 0 says that
// none does.
func (s *Store) recordWaiting(ctx context.Context, u *Unerased, since int64) error {
	err := s.pool.do(ctx, s.cfg.InsertTimeout, ch.Query{
		Body: "INSERT INTO erasures SELECT {name:String}, {partition:String}, fromUnixTimestamp64Micro({since:Int64}, 'UTC'), now64(6)",
		Parameters: parameters{}.text("name", u.Table).text("partition", u.Partition).
			int("since", since),
		Settings: []ch.Setting{setting("async_insert", "0")},
	})
	if err != nil {
		return fmt.Errorf("record erasure: %w", withoutValues(err))
	}
	return nil
}
