// Package clickhouse stores events in ClickHouse and reads them back: the encoding
// of rows as blocks of the native protocol, inserts, batched lookups, and the
// queries of the API. The tables themselves are the business of package schema.
package clickhouse

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// Config is [conn.Config].
type Config = conn.Config

// Store stores events in one ClickHouse database and reads them back. It is safe
// for concurrent use. See [IsRetryable] for its errors.
//
// The methods of the embedded [schema.Schema] are about the tables: migrations,
// readiness, the retention, erasure.
type Store struct {
	*schema.Schema

	cfg    Config
	db     *conn.DB
	gather gather
	// exports has an element for each export that is being read.
	exports chan struct{}
	// encoders bounds the blocks that are sent at once, and keeps the memory of the
	// encoders.
	encoders chan *encoder
	// ahead has the encoder of the one insert that waits for others to end.
	ahead chan *encoder

	insertedRows  *prometheus.CounterVec
	insertSeconds *prometheus.HistogramVec
}

// New returns a store. It reads the CA file but does not connect, because the
// server may come up later. A nil registerer leaves the metrics unregistered. The
// caller closes the store with [Store.Close].
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	db, err := conn.Open(cfg, reg)
	if err != nil {
		return nil, err
	}
	cfg = db.Config()
	s := &Store{
		Schema:   schema.New(db, log),
		cfg:      cfg,
		db:       db,
		exports:  make(chan struct{}, query.ExportsMax),
		encoders: make(chan *encoder, cfg.InsertConcurrency),
		ahead:    make(chan *encoder, 1),
		insertedRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_clickhouse_inserted_rows_total",
			Help: "Rows inserted, by table.",
		}, []string{"table"}),
		insertSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_clickhouse_insert_seconds",
			Help:    "Time to insert one block, by table.",
			Buckets: conn.SecondsBuckets(),
		}, []string{"table"}),
	}
	for range cfg.InsertConcurrency {
		s.encoders <- newEncoder()
	}
	s.ahead <- newEncoder()
	if reg != nil {
		for _, c := range []prometheus.Collector{s.insertedRows, s.insertSeconds} {
			if err := reg.Register(c); err != nil {
				return nil, fmt.Errorf("register clickhouse metrics: %w", err)
			}
		}
	}
	return s, nil
}

// Close closes the idle connections. A connection in use is closed when its
// operation ends.
func (s *Store) Close() { s.db.Close() }

// IsRetryable reports whether trying again can help. It cannot if ClickHouse refused
// rows because of their data, if the tables have another layout than configured, or
// if ClickHouse is too old. Everything else is a condition of the servers that ends:
// network errors, timeouts, memory, too many parts, a read-only replica, too few
// replicas, a shard that is down, missing rights or tables, and codes that this build
// does not know.
func IsRetryable(err error) bool {
	return err != nil && !errors.Is(err, event.ErrRejected) && !errors.Is(err, schema.ErrLayout) && !errors.Is(err, event.ErrDatabaseOld)
}
