package app

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
)

// eraseInterval is how often deleted content is looked for, or a twentieth of
// the time that it may stay.
const eraseInterval = 10 * time.Minute

// eraser takes what was deleted off ClickHouse's disk.
type eraser struct {
	months *schema.Erasures
	after  time.Duration
	log    *slog.Logger

	// since is the local Unix time, in nanoseconds, from which on the content that
	// waits longest has waited; 0 for none.
	since    atomic.Int64
	merges   prometheus.Counter
	failures prometheus.Counter
}

// newEraser returns an eraser that merges each month whose deleted content has
// waited as long as after says.
func newEraser(store *clickhouse.Store, after time.Duration, log *slog.Logger, reg prometheus.Registerer) *eraser {
	const ns = "sluice_erasure"
	e := &eraser{
		months: store.Erasures(after), after: after, log: log,
		merges: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "merges_total", Help: "Months of a table that were merged whole, to take deleted content off ClickHouse's disk. Months whose tombstones cover nothing are not.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "failures_total", Help: "Merges of months that failed, and searches for those that need one. All are tried again.",
		}),
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: ns, Name: "waiting_seconds",
		Help: "How long deleted content has waited at most to leave ClickHouse's disk. A tombstone that covers nothing does not wait. 0 in all consumers but the one that sees to it.",
	}, func() float64 {
		since := e.since.Load()
		if since == 0 {
			return 0
		}
		return time.Since(time.Unix(0, since)).Seconds()
	})
	bound := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: ns, Name: "after_seconds", Help: "How long deleted content waits before its month is merged whole: --erase-after.",
	})
	bound.Set(after.Seconds())
	reg.MustRegister(e.merges, e.failures, waiting, bound)
	return e
}

// run looks for such months, and merges them, until ctx is over. It does so only
// while leads reports that this process is the one of the group that erases.
func (e *eraser) run(ctx context.Context, leads func() bool) error {
	tick := time.NewTicker(max(min(e.after/20, eraseInterval), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if !leads() {
			e.since.Store(0)
			continue
		}
		if err := e.erase(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("deleted content is still on the disk, trying again later", "error", err)
		}
	}
}

// erase looks once, and merges the months whose time has come, one by one, as
// each merge takes the disk's whole attention. A month that fails does not keep
// the others from theirs.
func (e *eraser) erase(ctx context.Context) error {
	all, err := e.months.Unerased(ctx)
	failed := []error{err}
	if err != nil {
		e.failures.Inc()
	}
	now := time.Now()
	kept := time.Duration(0) // the longest wait of those that are not merged
	for i, u := range all {
		// Those that come after have not waited longer.
		e.since.Store(now.Add(-max(kept, u.Waited)).UnixNano())
		if u.Waited < e.after {
			return errors.Join(failed...)
		}
		e.log.Info("merging a month whole, to erase what was deleted", "table", u.Table, "partition", u.Partition, "host", u.Host,
			"parts", u.Parts, "waited", u.Waited.Round(time.Second), "others", len(all)-i-1)
		start := time.Now()
		if err := e.months.Erase(ctx, u); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			e.failures.Inc()
			failed = append(failed, err)
			kept = max(kept, u.Waited)
			continue
		}
		e.merges.Inc()
		e.log.Info("merged a month whole", "table", u.Table, "partition", u.Partition, "duration", time.Since(start).Round(time.Millisecond))
	}
	if err == nil && kept == 0 {
		e.since.Store(0)
	}
	return errors.Join(failed...)
}

// Erase merges, now, every month that has deleted content.
func Erase(ctx context.Context, cfg clickhouse.Config, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	store, err := clickhouse.New(cfg, log, registry)
	if err != nil {
		return err
	}
	defer store.Close()
	if _, err := store.CheckSchema(ctx); err != nil {
		return err
	}
	return newEraser(store, 0, log, registry).erase(ctx)
}
