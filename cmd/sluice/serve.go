package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/app"
)

type serveCmd struct {
	memoryFlags
	httpFlags
	readerFlags
	kafkaFlags
	clickhouseFlags
	sqlFlags
	retentionFlags
	consumerFlags
	embeddedFlags
}

// Run runs the whole pipeline.
func (c *serveCmd) Run(ctx context.Context, e *env) error {
	cfg := app.ServeConfig{ProcessConfig: e.process(&c.memoryFlags), Consumer: c.consumerFlags.config(), Embedded: c.embeddedFlags.config()}
	var errs [5]error
	cfg.API, errs[0] = c.httpFlags.config()
	cfg.Kafka, errs[1] = c.kafkaFlags.config()
	cfg.Retention, errs[2] = c.retentionFlags.config()
	switch {
	case c.ClickhouseURL != "":
		cfg.ClickHouse, errs[3] = c.clickhouseFlags.config()
	case c.Cluster != "":
		errs[3] = errors.New("--cluster needs --clickhouse-url: the embedded database is on one machine")
	}
	switch {
	case c.ClickhouseURL != "":
		cfg.SQL, errs[4] = c.sqlFlags.config()
	case c.ClickhouseSQLURL != "":
		errs[4] = errors.New("--clickhouse-sql-url needs --clickhouse-url: the embedded database has a user for SQL of its own")
	}
	if err := errors.Join(errors.Join(errs[:]...), c.checkConsumer(), c.checkReader()); err != nil {
		return err
	}
	c.applyAdmission(&cfg.API.Config)
	c.applyWriter(&cfg.ClickHouse)
	c.applyReader(&cfg.ClickHouse)
	return app.Serve(ctx, cfg, e.log)
}
