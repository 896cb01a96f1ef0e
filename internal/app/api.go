package app

import (
	"context"
	"fmt"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/fault"
	"github.com/sluicehq/sluice/internal/kafka"
)

// startAPI starts the producer, the watcher of what is applied, and the HTTP server.
func (p *process) startAPI(
	ctx context.Context, kafkaCfg kafka.Config, cfg APIConfig, store *clickhouse.Store, sqlCfg clickhouse.SQLConfig,
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
	kafkaCfg.Producer.AckTimeout = cfg.AckTimeout
	producer, err := kafka.NewProducer(kafkaCfg, p.log, p.registry)
	if err != nil {
		return err
	}
	p.onStop("producer", func() error { return closing(ctx, producer.Close) })
	if cfg.KeysFile != "" {
		keys, err := api.OpenKeyStore(cfg.KeysFile, p.log)
		if err != nil {
			return fmt.Errorf("--api-keys: %w", err)
		}
		cfg.Keys = keys
		p.start(ctx, "api keys", keys.Run)
	}
	ports := api.Ports{Log: producer, Applied: watcher, Histories: store, Events: store, Analytics: store, Search: store, Exports: store, Agents: newMCP("", agentTime(&cfg.Config)), Metrics: p.registry}
	if sqlCfg.Addr != "" {
		sqlCfg.AnswerTimeout = cfg.QueryTimeout
		sql, err := clickhouse.OpenSQL(sqlCfg)
		if err != nil {
			return fmt.Errorf("--clickhouse-sql-url: %w", err)
		}
		p.onStop("clickhouse client for SQL", func() error { sql.Close(); return nil })
		ports.SQL = sql
	}
	cfg.Now = fault.Now
	server, err := api.New(cfg.Config, ports, p.log, p.registry) //nolint:contextcheck // it starts nothing; Run gets the context
	if err != nil {
		return err
	}
	if err := server.Listen(ctx); err != nil {
		return err
	}
	p.start(ctx, "api", server.Run)
	return nil
}
