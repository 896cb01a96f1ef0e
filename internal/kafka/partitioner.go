package kafka

import (
	"github.com/twmb/franz-go/pkg/kgo"
)

// pinned chooses among the partitions that the topic had when it was created. If
// partitions were added to the live topic, the usual partitioner would send the
// next write of an event to another partition than the first one, and their
// order would be lost.
type pinned struct {
	kgo.Partitioner
	partitions int
}

func (p pinned) ForTopic(topic string) kgo.TopicPartitioner {
	return pinnedTopic{p.Partitioner.ForTopic(topic), p.partitions}
}

type pinnedTopic struct {
	kgo.TopicPartitioner
	partitions int
}

func (pinnedTopic) RequiresConsistency(*kgo.Record) bool { return true }

func (p pinnedTopic) Partition(r *kgo.Record, _ int) int {
	return p.TopicPartitioner.Partition(r, p.partitions)
}
