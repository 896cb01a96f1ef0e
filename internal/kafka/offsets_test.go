package kafka_test

import (
	"errors"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func testGenerations(t *testing.T, b *backend) {
	first := b.config()
	check := func(want ...kafka.Generation) {
		t.Helper()
		got, err := kafka.Generations(t.Context(), first, kafkatest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	check()
	ensure := func(cfg kafka.Config) {
		t.Helper()
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
	}
	ensure(first)
	// A new Apache Kafka takes a while until it knows of groups.
	kafkatest.Eventually(t, "the broker's groups", func() bool {
		_, err := kafka.Generations(t.Context(), first, kafkatest.Log(t))
		return err == nil
	})
	one, two := first.EventsTopic(), ""
	check(kafka.Generation{Number: 1, Topic: one})
	kafkatest.Produce(t, kafkatest.NewProducer(t, first), kafkatest.Updates(0, 40, 40))
	check(kafka.Generation{Number: 1, Topic: one, Pending: 40, Used: true})

	// Another number of partitions, and topics that are no generation.
	second := first
	second.Generation, second.Partitions = 2, 7
	two = second.EventsTopic()
	ensure(second)
	adm := b.admin(t)
	for _, name := range []string{first.TopicPrefix + ".g03", first.TopicPrefix + ".g0", first.TopicPrefix + ".g2x", first.TopicPrefix + "x.g4"} {
		if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, name); err != nil {
			t.Fatal(err)
		}
	}
	kafkatest.Eventually(t, "the topics", func() bool {
		topics, err := adm.ListTopics(t.Context(), first.TopicPrefix+"x.g4")
		return err == nil && topics.Error() == nil
	})
	check(kafka.Generation{Number: 1, Topic: one, Pending: 40, Used: true}, kafka.Generation{Number: 2, Topic: two})

	c := kafkatest.NewConsumer(t, first, nil)
	read := kafkatest.Collect(t, c, 40)
	half := kafkatest.Offsets(read[:20])
	if err := c.Commit(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	committed := int64(0)
	for _, at := range half {
		committed += at
	}
	check(kafka.Generation{Number: 1, Topic: one, Pending: 40 - committed, Used: true}, kafka.Generation{Number: 2, Topic: two})
	if err := c.Commit(t.Context(), kafkatest.Offsets(read)); err != nil {
		t.Fatal(err)
	}
	check(kafka.Generation{Number: 1, Topic: one, Used: true}, kafka.Generation{Number: 2, Topic: two})

	// What retention removes before the commits are forgotten, as Kafka forgets
	// those of a topic that nobody reads, is not waiting.
	other := first
	other.Group += ".other"
	pending := func() int64 {
		t.Helper()
		got, err := kafka.Generations(t.Context(), other, kafkatest.Log(t))
		if err != nil || len(got) != 2 {
			t.Fatalf("generations %v, error %v", got, err)
		}
		return got[0].Pending
	}
	if n := pending(); n != 40 {
		t.Errorf("%d records wait for a group without commits, want 40", n)
	}
	var ends kadm.Offsets
	for p, next := range kafkatest.Offsets(read) {
		ends.AddOffset(one, p, next, -1)
	}
	resp, err := adm.DeleteRecords(t.Context(), ends)
	if err = errors.Join(err, resp.Error()); err != nil {
		t.Fatal(err)
	}
	if n := pending(); n != 0 {
		t.Errorf("%d records of an empty topic wait, want none", n)
	}
}

func testRewind(t *testing.T, b *backend) {
	cfg := b.topics(t)
	kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 200, 200))
	c := kafkatest.NewConsumer(t, cfg, nil)
	end := kafkatest.Offsets(kafkatest.Collect(t, c, 200))
	half := make(map[int32]int64)
	for p, next := range end {
		half[p] = next / 2
	}
	if err := c.Commit(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	rewind := func(to map[int32]int64) error { return kafka.Rewind(t.Context(), cfg, to, false, kafkatest.Log(t)) }
	start := map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}
	if err := rewind(start); !errors.Is(err, kafka.ErrGroupActive) {
		t.Errorf("while a consumer runs: error %v, want that the group is active", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := rewind(end); !errors.Is(err, kafka.ErrForward) {
		t.Errorf("error %v, want that records would be passed over", err)
	}
	beyond := maps.Clone(start)
	beyond[2] = end[2] + 1
	if err := rewind(beyond); !errors.Is(err, kafka.ErrForward) {
		t.Errorf("error %v, want that records would be passed over", err)
	}
	for _, n := range []int{3, 5} {
		other := make(map[int32]int64)
		for p := range n {
			other[int32(p)] = 0
		}
		if err := rewind(other); err == nil {
			t.Errorf("%d offsets of 4 partitions are taken", n)
		}
	}
	var gone kadm.Offsets
	gone.AddOffset(cfg.EventsTopic(), 1, half[1], -1)
	resp, err := b.admin(t).DeleteRecords(t.Context(), gone)
	if err = errors.Join(err, resp.Error()); err != nil {
		t.Fatal(err)
	}
	if err := rewind(start); !errors.Is(err, kafka.ErrDataLoss) {
		t.Errorf("error %v, want that records are missing", err)
	}
	if diff := cmp.Diff(half, kafkatest.GroupOffsets(t, cfg)); diff != "" {
		t.Fatalf("what was refused changed something: %s", diff)
	}

	start[1] = half[1]
	if err := rewind(start); err != nil {
		t.Fatal(err)
	}
	partitions, err := kafka.Offsets(t.Context(), cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	var want []kafka.PartitionOffsets
	left := 0
	for p := range int32(4) {
		first := start[p]
		want = append(want, kafka.PartitionOffsets{Partition: p, First: first, Committed: first, End: end[p]})
		left += int(end[p] - first)
	}
	if diff := cmp.Diff(want, partitions); diff != "" {
		t.Error(diff)
	}

	// What is gone before it was applied is given up only where that is asked for.
	gone = nil
	gone.AddOffset(cfg.EventsTopic(), 3, end[3], -1)
	if resp, err = b.admin(t).DeleteRecords(t.Context(), gone); err != nil || resp.Error() != nil {
		t.Fatal(errors.Join(err, resp.Error()))
	}
	start[3] = end[3]
	if err := rewind(start); !errors.Is(err, kafka.ErrForward) {
		t.Errorf("error %v, want that records would be passed over", err)
	}
	start[0] = end[0] // of which nothing is gone
	if err := kafka.Rewind(t.Context(), cfg, start, true, kafkatest.Log(t)); !errors.Is(err, kafka.ErrForward) {
		t.Errorf("error %v, want that records would be passed over", err)
	}
	start[0] = 0
	if err := kafka.Rewind(t.Context(), cfg, start, true, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), left-int(end[3]))
}
