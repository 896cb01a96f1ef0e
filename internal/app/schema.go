package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
)

// MigrateConfig says what Migrate changes.
type MigrateConfig struct {
	ClickHouse clickhouse.Config
	// Replicated makes the tables of a cluster replicated though each shard has
	// one replica.
	Replicated bool
	// Retention is how long events are kept; nil leaves it as it is.
	Retention *time.Duration
}

// Migrate brings the schema up to date, and the retention, on one machine or on
// all hosts of a cluster.
func Migrate(ctx context.Context, cfg MigrateConfig, log *slog.Logger) error {
	if cfg.ClickHouse.Cluster != "" {
		hosts, err := schema.MigrateCluster(ctx, cfg.ClickHouse, schema.ClusterOptions{Replicated: cfg.Replicated, Retention: cfg.Retention}, log)
		if err != nil {
			return err
		}
		for _, h := range hosts {
			log.Info("schema is up to date", "host", h.Addr, "shard", h.Shard, "replica", h.Replica,
				"created", h.Created, "applied", len(h.Applied), "views_renewed", len(h.Views), "spread", h.Spread, "retention_changed", h.Retained)
		}
		return nil
	}
	store, err := clickhouse.New(cfg.ClickHouse, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer store.Close()
	if err := migrate(ctx, store, log); err != nil {
		return err
	}
	return setRetention(ctx, store, cfg.Retention, log)
}

func migrate(ctx context.Context, store *clickhouse.Store, log *slog.Logger) error {
	done, err := store.Migrate(ctx)
	if err != nil {
		return err
	}
	log.Info("schema is up to date", "applied", len(done.Applied))
	if len(done.Views) > 0 {
		log.Info("views were not those of the last migration, and are now", "views", done.Views)
	}
	if len(done.Unknown) > 0 {
		log.Warn("schema is of a newer sluice", "unknown", len(done.Unknown))
	}
	return nil
}

// setRetention changes how long events are kept, unless keep is nil.
func setRetention(ctx context.Context, store *clickhouse.Store, keep *time.Duration, log *slog.Logger) error {
	if keep == nil {
		return nil
	}
	changed, err := store.SetRetention(ctx, *keep)
	if err != nil {
		return err
	}
	kept := "forever"
	if *keep != schema.Forever {
		kept = keep.String()
	}
	log.Info("retention is set", "keep", kept, "changed", changed)
	return nil
}
