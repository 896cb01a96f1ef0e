package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/app"
)

type apiCmd struct {
	memoryFlags
	httpFlags
	readerFlags
	kafkaFlags
	clickhouseFlags
	sqlFlags
}

// Run runs the API on a Kafka and a ClickHouse that are elsewhere.
func (c *apiCmd) Run(ctx context.Context, e *env) (err error) {
	cfg := app.ServeAPIConfig{ProcessConfig: e.process(&c.memoryFlags)}
	cfg.API, err = c.httpFlags.config()
	kafkaCfg, clickhouseCfg, moreErr := remote(&c.kafkaFlags, &c.clickhouseFlags)
	sqlCfg, sqlErr := c.sqlFlags.config()
	if err := errors.Join(err, moreErr, sqlErr, c.checkReader()); err != nil {
		return err
	}
	cfg.SQL = sqlCfg
	cfg.Kafka, cfg.ClickHouse = kafkaCfg, clickhouseCfg
	c.applyAdmission(&cfg.API.Config)
	c.applyReader(&cfg.ClickHouse)
	return app.ServeAPI(ctx, cfg, e.log)
}
