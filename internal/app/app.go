// Package app builds and runs a process of Sluice: it knows which parts a process
// has, which of them are embedded, in which order they start, and that they stop
// in reverse. The commands of cmd/sluice read flags and call it.
package app

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
)

// prepareTimeout is the longest that Serve prepares a ClickHouse that is elsewhere
// before it takes writes without it.
const prepareTimeout = 30 * time.Second

// ProcessConfig is what every long-running process has.
type ProcessConfig struct {
	// MemoryLimit is the most memory of Go's runtime; see [ByteSize]. 0 is
	// GOMEMLIMIT, or 448 MiB without it.
	MemoryLimit ByteSize
	// ProfilesAddr is the loopback address, host:port, at which Go's profiles are
	// served. Empty for none.
	ProfilesAddr string
}

// APIConfig says how the HTTP API is served. A number of connections in it is
// kept; without one, the memory limit decides.
type APIConfig struct {
	api.Config
	// KeysFile is the file of API keys. Empty for none.
	KeysFile string
	// AckTimeout is the longest wait for the broker's acknowledgement.
	AckTimeout time.Duration
}

// ConsumerConfig says how the log is consumed. Sizes in it that are 0 are
// decided by the memory limit.
type ConsumerConfig struct {
	consumer.Config
	// EraseAfter is how long deleted content may stay on ClickHouse's disk before
	// its month is merged whole. 0 leaves it to ClickHouse's own merges.
	EraseAfter time.Duration
}

// ServeConfig is the configuration of [Serve].
type ServeConfig struct {
	ProcessConfig
	API      APIConfig
	Consumer ConsumerConfig
	// Kafka is where the log is. Without brokers, one is embedded.
	Kafka kafka.Config
	// ClickHouse is the database. Without an address, one is embedded.
	ClickHouse clickhouse.Config
	// SQL is the user of that database for queries in SQL. Without an address, there is
	// none; an embedded database has one of its own.
	SQL      clickhouse.SQLConfig
	Embedded EmbeddedConfig
	// Retention is how long events are kept; nil leaves it as it is.
	Retention *time.Duration
}

// Serve runs the whole pipeline until ctx is over: broker and database where
// none are given, consumer, API. It stops them in reverse.
func Serve(ctx context.Context, cfg ServeConfig, log *slog.Logger) error {
	m, err := divide(cfg.MemoryLimit, roles{api: true, consumer: true, broker: len(cfg.Kafka.Brokers) == 0}, memoryWants{
		batchItems: cfg.API.BatchItemsMax, connections: cfg.API.ConnectionsMax,
		flushBytes: cfg.Consumer.BatchBytesMax, recentBytes: cfg.Consumer.RecentBytesMax,
	})
	if err != nil {
		return err
	}
	m.applyAPI(&cfg.API.Config)
	m.applyKafka(&cfg.Kafka)
	m.applyConsumer(&cfg.Consumer.Config)
	remote := cfg.ClickHouse.Addr != ""
	p := newProcess(log)
	m.set(p.log)
	return p.run(ctx, cfg.ProfilesAddr, func(ctx context.Context) error {
		if err := p.startDatabase(ctx, &cfg.Embedded, &cfg.ClickHouse, &cfg.SQL); err != nil {
			return err
		}
		if err := p.startBroker(ctx, &cfg.Embedded, &cfg.Kafka); err != nil {
			return err
		}
		store, err := p.openStore(cfg.ClickHouse)
		if err != nil {
			return err
		}
		prepare := func(ctx context.Context) error {
			if err := migrate(ctx, store, p.log); err != nil {
				return err
			}
			return setRetention(ctx, store, cfg.Retention, p.log)
		}
		// The embedded database has been started, and is waited for. One that is
		// elsewhere may be away: then writes are taken, and it is waited for beside them.
		if remote {
			bounded, cancel := context.WithTimeout(ctx, prepareTimeout)
			err = prepare(bounded)
			cancel()
		} else {
			err = p.retry(ctx, "migrate", clickhouse.IsRetryable, prepare)
		}
		if clickhouse.IsRetryable(err) && remote {
			p.log.Warn("ClickHouse is not ready: the consumer starts when it is", "error", err)
			p.startConsumerLater(ctx, cfg.Kafka, cfg.Consumer, store, prepare)
			return p.startAPI(ctx, cfg.Kafka, cfg.API, store, cfg.SQL)
		}
		if err != nil {
			return err
		}
		consumerKafka := cfg.Kafka
		if err := p.consumerTopics(ctx, &consumerKafka, store, true); err != nil {
			return err
		}
		if err := p.startConsumer(ctx, consumerKafka, cfg.Consumer, store); err != nil {
			return err
		}
		return p.startAPI(ctx, cfg.Kafka, cfg.API, store, cfg.SQL)
	})
}

// ServeAPIConfig is the configuration of [ServeAPI].
type ServeAPIConfig struct {
	ProcessConfig
	API        APIConfig
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	// SQL is the user of ClickHouse for queries in SQL. Without an address, there is none.
	SQL clickhouse.SQLConfig
}

// ServeAPI runs the API until ctx is over, on a Kafka and a ClickHouse that are
// elsewhere. It only reads from ClickHouse, which may be away.
func ServeAPI(ctx context.Context, cfg ServeAPIConfig, log *slog.Logger) error {
	m, err := divide(cfg.MemoryLimit, roles{api: true}, memoryWants{batchItems: cfg.API.BatchItemsMax, connections: cfg.API.ConnectionsMax})
	if err != nil {
		return err
	}
	m.applyAPI(&cfg.API.Config)
	m.applyKafka(&cfg.Kafka)
	p := newProcess(log)
	m.set(p.log)
	return p.run(ctx, cfg.ProfilesAddr, func(ctx context.Context) error {
		store, err := p.openStore(cfg.ClickHouse)
		if err != nil {
			return err
		}
		return p.startAPI(ctx, cfg.Kafka, cfg.API, store, cfg.SQL)
	})
}

// ConsumeConfig is the configuration of [Consume].
type ConsumeConfig struct {
	ProcessConfig
	Consumer   ConsumerConfig
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	// MetricsAddr is the address, host:port, of /metrics and /healthz. Empty for none.
	MetricsAddr string
}

// Consume runs the consumer until ctx is over, on a Kafka and a ClickHouse that
// are elsewhere.
func Consume(ctx context.Context, cfg ConsumeConfig, log *slog.Logger) error {
	m, err := divide(cfg.MemoryLimit, roles{consumer: true}, memoryWants{flushBytes: cfg.Consumer.BatchBytesMax, recentBytes: cfg.Consumer.RecentBytesMax})
	if err != nil {
		return err
	}
	m.applyKafka(&cfg.Kafka)
	m.applyConsumer(&cfg.Consumer.Config)
	p := newProcess(log)
	m.set(p.log)
	return p.run(ctx, cfg.ProfilesAddr, func(ctx context.Context) error {
		store, err := p.openStore(cfg.ClickHouse)
		if err != nil {
			return err
		}
		err = p.retry(ctx, "migrate", clickhouse.IsRetryable, func(ctx context.Context) error { return migrate(ctx, store, p.log) })
		if err != nil {
			return err
		}
		if err := p.consumerTopics(ctx, &cfg.Kafka, store, false); err != nil {
			return err
		}
		if err := p.startConsumer(ctx, cfg.Kafka, cfg.Consumer, store); err != nil {
			return err
		}
		if cfg.MetricsAddr == "" {
			return nil
		}
		if err := p.startMetrics(ctx, cfg.MetricsAddr); err != nil {
			return fmt.Errorf("--metrics-listen: %w", err)
		}
		return nil
	})
}
