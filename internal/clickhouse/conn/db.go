// Package conn connects to a ClickHouse server: the configuration, a pool of
// connections for each role, and how queries are sent, bounded and measured.
// Packages clickhouse (the data path) and schema are built on it.
package conn

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"
)

// DB is a ClickHouse database: its address, a pool of connections for each role,
// and the metrics of its queries. It is safe for concurrent use.
type DB struct {
	cfg   Config
	pools [roles]*Pool
	// server has connections that are not of the database, which may not exist yet.
	server       *Pool
	querySeconds *prometheus.HistogramVec
	dials        prometheus.Counter
}

// Open checks the configuration and returns the database. It reads the CA file but
// does not connect. A nil registerer leaves the metrics unregistered. The caller
// closes the DB with [DB.Close].
func Open(cfg Config, reg prometheus.Registerer) (*DB, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.WithDefaults()
	tlsConfig, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	db := &DB{
		cfg: cfg,
		querySeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_clickhouse_query_seconds",
			Help:    "Time of one query, by what it is for.",
			Buckets: SecondsBuckets(),
		}, []string{"query"}),
		dials: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_clickhouse_dials_total",
			Help: "Connections to ClickHouse that were attempted.",
		}),
	}
	for r := range db.pools {
		db.pools[r] = newPool(cfg, Role(r).connectionsMax(&cfg), cfg.Database, tlsConfig, db.dials.Inc)
	}
	db.server = newPool(cfg, adminConnectionsMax, "system", tlsConfig, db.dials.Inc)
	if reg != nil {
		for _, c := range append(db.poolMetrics(), db.querySeconds, db.dials) {
			if err := reg.Register(c); err != nil {
				return nil, fmt.Errorf("register clickhouse metrics: %w", err)
			}
		}
	}
	return db, nil
}

// SecondsBuckets are the bounds of the histograms of times: from 1 ms, doubled, to
// 33 s.
func SecondsBuckets() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 16) }

// poolMetrics tell how much of each pool is in use.
func (db *DB) poolMetrics() []prometheus.Collector {
	var all []prometheus.Collector
	for r, p := range db.pools {
		labels := prometheus.Labels{"pool": Role(r).String()}
		all = append(all,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "sluice_clickhouse_connections_in_use", ConstLabels: labels,
				Help: "Connections to ClickHouse that are in use, by what they are for.",
			}, func() float64 { return float64(len(p.slots)) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "sluice_clickhouse_connections_max", ConstLabels: labels,
				Help: "Most connections to ClickHouse, by what they are for.",
			}, func() float64 { return float64(cap(p.slots)) }))
	}
	return all
}

// Config returns the configuration, with the defaults filled in.
func (db *DB) Config() Config { return db.cfg }

// Do runs a query on a connection of the role, within the timeout.
func (db *DB) Do(ctx context.Context, r Role, timeout time.Duration, q ch.Query) error {
	return db.pools[r].Do(ctx, timeout, q)
}

// DoServer is [DB.Do] on a connection that does not need the database to exist.
func (db *DB) DoServer(ctx context.Context, timeout time.Duration, q ch.Query) error {
	return db.server.Do(ctx, timeout, q)
}

// Dedicated returns a pool of one connection to the database, for a query that
// lasts long. The caller closes it.
func (db *DB) Dedicated() *Pool {
	return newPool(db.cfg, 1, db.cfg.Database, db.server.tls, db.dials.Inc)
}

// ServerMemory returns how many bytes the server may allocate for everything it
// does, 0 if it has no limit. The user needs the right to read
// system.server_settings.
func (db *DB) ServerMemory(ctx context.Context) (bytes int64, err error) {
	var value proto.ColUInt64
	err = db.DoServer(ctx, db.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT toUInt64OrZero(value) AS bytes FROM system.server_settings WHERE name = 'max_server_memory_usage'",
		Result: proto.Results{{Name: "bytes", Data: &value}},
		OnResult: func(context.Context, proto.Block) error {
			for _, n := range value {
				bytes = int64(min(n, math.MaxInt64))
			}
			return nil
		},
	})
	if err != nil {
		return 0, fmt.Errorf("read the server's memory: %w", WithoutValues(err))
	}
	return bytes, nil
}

// Close closes the idle connections. A connection in use is closed when its
// operation ends.
func (db *DB) Close() {
	for _, p := range db.pools {
		p.Close()
	}
	db.server.Close()
}
