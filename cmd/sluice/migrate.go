package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/app"
)

type migrateCmd struct {
	clickhouseFlags
	retentionFlags
	Replicated bool `help:"With --cluster, make replicated tables also if each shard has one replica, so that others can join later. With several replicas the tables are always replicated." group:"clickhouse"`
}

// Run brings the schema up to date, and the retention, on one machine or on all hosts of a cluster.
func (c *migrateCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.clickhouseFlags.config()
	keep, moreErr := c.retentionFlags.config()
	if err := errors.Join(c.required(), err, moreErr); err != nil {
		return err
	}
	if c.Replicated && cfg.Cluster == "" {
		return errors.New("--replicated needs --cluster")
	}
	return app.Migrate(ctx, app.MigrateConfig{ClickHouse: cfg, Replicated: c.Replicated, Retention: keep}, e.log)
}
