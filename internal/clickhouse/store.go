package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
)

// Store is the events in one ClickHouse database. Its methods are safe for
// concurrent use. Errors of [Store.Insert] that wrap [event.ErrRejected] are
// about the rows; see [IsRetryable] for all others.
type Store struct {
	cfg Config
	log *slog.Logger
	// pools speak to the database, one for each role; admin to the server, where
	// the database may not exist yet.
	pools [roles]*pool
	admin *pool
	// ready is the check that the callers of Ready share.
	ready  singleflight.Group
	gather gather
	// encoders bounds the blocks being sent, and keeps the encoders' memory.
	encoders chan *encoder
	// ahead has the encoder of the one insert that waits for others to end.
	ahead chan *encoder
	// spread is how the tables are spread over a cluster; nil where they are not,
	// and until Migrate has looked.
	spread atomic.Pointer[layout]
	// schemaChecked says that Ready has found all migrations of this build.
	schemaChecked atomic.Bool

	insertedRows  *prometheus.CounterVec
	insertSeconds *prometheus.HistogramVec
	querySeconds  *prometheus.HistogramVec
	dials         prometheus.Counter
}

// New returns a store. It reads the CA file but does not connect: the server
// may come later. Close it. A nil registerer leaves the metrics unregistered.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	tlsConfig, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg:      cfg,
		log:      log,
		encoders: make(chan *encoder, cfg.InsertConcurrency),
		ahead:    make(chan *encoder, 1),
		insertedRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_clickhouse_inserted_rows_total",
			Help: "Rows inserted, by table.",
		}, []string{"table"}),
		insertSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_clickhouse_insert_seconds",
			Help:    "Time to insert one block, by table.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"table"}),
		querySeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_clickhouse_query_seconds",
			Help:    "Time of one query, by what it is for.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"query"}),
		dials: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_clickhouse_dials_total",
			Help: "Connections to ClickHouse that were attempted.",
		}),
	}
	for r := range s.pools {
		s.pools[r] = newPool(cfg, role(r).connectionsMax(&cfg), cfg.Database, tlsConfig, s.dials.Inc)
	}
	s.admin = newPool(cfg, adminConnectionsMax, "system", tlsConfig, s.dials.Inc)
	for range cfg.InsertConcurrency {
		s.encoders <- newEncoder()
	}
	s.ahead <- newEncoder()
	if reg != nil {
		for _, c := range append(s.poolMetrics(), s.insertedRows, s.insertSeconds, s.querySeconds, s.dials) {
			if err := reg.Register(c); err != nil {
				return nil, fmt.Errorf("register clickhouse metrics: %w", err)
			}
		}
	}
	return s, nil
}

// poolMetrics tell how much of each pool is in use.
func (s *Store) poolMetrics() []prometheus.Collector {
	var all []prometheus.Collector
	for r, p := range s.pools {
		labels := prometheus.Labels{"pool": role(r).String()}
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

// Close closes the idle connections; those in use close when their operation ends.
func (s *Store) Close() {
	for _, p := range s.pools {
		p.close()
	}
	s.admin.close()
}

// Ready returns nil when the server answers and has the tables of this build, on
// a cluster those of every shard. The error wraps [event.ErrSchemaMissing] where
// the server has no tables, and [event.ErrSchemaOld] where they lack a migration.
// It reads only. Calls at the same time share one check, so that many callers
// cost the server no more than one, and none waits for others.
func (s *Store) Ready(ctx context.Context) error {
	checked := s.ready.DoChan("", func() (any, error) {
		// The check goes on for the others when this caller leaves.
		return nil, s.check(context.WithoutCancel(ctx))
	})
	select {
	case result := <-checked:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) check(ctx context.Context) error {
	err := s.query(ctx, roleHealth, "ready", s.cfg.DialTimeout, ch.Query{
		// Nothing is as old, which the partitions' own metadata says; but with a
		// LIMIT of 0 no shard would be asked.
		Body:   "SELECT id FROM events WHERE timestamp < toDateTime64('1971-01-01 00:00:00', 6, 'UTC') LIMIT 1",
		Result: proto.Results{{Name: "id", Data: new(proto.ColUUID)}},
	})
	if err != nil {
		s.schemaChecked.Store(false) // the tables may come back as others
		return err
	}
	if s.schemaChecked.Load() {
		return nil
	}
	l, err := s.findLayout(ctx)
	if err != nil {
		return err
	}
	if _, err := s.checkMigrations(ctx, l); err != nil {
		return err
	}
	s.schemaChecked.Store(true)
	return nil
}

// Parts counts the active parts in the fullest partition of each table, which is
// what ClickHouse's part budget is about: inserts slow down at 1,000.
// On a cluster it is that of the fullest shard, of one replica of each.
func (s *Store) Parts(ctx context.Context) (map[string]uint64, error) {
	var (
		table proto.ColStr
		count proto.ColUInt64
		parts = make(map[string]uint64)
	)
	from, shard, database := "system.parts", "", s.cfg.Database
	if l := s.spread.Load(); l != nil {
		from, shard, database = "cluster('"+l.cluster+"', system.parts)", ", _shard_num", database+shardSuffix
	}
	err := s.query(ctx, roleAdmin, "parts", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT table, max(n) AS parts FROM (
				SELECT table, count() AS n FROM ` + from + `
				WHERE active AND database = {database:String} GROUP BY table, partition_id` + shard + `
			) GROUP BY table`,
		Parameters: parameters{}.text("database", database),
		Result:     proto.Results{{Name: "table", Data: &table}, {Name: "parts", Data: &count}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range count {
				parts[table.Row(i)] = count[i]
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return parts, nil
}

// ServerMemory is how many bytes the server may allocate for everything it does;
// 0 where it has no limit. It needs the right to read system.server_settings.
func (s *Store) ServerMemory(ctx context.Context) (bytes int64, err error) {
	var value proto.ColUInt64
	err = s.admin.do(ctx, s.cfg.QueryTimeout, ch.Query{
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
		return 0, fmt.Errorf("read the server's memory: %w", withoutValues(err))
	}
	return bytes, nil
}

// querySettings are those of every query. They mean nothing on one machine.
var querySettings = []ch.Setting{ //nolint:gochecknoglobals // a constant list
	// An answer without the rows of a shard that is down would be a wrong one.
	setting("skip_unavailable_shards", "0"),
	// What is asked of one conversation is asked of its shard.
	setting("optimize_skip_unused_shards", "1"),
}

// query runs one query on a connection of the role, and measures it.
func (s *Store) query(ctx context.Context, r role, name string, timeout time.Duration, q ch.Query) error {
	start := time.Now()
	q.Settings = slices.Concat(q.Settings, querySettings)
	err := s.pools[r].do(ctx, timeout, q)
	s.querySeconds.WithLabelValues(name).Observe(time.Since(start).Seconds())
	if err != nil {
		if r == roleRead || r == roleAnalytics {
			return fmt.Errorf("query %s: %w", name, readError(err))
		}
		return fmt.Errorf("query %s: %w", name, schemaError(err))
	}
	return nil
}

// parameters are the values of a query, which never become part of its text.
type parameters []proto.Parameter

// text adds a String. The server reads a parameter as a quoted literal, and
// what that holds as a field of its TSV format, so there are two levels of
// escapes.
func (p parameters) text(name, value string) parameters {
	value = tsvEscaper.Replace(value)
	return append(p, proto.Parameter{Key: name, Value: "'" + quoteEscaper.Replace(value) + "'"})
}

func (p parameters) int(name string, value int64) parameters {
	return append(p, proto.Parameter{Key: name, Value: "'" + strconv.FormatInt(value, 10) + "'"})
}

func (p parameters) uint(name string, value uint64) parameters {
	return append(p, proto.Parameter{Key: name, Value: "'" + strconv.FormatUint(value, 10) + "'"})
}

//nolint:gochecknoglobals // constant tables
var (
	tsvEscaper   = strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`, "\r", `\r`, "\x00", `\0`, "\b", `\b`, "\f", `\f`, "'", `\'`)
	quoteEscaper = strings.NewReplacer(`\`, `\\`, "'", `\'`)
)

func setting(key, value string) ch.Setting {
	return ch.Setting{Key: key, Value: value, Important: true}
}
