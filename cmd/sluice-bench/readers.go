package main

import (
	"context"
	"errors"
	"time"

	"github.com/sluicehq/sluice/internal/bench"
)

// readersCmd measures what readers wait.
type readersCmd struct {
	systemFlags
	Events int           `help:"Number of events to create first." default:"500000"`
	Step   time.Duration `help:"How long each step lasts." default:"15s"`
	Askers int           `help:"Number of clients that ask the most expensive query at the same time." default:"50"`
	Seed   uint64        `help:"Seed of the random choice of events." default:"1"`
	JSON   string        `help:"Write the figures to this file." placeholder:"FILE" type:"path"`
}

// Run runs the benchmark.
func (c *readersCmd) Run(ctx context.Context, e *env) (err error) {
	cfg := bench.ReadersConfig{Events: c.Events, Step: c.Step, Askers: c.Askers, Seed: c.Seed, Progress: e.stdout}
	if err := cfg.Validate(); err != nil {
		return err
	}
	var remove func() error
	if cfg.System, remove, err = c.system(""); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	report, err := bench.Readers(ctx, cfg, e.log)
	if err != nil {
		return err
	}
	report.Machine = bench.ThisMachine(version)
	return bench.WriteJSON(c.JSON, report)
}
