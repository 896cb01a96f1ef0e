package clickhouse

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// Errors of [Store.RecordTopic]. Versions of rows are generation and offset,
// so that each of these would let new writes lose against old rows.
var (
	// ErrPartitionsChanged: the topic has another number of partitions than when
	// its generation began, so that writes of one event may lie in two of them.
	ErrPartitionsChanged = errors.New("the topic's partition count has changed; start a new topic generation")
	// ErrTopicRecreated: the generation's topic is not the one recorded, so that
	// its offsets begin again.
	ErrTopicRecreated = errors.New("the topic is not the one that was recorded for its generation, so its offsets begin again; start a new topic generation")
)

type recordedTopic struct {
	topic, topicID string
	partitions     int
}

// RecordTopic records which topic a generation's offsets are of, when it is
// used for the first time; later it returns an error that wraps
// [ErrTopicRecreated] or [ErrPartitionsChanged] when the topic is another. Of
// processes that record at once, all see the same.
func (s *Store) RecordTopic(ctx context.Context, generation int, topic, topicID string, partitions int) error {
	want := recordedTopic{topic, topicID, partitions}
	recorded, err := s.recordedTopics(ctx, generation)
	if err != nil {
		return err
	}
	if len(recorded) == 0 {
		err := s.pool.do(ctx, s.cfg.InsertTimeout, ch.Query{
			Body: "INSERT INTO topic_generations SELECT {generation:UInt16}, {topic:String}, {topic_id:String}, {partitions:UInt32}, now64(6)",
			Parameters: parameters{}.int("generation", int64(generation)).text("topic", topic).
				text("topic_id", topicID).int("partitions", int64(partitions)),
			Settings: s.insertSettings(),
		})
		if err != nil {
			return fmt.Errorf("record topic %s of generation %d: %w", topic, generation, err)
		}
		// Another process may have recorded another topic meanwhile.
		if recorded, err = s.recordedTopics(ctx, generation); err != nil {
			return err
		}
	}
	for _, r := range recorded {
		if r.topic != want.topic || r.topicID != want.topicID {
			return fmt.Errorf("generation %d: recorded topic %s with id %s, found %s with id %s: %w",
				generation, r.topic, r.topicID, topic, topicID, ErrTopicRecreated)
		}
		if r.partitions != want.partitions {
			return fmt.Errorf("generation %d: topic %s had %d partitions and has %d: %w",
				generation, topic, r.partitions, partitions, ErrPartitionsChanged)
		}
	}
	return nil
}

// Generations are those that were recorded, in order.
func (s *Store) Generations(ctx context.Context) ([]int, error) {
	var (
		generation  proto.ColUInt16
		generations []int
	)
	err := s.query(ctx, "generations", s.cfg.QueryTimeout, ch.Query{
		Body:   "SELECT DISTINCT generation FROM topic_generations ORDER BY generation",
		Result: proto.Results{{Name: "generation", Data: &generation}},
		OnResult: func(context.Context, proto.Block) error {
			for _, n := range generation {
				generations = append(generations, int(n))
			}
			return nil
		},
	})
	return generations, err
}

func (s *Store) recordedTopics(ctx context.Context, generation int) ([]recordedTopic, error) {
	var (
		topic, topicID proto.ColStr
		partitions     proto.ColUInt32
		recorded       []recordedTopic
	)
	err := s.query(ctx, "topics", s.cfg.QueryTimeout, ch.Query{
		Body:       "SELECT topic, topic_id, partitions FROM topic_generations WHERE generation = {generation:UInt16} ORDER BY recorded_at",
		Parameters: parameters{}.int("generation", int64(generation)),
		Result:     proto.Results{{Name: "topic", Data: &topic}, {Name: "topic_id", Data: &topicID}, {Name: "partitions", Data: &partitions}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range partitions {
				recorded = append(recorded, recordedTopic{topic.Row(i), topicID.Row(i), int(partitions[i])})
			}
			return nil
		},
	})
	return recorded, err
}
