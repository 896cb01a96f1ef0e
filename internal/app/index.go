package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
)

// indexInterval is how often the indexer looks for parts without the index.
const indexInterval = time.Minute

// indexer has the index of words built for the contents that were stored before the index
// was added, so that searches of them become fast while the service runs.
type indexer struct {
	store *clickhouse.Store
	log   *slog.Logger
	// pending is the number of parts that have no index yet.
	pending prometheus.Gauge
}

func newIndexer(store *clickhouse.Store, log *slog.Logger, reg prometheus.Registerer) *indexer {
	x := &indexer{store: store, log: log, pending: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "sluice_search", Name: "unindexed_parts",
		Help: "Parts of event_contents from before the index of words, whose contents each search reads. ClickHouse builds their index in the background. 0 in all consumers but the one that sees to it.",
	})}
	reg.MustRegister(x.pending)
	return x
}

// run has the index built, and reports the progress, until no part is left or ctx is
// over. It does so only while leads reports that this process is the one of the group that does.
func (x *indexer) run(ctx context.Context, leads func() bool) error {
	tick := time.NewTicker(indexInterval)
	defer tick.Stop()
	for last := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if !leads() {
			x.pending.Set(0)
			continue
		}
		parts, err := x.store.IndexWords(ctx)
		if err != nil {
			if ctx.Err() == nil {
				x.log.Warn("the index of words is not built for all contents yet, trying again", "error", err)
			}
			continue
		}
		x.pending.Set(float64(parts))
		if parts != last {
			x.log.Info("building the index of words for older contents", "parts_left", parts)
		}
		if last = parts; parts == 0 {
			<-ctx.Done() // parts without the index do not come back
			return nil
		}
	}
}
