package main

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/bench"
)

// scaleCmd measures the cost of writes and queries against the table's size.
type scaleCmd struct {
	systemFlags
	Rows   []int  `help:"Numbers of rows in the table of core rows. Each number is a run on a Sluice of its own. 100 million rows need 5 GB of disk and some minutes." default:"1000000,10000000,100000000" placeholder:"N"`
	Days   int    `help:"Number of days before now that the rows are spread over." default:"150"`
	Writes int    `help:"Number of writes in a round." default:"50000"`
	Seed   uint64 `help:"Seed of the random choice of events." default:"1"`
	Dir    string `help:"Directory for the data, which is removed afterwards. By default the system's directory for temporary files." placeholder:"DIR" type:"path"`
	JSON   string `help:"Write the figures to this file." placeholder:"FILE" type:"path"`
}

// Run runs the benchmark.
func (c *scaleCmd) Run(ctx context.Context, e *env) (err error) {
	cfg := bench.ScaleConfig{Rows: c.Rows, Days: c.Days, Writes: c.Writes, Seed: c.Seed, Progress: e.stdout}
	if err := cfg.Validate(); err != nil {
		return err
	}
	var remove func() error
	if cfg.System, remove, err = c.system(c.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	sizes, err := bench.Scale(ctx, cfg, e.log)
	if err != nil {
		return err
	}
	return bench.WriteJSON(c.JSON, bench.ScaleReport{Machine: bench.ThisMachine(version), Days: c.Days, Sizes: sizes})
}
