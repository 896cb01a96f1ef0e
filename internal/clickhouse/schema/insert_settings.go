package schema

import (
	"slices"
	"strconv"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// insertSettings are the settings of every insert. async_insert is set explicitly,
// because the defaults of 26.x collect inserts on the server and acknowledge them
// before they are durable.
var insertSettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	conn.Setting("async_insert", "0"),
	// On a cluster an insert returns when the shards have the rows, and not already
	// when the server that received them has queued them for the shards.
	conn.Setting("distributed_foreground_insert", "1"),
	conn.Setting("max_insert_threads", "1"),
	// Merges build the index of words. An insert pays nothing for it.
	conn.Setting("exclude_materialize_skip_indexes_on_insert", "content_words"),
	// Off, because it copies the block once more to fold the versions of a key. A
	// batch has one row for each key already, and merges fold the rest.
	conn.Setting("optimize_on_insert", "0"),
	// Rows are idempotent by version, so a block needs no other deduplication.
	conn.Setting("deduplicate_insert", "disable"),
	// One block is one part, whatever its size: an insert of several parts that
	// fails half way would leave half of its rows.
	conn.Setting("max_partitions_per_insert_block", "1"),
	conn.Setting("throw_on_max_partitions_per_insert_block", "1"),
	conn.Setting("max_insert_block_size", "1000000000"),
	// The server processes a block when it arrives, not at the end of the insert.
	conn.Setting("min_insert_block_size_rows", "0"),
	conn.Setting("min_insert_block_size_bytes", "0"),
}

// quorumSettings make an insert return when every replica has the rows. A lookup or
// a reader may ask any replica and must find what was acknowledged: an update that
// does not find its event is refused for good. A majority is not enough, because
// reads do not ask a majority. And select_sequential_consistency would refuse a
// replica that is behind instead of asking another one, and works only for inserts
// that wait for each other.
//
// So nothing is applied while a replica is down. Nothing is lost meanwhile: the log
// still acknowledges writes, and reads ask the other replicas.
func (s *Schema) quorumSettings(replicas int) []ch.Setting {
	return []ch.Setting{
		conn.Setting("insert_quorum", strconv.Itoa(replicas)),
		conn.Setting("insert_quorum_parallel", "1"),
		// Shorter than the client's timeout, so that the server's error, which says
		// why, comes first.
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
