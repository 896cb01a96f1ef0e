package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluicehq/sluice/internal/clickhouse"
)

const (
	// startTimeout is the longest that a start waits for Kafka and ClickHouse.
	startTimeout = 2 * time.Minute
	// closeTimeout is the longest that a step of the stop may take, such as a
	// producer's last flush, or leaving the group.
	closeTimeout = 10 * time.Second
	// readyLogged is the message that a supervisor, a script or a person looks for.
	readyLogged = "ready"
)

var errNotStarted = errors.New("not started")

// process is a running sluice: its parts, its log and its metrics.
type process struct {
	*parts
	log      *slog.Logger
	registry *prometheus.Registry
	// patience is how long a step of the start is tried; 0 for as long as it takes.
	patience time.Duration
}

func newProcess(log *slog.Logger) *process {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &process{parts: newParts(), log: log, registry: registry, patience: startTimeout}
}

// run starts the parts, with profiles at the address if there is one, waits for
// ctx or for one of the parts to end, and stops all of them. Being told to stop is
// no error, also not while starting.
func (p *process) run(ctx context.Context, profilesAddr string, start func(context.Context) error) error {
	begun := time.Now()
	err := p.starting(ctx, func(ctx context.Context) error {
		if profilesAddr != "" {
			if _, err := p.startProfiles(ctx, profilesAddr); err != nil {
				return fmt.Errorf("--pprof: %w", err)
			}
		}
		return start(ctx)
	})
	if err == nil {
		p.log.Info(readyLogged, "duration", time.Since(begun).Round(time.Millisecond))
		p.wait(ctx)
		p.log.Info("stopping")
	}
	if ctx.Err() != nil {
		err = nil
	}
	err = errors.Join(err, p.stop())
	if err == nil {
		p.log.Info("stopped")
	}
	return err
}

// starting runs start until it returns, ctx is over, or a part has ended.
func (p *process) starting(ctx context.Context, start func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- start(ctx) }()
	select {
	case err := <-started:
		return err
	case ended := <-p.ended:
		p.ended <- ended
		cancel()
		return errors.Join(errNotStarted, <-started) // the part's own error says why
	}
}

// openStore returns the database, which need not answer yet.
func (p *process) openStore(cfg clickhouse.Config) (*clickhouse.Store, error) {
	store, err := clickhouse.New(cfg, p.log, p.registry)
	if err != nil {
		return nil, err
	}
	p.onStop("clickhouse client", func() error { store.Close(); return nil })
	return store, nil
}

// retry takes a step of the start until it succeeds, within the process's
// patience: the servers may be starting too.
func (p *process) retry(ctx context.Context, what string, retryable func(error) bool, step func(context.Context) error) error {
	if p.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.patience)
		defer cancel()
	}
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := step(ctx)
		if err == nil {
			return nil
		}
		if !retryable(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		p.log.Warn("step did not succeed, trying again", "step", what, "delay", delay, "error", err)
		pause := time.NewTimer(delay)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// closing calls a step of the stop, which ctx's end has brought about, with its bound.
func closing(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return step(ctx)
}
