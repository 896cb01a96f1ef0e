package schema

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Errors of [Schema.RecordTopic] and [Schema.CheckTopic]. The version of a row is made
// of generation and offset, so after either of these, new writes could lose
// against old rows.
var (
	// ErrPartitionsChanged says that the topic has another number of partitions than
	// when its generation began, so that the writes of one event may be in two
	// partitions.
	ErrPartitionsChanged = errors.New("the topic's partition count has changed; start a new topic generation")
	// ErrTopicRecreated says that the topic of the generation is not the recorded one,
	// so that its offsets begin again.
	ErrTopicRecreated = errors.New("the topic is not the one that was recorded for its generation, so its offsets begin again; start a new topic generation")
)

type recordedTopic struct {
	topic, topicID string
	partitions     int
}

// RecordTopic records which topic the offsets of a generation belong to, when the
// generation is used for the first time. Later it compares, as [Schema.CheckTopic]
// does. If several processes record different topics at once, one wins and the
// others get the error.
func (s *Schema) RecordTopic(ctx context.Context, generation int, topic, topicID string, partitions int) error {
	recorded, ok, err := s.recordedTopic(ctx, generation)
	if err != nil {
		return err
	}
	if !ok {
		if err := s.insertTopic(ctx, generation, topic, topicID, partitions); err != nil {
			return fmt.Errorf("record topic %s of generation %d: %w", topic, generation, err)
		}
		// Another process may have recorded a topic first.
		if recorded, ok, err = s.recordedTopic(ctx, generation); err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("record topic %s of generation %d: ClickHouse has dropped the row as a repetition of one that is gone from %s", topic, generation, tableGenerations)
		}
	}
	return recorded.compare(generation, topic, topicID, partitions)
}

// CheckTopic compares the topic with the recorded one of its generation. It only
// reads. The error wraps [ErrTopicRecreated] or [ErrPartitionsChanged] if the topic
// differs. It is nil if no topic is recorded yet.
func (s *Schema) CheckTopic(ctx context.Context, generation int, topic, topicID string, partitions int) error {
	recorded, ok, err := s.recordedTopic(ctx, generation)
	if err != nil || !ok {
		return err
	}
	return recorded.compare(generation, topic, topicID, partitions)
}

func (r recordedTopic) compare(generation int, topic, topicID string, partitions int) error {
	if r.topic != topic || r.topicID != topicID {
		return fmt.Errorf("generation %d: recorded topic %s with id %s, found %s with id %s: %w",
			generation, r.topic, r.topicID, topic, topicID, ErrTopicRecreated)
	}
	if r.partitions != partitions {
		return fmt.Errorf("generation %d: topic %s had %d partitions and has %d: %w",
			generation, topic, r.partitions, partitions, ErrPartitionsChanged)
	}
	return nil
}

// insertTopic inserts the record of a generation, unless there is one: all inserts
// for a generation have one deduplication token, and ClickHouse keeps only the
// first row.
func (s *Schema) insertTopic(ctx context.Context, generation int, topic, topicID string, partitions int) error {
	var (
		number      = proto.ColUInt16{uint16(generation)}
		name, id    proto.ColStr
		count       = proto.ColUInt32{uint32(partitions)}
		at          = new(proto.ColDateTime64).WithPrecision(proto.PrecisionMicro)
		settings    []ch.Setting
		deduplicate = map[string]string{
			"deduplicate_insert": "enable", "insert_deduplicate": "1",
			"insert_deduplication_token": "generation-" + strconv.Itoa(generation),
		}
	)
	name.Append(topic)
	id.Append(topicID)
	at.Append(time.Now())
	for _, other := range s.InsertSettings() {
		if _, ok := deduplicate[other.Key]; !ok {
			settings = append(settings, other)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(deduplicate)) {
		settings = append(settings, conn.Setting(key, deduplicate[key]))
	}
	input := proto.Input{
		{Name: "generation", Data: &number},
		{Name: "topic", Data: &name},
		{Name: "topic_id", Data: &id},
		{Name: "partitions", Data: &count},
		{Name: "recorded_at", Data: at},
	}
	return s.db.Do(ctx, conn.RoleAdmin, s.cfg.InsertTimeout, ch.Query{
		Body: "INSERT INTO " + tableGenerations + " " + input.Columns() + " VALUES", Input: input, Settings: settings,
	})
}

// Generations returns the recorded generations, in order.
func (s *Schema) Generations(ctx context.Context) ([]int, error) {
	var (
		generation  proto.ColUInt16
		generations []int
	)
	err := s.db.Query(ctx, conn.RoleAdmin, "generations", s.cfg.QueryTimeout, ch.Query{
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

// recordedTopic returns the recorded topic of a generation; ok is false if there is
// none. Builds before migration 0008 could record several topics for a generation.
// The earliest record counts; of records of one time, the first by its values.
func (s *Schema) recordedTopic(ctx context.Context, generation int) (recorded recordedTopic, ok bool, err error) {
	var (
		topic, topicID proto.ColStr
		partitions     proto.ColUInt32
	)
	err = s.db.Query(ctx, conn.RoleAdmin, "topics", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT topic, topic_id, partitions FROM topic_generations WHERE generation = {generation:UInt16}
			ORDER BY recorded_at, topic, topic_id, partitions LIMIT 1`,
		Parameters: conn.Parameters{}.Int("generation", int64(generation)),
		Result:     proto.Results{{Name: "topic", Data: &topic}, {Name: "topic_id", Data: &topicID}, {Name: "partitions", Data: &partitions}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range partitions {
				recorded, ok = recordedTopic{topic.Row(i), topicID.Row(i), int(partitions[i])}, true
			}
			return nil
		},
	})
	return recorded, ok, err
}
