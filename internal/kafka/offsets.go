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

// PartitionOffsets say where the group is in one partition of the events topic.
type PartitionOffsets struct {
	Partition int32
	// First and End are the log's own: the first record that is there, and the
	// one that comes next.
	First, End int64
	// Committed is the next record to apply, -1 where nothing was committed.
	Committed int64
}

// Offsets says where the group is in the events topic, partition by partition.
func Offsets(ctx context.Context, cfg Config, log *slog.Logger) ([]PartitionOffsets, error) {
	cl, err := newClient(&cfg, log)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	return readOffsets(ctx, kadm.NewClient(cl), cfg.Group, cfg.EventsTopic())
}

// Rewind has the group apply again what is in the log from an offset of each of
// the partitions on, which the rows' versions make harmless. Where the group
// has not got that far, an offset is an error that wraps [ErrForward]: records
// would never be applied. One before the first record is one that wraps
// [ErrDataLoss], and [ErrGroupActive] says that there are consumers. After an
// error nothing is changed, unless it is the brokers' on writing.
//
// With acceptLoss the first record is no error, even if the group has not got
// that far: what was before it is gone in any case.
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

// members is the number of consumers that a group has.
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

// readOffsets reads the commits before the log's ends, which only grow.
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

// What [listOffset] can be asked for instead of a time.
const (
	offsetEnd   = -1
	offsetFirst = -2
)

// listOffset asks for an offset of a topic's partition 0: the first whose record
// is of the time, in Unix milliseconds, or later; -1 where there is none.
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
