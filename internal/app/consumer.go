package app

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
)

const (
	// lagInterval is how often the lag is measured.
	lagInterval = 5 * time.Second
	// partsInterval is how often ClickHouse is asked for the parts of its tables.
	partsInterval = 15 * time.Second
)

// startConsumerLater starts a consumer once the database is ready, however long
// that takes.
func (p *process) startConsumerLater(
	ctx context.Context, cfg kafka.Config, consumerCfg ConsumerConfig, store *clickhouse.Store, database func(context.Context) error,
) {
	inner := &process{parts: newParts(), log: p.log, registry: p.registry}
	p.start(ctx, "consumer", func(ctx context.Context) error {
		err := inner.retry(ctx, "prepare ClickHouse", clickhouse.IsRetryable, database)
		if err == nil {
			err = inner.consumerTopics(ctx, &cfg, store, true)
		}
		if err == nil {
			err = inner.startConsumer(ctx, cfg, consumerCfg, store)
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
func (p *process) startConsumer(ctx context.Context, kafkaCfg kafka.Config, cfg ConsumerConfig, store *clickhouse.Store) error {
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
	c, err := consumer.New(cfg.Config, source, store, letters, p.log, p.registry)
	if err != nil {
		return err
	}
	reader.Store(c)
	p.start(ctx, "consumer", c.Run)
	p.start(ctx, "lag", func(ctx context.Context) error { return p.watchLag(ctx, source) })
	p.start(ctx, "parts", func(ctx context.Context) error { return p.watchParts(ctx, store) })
	x := newIndexer(store, p.log, p.registry)
	p.start(ctx, "index of words", func(ctx context.Context) error { return x.run(ctx, source.Leads) })
	if cfg.EraseAfter > 0 {
		e := newEraser(store, cfg.EraseAfter, p.log, p.registry)
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
