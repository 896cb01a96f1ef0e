package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/app"
)

type eraseCmd struct {
	clickhouseFlags
}

// Run merges, now, every month that has deleted content.
func (c *eraseCmd) Run(ctx context.Context, e *env) error {
	cfg, err := c.config()
	if err := errors.Join(c.required(), err); err != nil {
		return err
	}
	return app.Erase(ctx, cfg, e.log)
}
