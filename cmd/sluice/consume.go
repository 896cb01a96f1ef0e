package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/app"
)

type consumeCmd struct {
	memoryFlags
	kafkaFlags
	clickhouseFlags
	consumerFlags
	MetricsListen string `help:"Address that serves /metrics and /healthz, host:port. Empty for none." default:"127.0.0.1:9101" group:"http"`
}

// Run runs the consumer on a Kafka and a ClickHouse that are elsewhere.
func (c *consumeCmd) Run(ctx context.Context, e *env) error {
	kafkaCfg, clickhouseCfg, err := remote(&c.kafkaFlags, &c.clickhouseFlags)
	if err := errors.Join(err, c.checkConsumer()); err != nil {
		return err
	}
	c.applyWriter(&clickhouseCfg)
	return app.Consume(ctx, app.ConsumeConfig{
		ProcessConfig: e.process(&c.memoryFlags), Consumer: c.consumerFlags.config(),
		Kafka: kafkaCfg, ClickHouse: clickhouseCfg, MetricsAddr: c.MetricsListen,
	}, e.log)
}
