package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/sluicehq/sluice/internal/kafka"
)

// retain removes the records that are older than their topic's retention, and
// the oldest ones of a topic larger than TopicBytesMax. It keeps the last record
// of each partition, because a later start reads the next offset from its file.
func (b *Broker) retain(ctx context.Context, adm *kadm.Client) error {
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var errs []error
	for _, topic := range topics.Names() {
		if err := b.retainTopic(ctx, adm, topic); err != nil {
			errs = append(errs, fmt.Errorf("topic %s: %w", topic, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Broker) retainTopic(ctx context.Context, adm *kadm.Client, topic string) error {
	info := b.cluster.TopicInfo(topic)
	if info == nil {
		return nil
	}
	retention := 7 * 24 * time.Hour
	if v := info.Configs["retention.ms"]; v != nil {
		ms, err := strconv.ParseInt(*v, 10, 64)
		if err != nil {
			return fmt.Errorf("read retention.ms: %w", err)
		}
		retention = min(never, time.Duration(ms)*time.Millisecond)
		if ms < 0 {
			retention = never
		}
	}
	young, err := adm.ListOffsetsAfterMilli(ctx, time.Now().Add(-retention).UnixMilli(), topic)
	if err != nil {
		return fmt.Errorf("list offsets: %w", err)
	}
	partitions := b.cluster.PartitionInfos(topic)
	var total int64
	for _, p := range partitions {
		total += p.NumBytes
	}
	committed := map[int32]kfake.GroupCommit{}
	if group := b.cluster.GroupInfo(b.cfg.Group); group != nil {
		committed = group.Commits[topic]
	}
	for _, p := range partitions {
		until := p.LogStartOffset
		if o, ok := young.Lookup(topic, p.Partition); ok && o.Err == nil {
			until = max(until, o.Offset)
		}
		if over := total - b.cfg.TopicBytesMax; over > 0 {
			// All partitions give up the same share of their records, as if all
			// records had one size. The next round corrects the error.
			share := float64(over) / float64(total)
			until = max(until, p.LogStartOffset+int64(share*float64(p.HighWatermark-p.LogStartOffset)))
		}
		if !strings.HasSuffix(topic, kafka.DeadLetterSuffix) {
			until = min(until, committed[p.Partition].Offset)
		}
		until = min(until, p.HighWatermark-1)
		if until <= p.LogStartOffset {
			continue
		}
		if err := b.cluster.DeleteRecords(topic, p.Partition, until); err != nil {
			return fmt.Errorf("delete records of partition %d: %w", p.Partition, err)
		}
		b.log.Debug("records removed", "topic", topic, "partition", p.Partition, "offset", until)
	}
	return nil
}
