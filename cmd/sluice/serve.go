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
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
)

const (
	// startTimeout bounds how long a start waits for Kafka and ClickHouse.
	startTimeout = 2 * time.Minute
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
	httpFlags
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
	if err := errors.Join(err, moreErr, c.checkConsumer()); err != nil {
		return err
	}
	p := newProcess(e)
	return p.run(ctx, func(ctx context.Context) error {
		clickhouseCfg, err := c.database(ctx, p, &c.clickhouseFlags)
		if err != nil {
			return err
		}
		if err := c.broker(ctx, p, &kafkaCfg); err != nil {
			return err
		}
		store, err := p.openStore(ctx, clickhouseCfg)
		if err != nil {
			return err
		}
		err = p.retry(ctx, "set the retention", clickhouse.IsRetryable, func(ctx context.Context) error {
			return setRetention(ctx, store, keep, p.log)
		})
		if err != nil {
			return err
		}
		if err := p.ensureTopics(ctx, &kafkaCfg, store, true); err != nil {
			return err
		}
		if err := p.startConsumer(ctx, kafkaCfg, &c.consumerFlags, store); err != nil {
			return err
		}
		return p.startAPI(ctx, kafkaCfg, cfg, &c.httpFlags, store)
	})
}

type apiCmd struct {
	httpFlags
	kafkaFlags
	clickhouseFlags
}

// Run starts the API on a Kafka and a ClickHouse that are elsewhere.
func (c *apiCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.httpFlags.config()
	kafkaCfg, clickhouseCfg, moreErr := remote(&c.kafkaFlags, &c.clickhouseFlags)
	if err := errors.Join(err, moreErr); err != nil {
		return err
	}
	p := newProcess(e)
	return p.run(ctx, func(ctx context.Context) error {
		store, err := p.openStore(ctx, clickhouseCfg)
		if err != nil {
			return err
		}
		if err := p.ensureTopics(ctx, &kafkaCfg, store, true); err != nil {
			return err
		}
		return p.startAPI(ctx, kafkaCfg, cfg, &c.httpFlags, store)
	})
}

type consumeCmd struct {
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
	p := newProcess(e)
	return p.run(ctx, func(ctx context.Context) error {
		store, err := p.openStore(ctx, clickhouseCfg)
		if err != nil {
			return err
		}
		if err := p.ensureTopics(ctx, &kafkaCfg, store, false); err != nil {
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
		hosts, err := clickhouse.MigrateCluster(ctx, cfg, clickhouse.ClusterOptions{Replicated: c.Replicated, Retention: keep}, e.log)
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
}

// memoryLimit is Go's soft limit of memory where GOMEMLIMIT does not set one:
// from there on garbage is collected before the heap has doubled. What the
// bounds of buffers, batches and recent rows let live is below it.
const memoryLimit = 448 << 20

func newProcess(e *env) *process {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &process{parts: newParts(), log: e.log, registry: registry, pprof: e.pprof}
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

// openStore connects to the database and migrates it.
func (p *process) openStore(ctx context.Context, cfg clickhouse.Config) (*clickhouse.Store, error) {
	store, err := clickhouse.New(cfg, p.log, p.registry)
	if err != nil {
		return nil, err
	}
	p.onStop("clickhouse client", func() error { store.Close(); return nil })
	return store, p.retry(ctx, "migrate", clickhouse.IsRetryable, func(ctx context.Context) error {
		return migrate(ctx, store, p.log)
	})
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
	if *keep != clickhouse.Forever {
		kept = keep.String()
	}
	log.Info("retention is set", "keep", kept, "changed", changed)
	return nil
}

var (
	errNotDrained     = errors.New("the generation before is not drained: consume it to its end first")
	errGenerationOver = errors.New("a later generation has begun: writes to this one would lose to its")
)

// generationOver says that a generation takes no writes any more.
func generationOver(generation, last int) error {
	return fmt.Errorf("generation %d: %w; give --kafka-generation=%d", generation, errGenerationOver, last)
}

// ensureTopics makes the topics, and checks that the events topic is the one
// that the database knows, with all that was applied of it, and that its
// generation's time has come; and, for a process that writes, is not over. It
// puts the number of its partitions and its id into cfg.
func (p *process) ensureTopics(ctx context.Context, cfg *kafka.Config, store *clickhouse.Store, writes bool) error {
	err := p.retry(ctx, "compare the generations",
		func(err error) bool { return !errors.Is(err, errNotDrained) && !errors.Is(err, errGenerationOver) },
		func(ctx context.Context) error { return p.checkGeneration(ctx, *cfg, store, writes) })
	if err != nil {
		return err
	}
	var info kafka.TopicInfo
	err = p.retry(ctx, "reach Kafka", func(err error) bool { return !errors.Is(err, kafka.ErrTopicMismatch) },
		func(ctx context.Context) (err error) {
			info, err = kafka.EnsureTopics(ctx, *cfg, p.log)
			return err
		})
	if err != nil {
		return err
	}
	cfg.Partitions, cfg.TopicID = info.Partitions, info.ID
	err = p.retry(ctx, "record the topic", recordRetryable, func(ctx context.Context) error {
		return store.RecordTopic(ctx, info.Generation, info.Topic, info.ID, info.Partitions)
	})
	if err != nil {
		return err
	}
	return p.retry(ctx, "compare the log with the commits", func(err error) bool { return !errors.Is(err, kafka.ErrDataLoss) },
		func(ctx context.Context) error { return kafka.CheckCommits(ctx, *cfg, p.log) })
}

// checkGeneration compares the generation with those before and after it. A
// generation begins once all before it are applied: an update in it could else
// meet an event whose create is not. Once it has begun, records that come late
// to one before are only warned of; Kafka forgets the commits of a topic that
// nobody reads any more, before its last records.
func (p *process) checkGeneration(ctx context.Context, cfg kafka.Config, store *clickhouse.Store, writes bool) error {
	begun, err := store.Generations(ctx)
	if err != nil {
		return err
	}
	if len(begun) > 0 && begun[len(begun)-1] > cfg.Generation {
		last := begun[len(begun)-1]
		if writes {
			return generationOver(cfg.Generation, last)
		}
		p.log.Warn("a later generation has begun, and this one is only drained", "generation", cfg.Generation, "later", last)
		return nil
	}
	if cfg.Generation == 1 {
		return nil
	}
	generations, err := kafka.Generations(ctx, cfg, p.log)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range generations {
		switch {
		case g.Number >= cfg.Generation || g.Pending == 0:
		case slices.Contains(begun, cfg.Generation):
			p.log.Warn("records of an earlier generation are not applied", "topic", g.Topic, "records", g.Pending)
		default:
			errs = append(errs, fmt.Errorf("generation %d: %w: group %q has not applied %d records of %s",
				cfg.Generation, errNotDrained, cfg.Group, g.Pending, g.Topic))
		}
	}
	return errors.Join(errs...)
}

// recordRetryable reports whether the topic may be the right one, for all that
// the database could say.
func recordRetryable(err error) bool {
	return !errors.Is(err, clickhouse.ErrTopicRecreated) && !errors.Is(err, clickhouse.ErrPartitionsChanged)
}

// retry takes a step of the start until it succeeds, within startTimeout: the
// servers may be starting too.
func (p *process) retry(ctx context.Context, what string, retryable func(error) bool, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
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
	kafkaCfg.ClientMetrics = p.registry
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
