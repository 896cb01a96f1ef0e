package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
)

// indexInterval is how often the indexer looks for parts that lack what searches read.
const indexInterval = time.Minute

// indexer has the index of words built for the contents, and the signs stored for the
// embeddings, that are older than the index or the signs. So searches of them become
// fast while the service runs.
type indexer struct {
	store *clickhouse.Store
	log   *slog.Logger
	// pending is the number of parts that lack the index or the signs.
	pending prometheus.Gauge
}

func newIndexer(store *clickhouse.Store, log *slog.Logger, reg prometheus.Registerer) *indexer {
	x := &indexer{store: store, log: log, pending: prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "sluice_search", Name: "unindexed_parts",
		Help: "Parts from before the index of words, whose contents each search for a text reads, and from before the signs of vectors, whose vectors each search for similar ones reads. ClickHouse adds both in the background. 0 in all consumers but the one that sees to it.",
	})}
	reg.MustRegister(x.pending)
	return x
}

// run has the index built and the signs stored, and reports the progress, until no part
// is left or ctx is over. It does so only while leads reports that this process is the one
// of the group that does.
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
		contents, errWords := x.store.IndexWords(ctx)
		embeddings, errSigns := x.store.StoreSigns(ctx)
		if err := errors.Join(errWords, errSigns); err != nil {
			if ctx.Err() == nil {
				x.log.Warn("older contents and embeddings are not prepared for searches yet, trying again", "error", err)
			}
			continue
		}
		parts := contents + embeddings
		x.pending.Set(float64(parts))
		if parts != last {
			x.log.Info("preparing older contents and embeddings for searches", "parts_left", parts)
		}
		if last = parts; parts == 0 {
			<-ctx.Done() // such parts do not come back
			return nil
		}
	}
}
