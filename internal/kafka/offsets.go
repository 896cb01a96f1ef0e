package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// PartitionOffsets is the progress of the group in one partition of the events
// topic.
type PartitionOffsets struct {
	Partition int32
	// First is the offset of the first record in the log, and End the offset of the
	// next record to come.
	First, End int64
	// Committed is the offset of the next record to apply, or -1 if nothing was
	// committed.
	Committed int64
}

// Offsets returns the progress of the group in the events topic, by partition.
func Offsets(ctx context.Context, cfg Config, log *slog.Logger) ([]PartitionOffsets, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	return readOffsets(ctx, kadm.NewClient(cl), cfg.Group, cfg.EventsTopic())
}

// Rewind sets the group back, so that consumers apply the log again from the given
// offset of each partition on. The versions of the rows make that harmless.
//
// The error wraps [ErrForward] if an offset is after the group's, because records
// would never be applied; [ErrDataLoss] if an offset is before the first record;
// and [ErrGroupActive] if the group has consumers. After any of these errors
// nothing has changed.
//
// With acceptLoss, the offset of the first record is allowed even if the group has
// not got that far: the records before it are gone in any case.
func Rewind(ctx context.Context, cfg Config, to map[int32]int64, acceptLoss bool, log *slog.Logger) error {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return err
	}
	defer cl.Close()
	adm, topic := kadm.NewClient(cl), cfg.EventsTopic()
	n, err := members(ctx, adm, cfg.Group)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%w: %s has %d", ErrGroupActive, cfg.Group, n)
	}
	now, err := readOffsets(ctx, adm, cfg.Group, topic)
	if err != nil {
		return err
	}
	var (
		errs    []error
		commits kadm.Offsets
	)
	for _, p := range now {
		at, ok := to[p.Partition]
		if !ok {
			errs = append(errs, fmt.Errorf("topic %s partition %d: no offset is given", topic, p.Partition))
			continue
		}
		switch {
		case acceptLoss && at == p.First:
		case at < p.First:
			errs = append(errs, lostError(topic, p.Partition, "offset %d is wanted and the log begins at %d", at, p.First))
		case at > p.End || p.Committed >= 0 && at > p.Committed:
			errs = append(errs, fmt.Errorf("%w: topic %s partition %d: offset %d is wanted, group %q is at %d and the log ends at %d",
				ErrForward, topic, p.Partition, at, cfg.Group, p.Committed, p.End))
		}
		commits.AddOffset(topic, p.Partition, at, -1)
	}
	if len(to) > len(now) {
		errs = append(errs, fmt.Errorf("topic %s has %d partitions, and %d offsets are given", topic, len(now), len(to)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := adm.CommitAllOffsets(ctx, cfg.Group, commits); err != nil {
		return fmt.Errorf("commit offsets of %s for group %s: %w", topic, cfg.Group, err)
	}
	return nil
}

// members returns the number of consumers in a group.
func members(ctx context.Context, adm *kadm.Client, group string) (int, error) {
	groups, err := adm.DescribeGroups(ctx, group)
	if err == nil {
		err = groups.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return 0, fmt.Errorf("describe group %s: %w", group, err)
	}
	return len(groups[group].Members), nil
}

// readOffsets reads the commits first and the ends of the log afterwards, because
// the ends only grow.
func readOffsets(ctx context.Context, adm *kadm.Client, group, topic string) ([]PartitionOffsets, error) {
	commits, err := adm.FetchOffsets(ctx, group)
	if err == nil {
		err = commits.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("read the commits of group %s: %w", group, err)
	}
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list start offsets of %s: %w", topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list end offsets of %s: %w", topic, err)
	}
	var all []PartitionOffsets
	ends.Each(func(end kadm.ListedOffset) {
		p := PartitionOffsets{Partition: end.Partition, End: end.Offset, Committed: -1}
		if start, ok := starts.Lookup(topic, end.Partition); ok {
			p.First = start.Offset
		}
		if c, ok := commits.Lookup(topic, end.Partition); ok && c.At >= 0 {
			p.Committed = c.At
		}
		all = append(all, p)
	})
	slices.SortFunc(all, func(a, b PartitionOffsets) int { return cmp.Compare(a.Partition, b.Partition) })
	return all, nil
}

// fetchCommitted returns the group's committed offsets by partition. A partition
// without a commit has no entry.
func fetchCommitted(ctx context.Context, adm *kadm.Client, group, topic string) (map[int32]int64, error) {
	resp, err := adm.FetchOffsets(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	committed := make(map[int32]int64)
	for p, o := range maps.All(resp[topic]) {
		if o.At >= 0 {
			committed[p] = o.At
		}
	}
	return committed, nil
}

// Special times for [listOffset].
const (
	offsetEnd   = -1
	offsetFirst = -2
)

// listOffset returns the first offset of a topic's partition 0 whose record has the
// time, in Unix milliseconds, or a later one; -1 if there is none.
func listOffset(ctx context.Context, cl *kgo.Client, topic string, millis int64) (int64, error) {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Timestamp = millis
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.Topics = -1, append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("list offsets of %s: partition 0 is missing", topic)
	}
	listed := &resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(listed.ErrorCode); err != nil {
		return 0, fmt.Errorf("list offsets of %s: %w", topic, err)
	}
	return listed.Offset, nil
}
