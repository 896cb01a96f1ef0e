package schema

import (
	"slices"
	"strconv"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// insertSettings are said explicitly: the defaults of 26.x batch inserts on
// the server, behind the acknowledgement's back.
var insertSettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	conn.Setting("async_insert", "0"),
	// On a cluster an insert returns when the shards have the rows, not when the
	// server that it came to has them to pass on.
	conn.Setting("distributed_foreground_insert", "1"),
	conn.Setting("max_insert_threads", "1"),
	// Would copy the block once more, to fold versions of one key: a batch has
	// one row of each key already, and a merge folds what is left.
	conn.Setting("optimize_on_insert", "0"),
	// Rows are idempotent by version, so a block needs no other deduplication.
	conn.Setting("deduplicate_insert", "disable"),
	// One block of ours is one part, whatever its size: an insert that fails
	// half way through several would leave half of itself.
	conn.Setting("max_partitions_per_insert_block", "1"),
	conn.Setting("throw_on_max_partitions_per_insert_block", "1"),
	conn.Setting("max_insert_block_size", "1000000000"),
	// The server works on a block when it is there, not at the insert's end.
	conn.Setting("min_insert_block_size_rows", "0"),
	conn.Setting("min_insert_block_size_bytes", "0"),
}

// quorumSettings have an insert return when every replica has the rows. A
// lookup or a reader may come to any of them, and must find what was
// acknowledged: an update that does not find its event is refused for good.
// A majority would not do, as reads do not ask one. And
// select_sequential_consistency, which would refuse a replica that is behind
// and not ask another, works only for inserts that wait for each other.
//
// So while a replica is down nothing is applied. Nothing is lost meanwhile: the
// log still acknowledges writes, and reads ask the other replicas.
func (s *Schema) quorumSettings(replicas int) []ch.Setting {
	return []ch.Setting{
		conn.Setting("insert_quorum", strconv.Itoa(replicas)),
		conn.Setting("insert_quorum_parallel", "1"),
		// The server's error comes first, because it says why.
		conn.Setting("insert_quorum_timeout", strconv.FormatInt((s.cfg.InsertTimeout/2).Milliseconds(), 10)),
	}
}

// InsertSettings returns the settings of every insert. On replicated tables they
// include those of a quorum of all replicas.
func (s *Schema) InsertSettings() []ch.Setting {
	if l := s.layout.Load(); l != nil && l.replicas > 0 {
		return slices.Concat(insertSettings, s.quorumSettings(l.replicas))
	}
	return insertSettings
}

// Replicated reports whether the tables are replicated. It is false until
// [Schema.Migrate] has looked.
func (s *Schema) Replicated() bool {
	l := s.layout.Load()
	return l != nil && l.replicas > 0
}
