package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
)

// runCmd measures a load.
type runCmd struct {
	systemFlags
	URL          string   `help:"Address of the API of a running Sluice. By default one is started on an empty directory, which is removed at the end." placeholder:"URL"`
	APIKey       string   `help:"API key with the scopes read and write." placeholder:"KEY"`
	KafkaBrokers []string `help:"Kafka brokers that the started Sluice uses instead of its embedded broker." placeholder:"HOST:PORT"`
	Events       int      `help:"Number of events to create." default:"500000"`
	Updates      int      `help:"Number of random events to update then." default:"200000"`
	Deletes      int      `help:"Number of random events to delete then." default:"200000"`
	Batch        int      `help:"Number of writes in a request. 1 uses POST /event, PUT and DELETE." default:"1000"`
	Connections  int      `help:"Number of requests at the same time." default:"4"`
	Embeddings   string   `help:"Embeddings of the events: none, base64 or json." enum:"none,base64,json" default:"none"`
	Data         string   `help:"Gzipped file of events to repeat, one JSON object on each line. By default the conversations that come with Sluice." placeholder:"FILE" type:"path"`
	Compare      bool     `help:"Also measure what limits the creates, and how fast ClickHouse's own Kafka engine drains them."`
	Seed         uint64   `help:"Seed of all random choices." default:"1"`
	JSON         string   `help:"Write the figures to this file." placeholder:"FILE" type:"path"`
}

// Run runs the benchmark.
func (c *runCmd) Run(ctx context.Context, e *env) (err error) {
	cfg := bench.LoadConfig{
		Encoding: map[string]workload.Encoding{"none": workload.Text, "base64": workload.Base64, "json": workload.JSONArrays}[c.Embeddings],
		Corpus:   c.Data, Seed: c.Seed, Events: c.Events, Updates: c.Updates, Deletes: c.Deletes,
		Batch: c.Batch, Connections: c.Connections, Progress: e.stdout,
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	measured, err := c.measure(ctx, e, cfg)
	if err != nil {
		return err
	}
	report := bench.Report{Machine: bench.ThisMachine(version), Cases: []bench.Case{*measured}}
	if err := report.Text(e.stdout); err != nil {
		return err
	}
	return bench.WriteJSON(c.JSON, report)
}

// measure runs the load on the Sluice that the flags say.
func (c *runCmd) measure(ctx context.Context, e *env, cfg bench.LoadConfig) (measured *bench.Case, err error) {
	if c.URL != "" {
		if c.Compare {
			return nil, errors.New("--compare: needs a Sluice that is started here, not --url")
		}
		target := workload.Target{Key: c.APIKey}
		if target.URL, err = url.Parse(strings.TrimSuffix(c.URL, "/")); err != nil {
			return nil, fmt.Errorf("--url: %w", err)
		}
		measured = bench.NewCase(cfg, c.broker())
		measured.Phases, err = bench.Load(ctx, target, cfg)
		return measured, err
	}
	system, remove, err := c.system("")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	system.Brokers = c.KafkaBrokers
	one := bench.CaseConfig{System: system, Broker: c.broker(), Load: cfg}
	if c.Compare {
		one.LimitEvents, one.AlternativeEvents = c.Events, c.Events
	}
	return bench.MeasureCase(ctx, one, e.log)
}

// broker says which one the load went through.
func (c *runCmd) broker() string {
	switch {
	case c.URL != "":
		return c.URL
	case len(c.KafkaBrokers) > 0:
		return strings.Join(c.KafkaBrokers, ",")
	}
	return bench.EmbeddedBroker
}
