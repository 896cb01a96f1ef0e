package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sluicehq/sluice/internal/kafka"
)

// Offsets finds the events topic, and where the consumer group is in it.
func Offsets(ctx context.Context, cfg kafka.Config, log *slog.Logger) (kafka.TopicInfo, []kafka.PartitionOffsets, error) {
	info, err := kafka.FindTopics(ctx, cfg, log)
	if err != nil {
		return info, nil, err
	}
	partitions, err := kafka.Offsets(ctx, cfg, log)
	return info, partitions, err
}

// RewindOptions say where Rewind sets the consumer group.
type RewindOptions struct {
	// Topic and Partitions are what [Offsets] returned.
	Topic      kafka.TopicInfo
	Partitions []kafka.PartitionOffsets
	// To is the next offset of each partition; nil is the first record that the log
	// still has.
	To map[int32]int64
	// AcceptLoss goes on without the records that are gone and were never applied.
	AcceptLoss bool
}

// Rewind sets the consumer group back, and returns how many records will be
// applied again. No consumer may run.
func Rewind(ctx context.Context, cfg kafka.Config, opts RewindOptions, log *slog.Logger) (records int64, err error) {
	to := opts.To
	if to == nil {
		to = make(map[int32]int64)
		var errs []error
		for _, p := range opts.Partitions {
			if next := max(p.Committed, 0); next < p.First && !opts.AcceptLoss {
				errs = append(errs, fmt.Errorf("topic %s partition %d: records %d to %d are gone and were not applied; --accept-loss goes on without them",
					opts.Topic.Topic, p.Partition, next, p.First-1))
			}
			to[p.Partition] = p.First
		}
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
	}
	if err := kafka.Rewind(ctx, cfg, to, opts.AcceptLoss, log); err != nil {
		return 0, err
	}
	for _, p := range opts.Partitions {
		records += p.End - to[p.Partition]
	}
	return records, nil
}
