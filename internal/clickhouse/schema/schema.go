// Package schema creates and changes the tables of Sluice in ClickHouse:
// migrations, the layout on a cluster, the retention, the record of topic
// generations, and the merges that erase deleted content. It does not read or
// write events; package clickhouse does.
package schema

import (
	"log/slog"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Schema is the schema of one database. It is safe for concurrent use.
type Schema struct {
	db  *conn.DB
	cfg conn.Config
	log *slog.Logger
	// layout is how the tables are spread over a cluster. It is nil on one machine
	// and until [Schema.Migrate] has looked.
	layout atomic.Pointer[layout]
	// ready is the check that concurrent callers of [Schema.Ready] share, and
	// checked says that it has found all migrations of this build.
	ready   singleflight.Group
	checked atomic.Bool
}

// New returns the schema of the database. It does not connect.
func New(db *conn.DB, log *slog.Logger) *Schema {
	return &Schema{db: db, cfg: db.Config(), log: log}
}

// open returns a schema with a [conn.DB] of its own. The caller closes it.
func open(cfg conn.Config, log *slog.Logger) (*Schema, error) {
	db, err := conn.Open(cfg, nil)
	if err != nil {
		return nil, err
	}
	return New(db, log), nil
}

func (s *Schema) close() { s.db.Close() }

// openShard opens the shard's own tables on a host of the cluster.
func (s *Schema) openShard(addr string) (*Schema, error) {
	cfg := s.cfg
	cfg.Addr, cfg.Cluster, cfg.Database = addr, "", s.cfg.Database+shardSuffix
	return open(cfg, s.log)
}
