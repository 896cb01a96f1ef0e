package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
)

const (
	// recordInterval is how often an API compares its topic with the topic that
	// ClickHouse has recorded.
	recordInterval = 5 * time.Second
	// lookTimeout bounds a query whose answer the process can do without.
	lookTimeout = 5 * time.Second
)

// isFinal reports whether an error about the topics remains however often the process
// tries again.
func isFinal(err error) bool {
	for _, final := range []error{
		kafka.ErrNotDrained, kafka.ErrGenerationOver, kafka.ErrGenerationGap, kafka.ErrTopicMismatch, kafka.ErrDataLoss,
		schema.ErrTopicRecreated, schema.ErrPartitionsChanged,
	} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// mayPass reports whether the error may be gone when the process tries again.
func mayPass(err error) bool { return !isFinal(err) }

// consumerTopics makes the topics that a consumer needs, and checks them:
//
//   - The generation may begin or has begun. In a process that also writes, no later
//     generation has begun.
//   - The events topic is the one that ClickHouse has recorded. If ClickHouse has
//     recorded none, consumerTopics records this one.
//   - The log still reaches as far as what was applied of it.
//
// It puts the number of the topic's partitions and the topic's id into cfg.
func (p *process) consumerTopics(ctx context.Context, cfg *kafka.Config, store *clickhouse.Store, writes bool) error {
	err := p.retry(ctx, "compare the generations", mayPass,
		func(ctx context.Context) error { return p.consumerGeneration(ctx, *cfg, store, writes) })
	if err != nil {
		return err
	}
	info, err := p.ensureTopics(ctx, cfg)
	if err != nil {
		return err
	}
	err = p.retry(ctx, "record the topic", mayPass, func(ctx context.Context) error {
		return store.RecordTopic(ctx, info.Generation, info.Topic, info.ID, info.Partitions)
	})
	if err != nil {
		return err
	}
	return p.checkCommits(ctx, *cfg)
}

// consumerGeneration compares the generation with those before and after it, and
// begins it if it has not begun.
//
// A generation begins once all records of the earlier ones are applied. Otherwise an
// update in the new topic could come before the create of its event in the old one.
// After that, records that are not applied in an earlier topic only cause a warning:
// such a record may have come late, or Kafka has forgotten the commits of a topic that
// nobody reads any more before it has deleted the topic's last records.
func (p *process) consumerGeneration(ctx context.Context, cfg kafka.Config, store *clickhouse.Store, writes bool) error {
	recorded, err := store.Generations(ctx)
	if err != nil {
		return err
	}
	err = kafka.CheckGeneration(ctx, cfg, p.log)
	if last := lastOf(recorded); err == nil && last > cfg.Generation {
		err = kafka.GenerationOver(cfg.Generation, last)
	}
	switch {
	case errors.Is(err, kafka.ErrGenerationOver) && !writes:
		p.log.Warn("a later generation has begun, and this one is only drained", "generation", cfg.Generation, "error", err)
		return nil
	case err != nil:
		return err
	case !slices.Contains(recorded, cfg.Generation):
		return kafka.BeginGeneration(ctx, cfg, p.log)
	case cfg.Generation == 1:
		return nil
	}
	generations, err := kafka.Generations(ctx, cfg, p.log)
	if err != nil {
		return err
	}
	for _, g := range generations {
		if g.Number < cfg.Generation && g.Pending > 0 {
			p.log.Warn("records of an earlier generation are not applied", "topic", g.Topic, "records", g.Pending)
		}
	}
	return nil
}

// apiTopics makes and checks the topics for a process that writes and does not
// consume. It changes nothing in ClickHouse. If the topics exist, it does not need
// ClickHouse either, because Kafka alone says whether the generation may be written to.
// It returns a fence, which the process must ask before it acknowledges writes.
func (p *process) apiTopics(ctx context.Context, cfg *kafka.Config, store *clickhouse.Store) (*kafka.Fence, error) {
	err := p.retry(ctx, "compare the generations", mayPass,
		func(ctx context.Context) error { return p.apiGeneration(ctx, *cfg, store) })
	if err != nil {
		return nil, err
	}
	info, err := p.ensureTopics(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := p.checkCommits(ctx, *cfg); err != nil {
		return nil, err
	}
	// The topic is compared with the one that ClickHouse has recorded before anything
	// is acknowledged. If ClickHouse does not answer, watchRecord compares them later.
	bounded, cancel := context.WithTimeout(ctx, lookTimeout)
	err = compareRecord(bounded, info, store)
	cancel()
	switch {
	case isFinal(err):
		return nil, err
	case errors.Is(err, event.ErrSchemaMissing):
		p.log.Warn("ClickHouse has no tables yet: writes are taken, reads are not answered", "error", err)
	case errors.Is(err, event.ErrDatabaseOld):
		p.log.Warn("ClickHouse is too old: writes are taken, reads are not answered", "error", err)
	case err != nil:
		p.log.Warn("ClickHouse does not answer: writes are taken, reads are not answered", "error", err)
	}
	fenced := *cfg
	fenced.ClientMetrics = p.registry
	fence, err := kafka.NewFence(fenced, p.log)
	if err != nil {
		return nil, err
	}
	p.onStop("fence", func() error { fence.Close(); return nil })
	p.start(ctx, "look for later generations", fence.Run)
	p.start(ctx, "compare the recorded topic", func(ctx context.Context) error {
		p.watchRecord(ctx, info, store, fence)
		return nil
	})
	return fence, nil
}

// apiGeneration compares the generation with those before and after it, and begins it
// if it has not begun. It does without ClickHouse where Kafka knows enough.
func (p *process) apiGeneration(ctx context.Context, cfg kafka.Config, store *clickhouse.Store) error {
	if err := kafka.CheckGeneration(ctx, cfg, p.log); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, lookTimeout)
	recorded, unknown := store.Generations(bounded)
	cancel()
	if errors.Is(unknown, event.ErrSchemaMissing) {
		unknown = nil // nothing is recorded yet
	}
	if last := lastOf(recorded); last > cfg.Generation {
		return kafka.GenerationOver(cfg.Generation, last)
	}
	generations, err := kafka.Generations(ctx, cfg, p.log)
	if err != nil {
		return err
	}
	own := slices.IndexFunc(generations, func(g kafka.Generation) bool { return g.Number == cfg.Generation })
	if own < 0 && unknown != nil {
		// The topic may have existed and been lost. In a new topic offsets, and so the
		// versions of rows, would start again. Brokers that never had a topic of
		// Sluice's cannot have lost one.
		untouched, err := kafka.Untouched(ctx, cfg, p.log)
		if err != nil {
			return err
		}
		if untouched && cfg.Generation == 1 {
			return nil
		}
		return fmt.Errorf("topic %s does not exist, and it is not made before ClickHouse says that it never did: %w", cfg.EventsTopic(), unknown)
	}
	if slices.Contains(recorded, cfg.Generation) || own >= 0 && generations[own].Used {
		return nil // it has begun
	}
	return kafka.BeginGeneration(ctx, cfg, p.log)
}

// ensureTopics makes the topics that do not exist, and puts the number of partitions
// and the id of the events topic into cfg.
func (p *process) ensureTopics(ctx context.Context, cfg *kafka.Config) (info kafka.TopicInfo, err error) {
	err = p.retry(ctx, "reach Kafka", mayPass, func(ctx context.Context) (err error) {
		info, err = kafka.EnsureTopics(ctx, *cfg, p.log)
		return err
	})
	cfg.Partitions, cfg.TopicID = info.Partitions, info.ID
	return info, err
}

// checkCommits checks that the log reaches as far as the group's commits.
func (p *process) checkCommits(ctx context.Context, cfg kafka.Config) error {
	return p.retry(ctx, "compare the log with the commits", mayPass,
		func(ctx context.Context) error { return kafka.CheckCommits(ctx, cfg, p.log) })
}

// compareRecord compares the topic with the topic and the generations that ClickHouse
// has recorded.
func compareRecord(ctx context.Context, info kafka.TopicInfo, store *clickhouse.Store) error {
	if err := store.CheckTopic(ctx, info.Generation, info.Topic, info.ID, info.Partitions); err != nil {
		return err
	}
	recorded, err := store.Generations(ctx)
	if err != nil {
		return err
	}
	if last := lastOf(recorded); last > info.Generation {
		return kafka.GenerationOver(info.Generation, last)
	}
	return nil
}

// watchRecord stops the acknowledgement of writes once ClickHouse has recorded another
// topic or a later generation. A later generation may be in another Kafka, where the
// fence does not see it.
func (p *process) watchRecord(ctx context.Context, info kafka.TopicInfo, store *clickhouse.Store, fence *kafka.Fence) {
	tick := time.NewTicker(recordInterval)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, lookTimeout)
		err := compareRecord(bounded, info, store)
		cancel()
		if isFinal(err) {
			fence.Stop(err)
			<-ctx.Done()
			return
		}
		if err != nil && ctx.Err() == nil {
			p.log.Debug("the topic cannot be compared with the record", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lastOf returns the last of the generations, which are in order, or 0 if there are none.
func lastOf(generations []int) int {
	if len(generations) == 0 {
		return 0
	}
	return generations[len(generations)-1]
}
