package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
)

const (
	// startTimeout bounds how long a start waits for Kafka and ClickHouse.
	startTimeout = 2 * time.Minute
	// prepareTimeout bounds how long "serve" prepares a ClickHouse that is elsewhere
	// before it takes writes without it.
	prepareTimeout = 30 * time.Second
	// closeTimeout bounds a producer's last flush, and leaving the group.
	closeTimeout = 10 * time.Second
	// lagInterval is how often the lag is measured, partsInterval the parts.
	lagInterval    = 5 * time.Second
	partsInterval  = 15 * time.Second
	metricsTimeout = 30 * time.Second
	profileTimeout = 2 * time.Minute
	// readyLogged is what a supervisor, a script or a person looks for.
	readyLogged = "ready"
)

type serveCmd struct {
	memoryFlags
	httpFlags
	readerFlags
	kafkaFlags
	clickhouseFlags
	retentionFlags
	consumerFlags
	embeddedFlags
}

// Run starts everything, and stops it in reverse: HTTP, producer, consumer,
// broker, engine.
func (c *serveCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.httpFlags.config()
	if err != nil {
		return err
	}
	kafkaCfg, err := c.kafkaFlags.config()
	keep, moreErr := c.retentionFlags.config()
	if err := errors.Join(err, moreErr, c.checkConsumer(), c.checkReader()); err != nil {
		return err
	}
	c.applyAdmission(&cfg)
	m, err := c.divide(roles{api: true, consumer: true, broker: len(c.KafkaBrokers) == 0}, memoryWants{
		batchItems: c.BatchItems, connections: c.Connections, flushBytes: c.FlushBytes, recentBytes: c.RecentBytes,
	})
	if err != nil {
		return err
	}
	m.applyAPI(&cfg)
	m.applyKafka(&kafkaCfg)
	m.applyConsumer(&c.consumerFlags)
	p := newProcess(e)
	m.set(p.log)
	return p.run(ctx, func(ctx context.Context) error {
		clickhouseCfg, err := c.database(ctx, p, &c.clickhouseFlags, c.analyticsQueries())
		if err != nil {
			return err
		}
		c.applyWriter(&clickhouseCfg)
		c.applyReader(&clickhouseCfg)
		if err := c.broker(ctx, p, &kafkaCfg); err != nil {
			return err
		}
		store, err := p.openStore(clickhouseCfg)
		if err != nil {
			return err
		}
		database := func(ctx context.Context) error {
			if err := migrate(ctx, store, p.log); err != nil {
				return err
			}
			return setRetention(ctx, store, keep, p.log)
		}
		// The embedded database has been started, and is waited for. One that is
		// elsewhere may be away: then writes are taken, and it is waited for beside them.
		if c.ClickhouseURL != "" {
			bounded, cancel := context.WithTimeout(ctx, prepareTimeout)
			err = database(bounded)
			cancel()
		} else {
			err = p.retry(ctx, "migrate", clickhouse.IsRetryable, database)
		}
		if clickhouse.IsRetryable(err) && c.ClickhouseURL != "" {
			p.log.Warn("ClickHouse is not ready: the consumer starts when it is", "error", err)
			p.startConsumerLater(ctx, kafkaCfg, &c.consumerFlags, store, database)
			return p.startAPI(ctx, kafkaCfg, cfg, &c.httpFlags, store)
		}
		if err != nil {
			return err
		}
		consumerCfg := kafkaCfg
		if err := p.consumerTopics(ctx, &consumerCfg, store, true); err != nil {
			return err
		}
		if err := p.startConsumer(ctx, consumerCfg, &c.consumerFlags, store); err != nil {
			return err
		}
		return p.startAPI(ctx, kafkaCfg, cfg, &c.httpFlags, store)
	})
}

type apiCmd struct {
	memoryFlags
	httpFlags
	readerFlags
	kafkaFlags
	clickhouseFlags
}

// Run starts the API on a Kafka and a ClickHouse that are elsewhere. It only
// reads from ClickHouse, which may be away.
func (c *apiCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.httpFlags.config()
	kafkaCfg, clickhouseCfg, moreErr := remote(&c.kafkaFlags, &c.clickhouseFlags)
	if err := errors.Join(err, moreErr, c.checkReader()); err != nil {
		return err
	}
	c.applyAdmission(&cfg)
	c.applyReader(&clickhouseCfg)
	m, err := c.divide(roles{api: true}, memoryWants{batchItems: c.BatchItems, connections: c.Connections})
	if err != nil {
		return err
	}
	m.applyAPI(&cfg)
	m.applyKafka(&kafkaCfg)
	p := newProcess(e)
	m.set(p.log)
	return p.run(ctx, func(ctx context.Context) error {
		store, err := p.openStore(clickhouseCfg)
		if err != nil {
			return err
		}
		return p.startAPI(ctx, kafkaCfg, cfg, &c.httpFlags, store)
	})
}

type consumeCmd struct {
	memoryFlags
	kafkaFlags
	clickhouseFlags
	consumerFlags
	MetricsListen string `help:"Address of /metrics and /healthz, host:port; empty for none." default:"127.0.0.1:9101" group:"http"`
}

// Run starts the consumer on a Kafka and a ClickHouse that are elsewhere.
func (c *consumeCmd) Run(ctx context.Context, e *env) error {
	kafkaCfg, clickhouseCfg, err := remote(&c.kafkaFlags, &c.clickhouseFlags)
	if err := errors.Join(err, c.checkConsumer()); err != nil {
		return err
	}
	c.applyWriter(&clickhouseCfg)
	m, err := c.divide(roles{consumer: true}, memoryWants{flushBytes: c.FlushBytes, recentBytes: c.RecentBytes})
	if err != nil {
		return err
	}
	m.applyKafka(&kafkaCfg)
	m.applyConsumer(&c.consumerFlags)
	p := newProcess(e)
	m.set(p.log)
	return p.run(ctx, func(ctx context.Context) error {
		store, err := p.openStore(clickhouseCfg)
		if err != nil {
			return err
		}
		err = p.retry(ctx, "migrate", clickhouse.IsRetryable, func(ctx context.Context) error { return migrate(ctx, store, p.log) })
		if err != nil {
			return err
		}
		if err := p.consumerTopics(ctx, &kafkaCfg, store, false); err != nil {
			return err
		}
		if err := p.startConsumer(ctx, kafkaCfg, &c.consumerFlags, store); err != nil {
			return err
		}
		return p.startMetrics(ctx, c.MetricsListen)
	})
}

type migrateCmd struct {
	clickhouseFlags
	retentionFlags
	Replicated bool `help:"With --cluster: make replicated tables though each shard has one replica, so that others can join. They are where there are several." group:"clickhouse"`
}

// Run brings the schema up to date, and the retention, on one machine or on all hosts of a cluster.
func (c *migrateCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.clickhouseFlags.config()
	keep, moreErr := c.retentionFlags.config()
	if err := errors.Join(c.required(), err, moreErr); err != nil {
		return err
	}
	if cfg.Cluster != "" {
		hosts, err := schema.MigrateCluster(ctx, cfg, schema.ClusterOptions{Replicated: c.Replicated, Retention: keep}, e.log)
		if err != nil {
			return err
		}
		for _, h := range hosts {
			e.log.Info("schema is up to date", "host", h.Addr, "shard", h.Shard, "replica", h.Replica,
				"created", h.Created, "applied", len(h.Applied), "views_renewed", len(h.Views), "spread", h.Spread, "retention_changed", h.Retained)
		}
		return nil
	}
	if c.Replicated {
		return errors.New("--replicated needs --cluster")
	}
	store, err := clickhouse.New(cfg, e.log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer store.Close()
	if err := migrate(ctx, store, e.log); err != nil {
		return err
	}
	return setRetention(ctx, store, keep, e.log)
}

// remote is the configuration of a process that embeds nothing.
func remote(k *kafkaFlags, c *clickhouseFlags) (kafka.Config, clickhouse.Config, error) {
	if err := errors.Join(k.required(), c.required()); err != nil {
		return kafka.Config{}, clickhouse.Config{}, err
	}
	kafkaCfg, err := k.config()
	if err != nil {
		return kafkaCfg, clickhouse.Config{}, err
	}
	clickhouseCfg, err := c.config()
	return kafkaCfg, clickhouseCfg, err
}

var errNotStarted = errors.New("not started")

// process is one running sluice: its parts, its log, its metrics.
type process struct {
	*parts
	log      *slog.Logger
	registry *prometheus.Registry
	pprof    string
	// patience is how long a step of the start is tried; 0 for as long as it takes.
	patience time.Duration
}

func newProcess(e *env) *process {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &process{parts: newParts(), log: e.log, registry: registry, pprof: e.pprof, patience: startTimeout}
}

// run starts the parts, waits for ctx or for one of them to end, and stops
// them. Being told to stop is no error, also not while starting.
func (p *process) run(ctx context.Context, start func(context.Context) error) error {
	begun := time.Now()
	err := p.starting(ctx, start)
	if err == nil {
		p.log.Info(readyLogged, "duration", time.Since(begun).Round(time.Millisecond))
		p.wait(ctx)
		p.log.Info("stopping")
	}
	if ctx.Err() != nil {
		err = nil
	}
	err = errors.Join(err, p.stop())
	if err == nil {
		p.log.Info("stopped")
	}
	return err
}

// starting runs start until it returns, ctx is over, or a part has ended.
func (p *process) starting(ctx context.Context, start func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.pprof != "" {
		if _, err := p.startProfiles(ctx); err != nil {
			return fmt.Errorf("--pprof: %w", err)
		}
	}
	started := make(chan error, 1)
	go func() { started <- start(ctx) }()
	select {
	case err := <-started:
		return err
	case ended := <-p.ended:
		p.ended <- ended
		cancel()
		return errors.Join(errNotStarted, <-started) // the part's own error says why
	}
}

// openStore returns the database, which need not answer yet.
func (p *process) openStore(cfg clickhouse.Config) (*clickhouse.Store, error) {
	store, err := clickhouse.New(cfg, p.log, p.registry)
	if err != nil {
		return nil, err
	}
	p.onStop("clickhouse client", func() error { store.Close(); return nil })
	return store, nil
}

func migrate(ctx context.Context, store *clickhouse.Store, log *slog.Logger) error {
	done, err := store.Migrate(ctx)
	if err != nil {
		return err
	}
	log.Info("schema is up to date", "applied", len(done.Applied))
	if len(done.Views) > 0 {
		log.Info("views were not those of the last migration, and are now", "views", done.Views)
	}
	if len(done.Unknown) > 0 {
		log.Warn("schema is of a newer sluice", "unknown", len(done.Unknown))
	}
	return nil
}

// setRetention changes how long events are kept, unless keep is nil.
func setRetention(ctx context.Context, store *clickhouse.Store, keep *time.Duration, log *slog.Logger) error {
	if keep == nil {
		return nil
	}
	changed, err := store.SetRetention(ctx, *keep)
	if err != nil {
		return err
	}
	kept := "forever"
	if *keep != schema.Forever {
		kept = keep.String()
	}
	log.Info("retention is set", "keep", kept, "changed", changed)
	return nil
}

// retry takes a step of the start until it succeeds, within the process's
// patience: the servers may be starting too.
func (p *process) retry(ctx context.Context, what string, retryable func(error) bool, step func(context.Context) error) error {
	if p.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.patience)
		defer cancel()
	}
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := step(ctx)
		if err == nil {
			return nil
		}
		if !retryable(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		p.log.Warn("step did not succeed, trying again", "step", what, "delay", delay, "error", err)
		pause := time.NewTimer(delay)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// startConsumerLater starts a consumer once the database is ready, however long
// that takes.
func (p *process) startConsumerLater(
	ctx context.Context, cfg kafka.Config, flags *consumerFlags, store *clickhouse.Store, database func(context.Context) error,
) {
	inner := &process{parts: newParts(), log: p.log, registry: p.registry}
	p.start(ctx, "consumer", func(ctx context.Context) error {
		err := inner.retry(ctx, "prepare ClickHouse", clickhouse.IsRetryable, database)
		if err == nil {
			err = inner.consumerTopics(ctx, &cfg, store, true)
		}
		if err == nil {
			err = inner.startConsumer(ctx, cfg, flags, store)
		}
		if err == nil {
			p.log.Info("ClickHouse is ready, and the consumer is started")
			inner.wait(ctx)
		}
		if ctx.Err() != nil {
			err = nil // told to stop
		}
		return errors.Join(err, inner.stop())
	})
}

// startConsumer starts to apply the log.
func (p *process) startConsumer(ctx context.Context, kafkaCfg kafka.Config, flags *consumerFlags, store *clickhouse.Store) error {
	kafkaCfg.ClientMetrics = p.registry
	letters, err := kafka.NewDeadLetters(kafkaCfg, p.log)
	if err != nil {
		return err
	}
	p.onStop("dead letters", func() error { letters.Close(); return nil })
	// The source joins the group at once; before there is a consumer, nothing
	// was read that would have to be finished.
	var reader atomic.Pointer[consumer.Consumer]
	source, err := kafka.NewConsumer(kafkaCfg, func(ctx context.Context, partitions []int32, lost bool) {
		if c := reader.Load(); c != nil {
			c.Revoked(ctx, partitions, lost)
		}
	}, p.log)
	if err != nil {
		return err
	}
	p.onStop("consumer group", func() error { return closing(ctx, source.Close) })
	c, err := consumer.New(flags.config(), source, store, letters, p.log, p.registry)
	if err != nil {
		return err
	}
	reader.Store(c)
	p.start(ctx, "consumer", c.Run)
	p.start(ctx, "lag", func(ctx context.Context) error { return p.watchLag(ctx, source) })
	p.start(ctx, "parts", func(ctx context.Context) error { return p.watchParts(ctx, store) })
	if flags.EraseAfter > 0 {
		e := newEraser(store, flags.EraseAfter, p.log, p.registry)
		p.start(ctx, "erasure", func(ctx context.Context) error { return e.run(ctx, source.Leads) })
	}
	return nil
}

// watchLag keeps the lag of each partition in a gauge.
func (p *process) watchLag(ctx context.Context, source *kafka.Consumer) error {
	lag := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "sluice_consumer", Name: "lag_records",
		Help: "Records of the events topic that are not applied yet, by partition.",
	}, []string{"partition"})
	p.registry.MustRegister(lag)
	tick := time.NewTicker(lagInterval)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, lagInterval)
		records, err := source.Lag(bounded)
		cancel()
		if err != nil && ctx.Err() == nil {
			p.log.Debug("lag is unknown", "error", err)
		}
		for partition, n := range records {
			lag.WithLabelValues(strconv.Itoa(int(partition))).Set(float64(n))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watchParts keeps the parts of each table in a gauge.
func (p *process) watchParts(ctx context.Context, store *clickhouse.Store) error {
	parts := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_clickhouse_partition_parts",
		Help: "Active parts in the fullest partition, by table. ClickHouse delays inserts from 1,000 on.",
	}, []string{"table"})
	p.registry.MustRegister(parts)
	tick := time.NewTicker(partsInterval)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, partsInterval)
		counts, err := store.Parts(bounded)
		cancel()
		if err != nil && ctx.Err() == nil {
			p.log.Debug("parts are unknown", "error", err)
		}
		for table, n := range counts {
			parts.WithLabelValues(table).Set(float64(n))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// startAPI starts to serve.
func (p *process) startAPI(
	ctx context.Context, kafkaCfg kafka.Config, cfg api.Config, flags *httpFlags, store *clickhouse.Store,
) error {
	fence, err := p.apiTopics(ctx, &kafkaCfg, store)
	if err != nil {
		return err
	}
	kafkaCfg.ClientMetrics, kafkaCfg.Producer.Fence = p.registry, fence
	watcher, err := kafka.NewWatcher(kafkaCfg, p.log)
	if err != nil {
		return err
	}
	p.start(ctx, "watcher", watcher.Run)
	kafkaCfg.Producer.AckTimeout = flags.AckTimeout
	producer, err := kafka.NewProducer(kafkaCfg, p.log, p.registry)
	if err != nil {
		return err
	}
	p.onStop("producer", func() error { return closing(ctx, producer.Close) })
	if flags.APIKeys != "" {
		keys, err := api.OpenKeyStore(flags.APIKeys, p.log)
		if err != nil {
			return fmt.Errorf("--api-keys: %w", err)
		}
		cfg.Keys = keys
		p.start(ctx, "api keys", keys.Run)
	}
	server, err := api.New(cfg, api.Ports{ //nolint:contextcheck // it starts nothing; Run gets the context
		Log: producer, Applied: watcher, Histories: store, Events: store, Analytics: store, Metrics: p.registry,
	}, p.log, p.registry)
	if err != nil {
		return err
	}
	if err := server.Listen(ctx); err != nil {
		return err
	}
	p.start(ctx, "api", server.Run)
	return nil
}

// startMetrics serves the metrics of a process that has no API.
func (p *process) startMetrics(ctx context.Context, addr string) error {
	if addr == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	at, err := p.startHTTP(ctx, "metrics", addr, mux, metricsTimeout)
	if err != nil {
		return fmt.Errorf("--metrics-listen: %w", err)
	}
	p.log.Info("listening for metrics", "addr", at.String())
	return nil
}

// startProfiles serves Go's profiles. They tell everything about the process, so
// only this machine may ask for them, and no page that a browser on it has open.
func (p *process) startProfiles(ctx context.Context) (net.Addr, error) {
	host, _, err := net.SplitHostPort(p.pprof)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("%q is not a loopback address", host)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	at, err := p.startHTTP(ctx, "profiles", p.pprof, localOnly(mux), profileTimeout)
	if err == nil {
		p.log.Info("listening for profiles", "addr", at.String())
	}
	return at, err
}

// localOnly refuses what a page in a browser on this machine can ask for under
// a name of its own that it has rebound to a loopback address.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !api.IsLocal(r) {
			http.Error(w, "only localhost, 127.0.0.1 and [::1] are answered", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// startHTTP serves what is for operators.
func (p *process) startHTTP(ctx context.Context, name, addr string, handler http.Handler, timeout time.Duration) (net.Addr, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: timeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.start(ctx, name, func(ctx context.Context) error {
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
			return closing(ctx, server.Shutdown)
		}
	})
	return listener.Addr(), nil
}

// closing calls a step of the stop, which ctx's end has brought about, with its bound.
func closing(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return step(ctx)
}
