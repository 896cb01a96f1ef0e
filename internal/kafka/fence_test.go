package kafka_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// fenced is a producer with a fence, which looks at the topics by itself only if
// running.
func fenced(t *testing.T, cfg kafka.Config, running bool) (*kafka.Producer, *kafka.Fence) {
	t.Helper()
	f, err := kafka.NewFence(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	if running {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	cfg.Producer.Fence = f
	return kafkatest.NewProducer(t, cfg), f
}

// nextGeneration makes the topic of a later generation.
func nextGeneration(t *testing.T, cfg kafka.Config, generation int) {
	t.Helper()
	cfg.Generation, cfg.TopicID = generation, ""
	if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
}

// testFence has two producers write without a pause, and a consumer apply what
// they write, when a later generation begins. From then on they acknowledge
// nothing, and all that they have acknowledged is applied.
func testFence(t *testing.T, b *backend) {
	cfg := b.topics(t)
	var (
		acked     [2][]event.Receipt
		ended     [2]error
		begun     atomic.Bool
		wg        sync.WaitGroup
		ctx, stop = context.WithCancel(t.Context())
		some      = make(chan struct{}, len(acked))
	)
	defer wg.Wait()
	defer stop()
	producers := make([]*kafka.Producer, len(acked))
	for i := range producers {
		producers[i], _ = fenced(t, cfg, i == 0)
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				a := producers[i].Produce(context.WithoutCancel(ctx), kafkatest.Updates(n, 1, 3))[0]
				if ended[i] = a.Err; a.Err != nil {
					return
				}
				if begun.Load() {
					t.Errorf("producer %d acknowledged %s after the next generation has begun", i, a.Receipt)
				}
				if acked[i] = append(acked[i], a.Receipt); n == 20 {
					some <- struct{}{}
				}
			}
		})
	}
	consumer := kafkatest.NewConsumer(t, cfg, nil)
	wg.Go(func() {
		for {
			chunks, err := consumer.Poll(ctx, 100)
			if err == nil {
				err = commitChunks(ctx, consumer, chunks)
			}
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
		}
	})
	for range producers {
		select {
		case <-some:
		case <-time.After(kafkatest.Timeout):
			t.Fatal("no writes are acknowledged")
		}
	}
	next := cfg
	next.Generation = 2
	if err := kafka.BeginGeneration(t.Context(), next, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	begun.Store(true)
	at, err := kafka.Offsets(t.Context(), cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, "both producers to notice", func() bool {
		return producers[0].Ready(t.Context()) != nil && producers[1].Ready(t.Context()) != nil
	})
	stop()
	wg.Wait()
	for i, err := range ended {
		if !errors.Is(err, event.ErrWritesStopped) || !errors.Is(err, kafka.ErrGenerationOver) || !strings.Contains(err.Error(), "--kafka-generation=2") {
			t.Errorf("producer %d ended with %v", i, err)
		}
		for _, r := range acked[i] {
			if r.Offset >= at[r.Partition].Committed {
				t.Errorf("producer %d acknowledged %s, and the group was at %d when the next generation began", i, r, at[r.Partition].Committed)
			}
		}
		if err := producers[i].Ready(t.Context()); !errors.Is(err, event.ErrWritesStopped) {
			t.Errorf("producer %d is ready with %v", i, err)
		}
		for _, a := range producers[i].Produce(t.Context(), kafkatest.Updates(0, 2, 1)) {
			if !errors.Is(a.Err, event.ErrWritesStopped) {
				t.Errorf("producer %d answers %v", i, a)
			}
		}
	}
	after, err := kafka.Offsets(t.Context(), cfg, kafkatest.Log(t))
	if err != nil || !slices.EqualFunc(after, at, func(a, b kafka.PartitionOffsets) bool { return a.End == b.End }) {
		t.Errorf("the log ended at %v when the generation began, and ends at %v, error %v", at, after, err)
	}
}

// commitChunks commits all records of chunks.
func commitChunks(ctx context.Context, c *kafka.Consumer, chunks []record.Chunk) error {
	next := make(map[int32]int64)
	for _, chunk := range chunks {
		next[chunk.Partition] = chunk.Records[len(chunk.Records)-1].Offset + 1
	}
	return c.Commit(ctx, next)
}

// testBegin is about what keeps a generation from beginning.
func testBegin(t *testing.T, b *backend) {
	first := b.topics(t)
	kafkatest.Produce(t, kafkatest.NewProducer(t, first), kafkatest.Updates(0, 10, 10))
	next := first
	next.Generation = 2
	exists := func(cfg kafka.Config) bool {
		t.Helper()
		topics, err := b.admin(t).ListTopics(t.Context(), cfg.EventsTopic())
		if err != nil {
			t.Fatal(err)
		}
		return topics[cfg.EventsTopic()].Err == nil
	}
	untouched := func(cfg kafka.Config, want bool) {
		t.Helper()
		var got bool
		kafkatest.Eventually(t, "the broker's groups", func() (ok bool) { // a new Apache Kafka takes a while until it knows of any
			var err error
			got, err = kafka.Untouched(t.Context(), cfg, kafkatest.Log(t))
			return err == nil
		})
		if got != want {
			t.Errorf("%s is untouched: %t, want %t", cfg.TopicPrefix, got, want)
		}
	}
	untouched(b.config(), true)
	untouched(first, false)
	lost := b.topics(t) // all but the dead letters
	if _, err := b.admin(t).DeleteTopic(t.Context(), lost.EventsTopic()); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, "the topic to be gone", func() bool {
		generations, err := kafka.Generations(t.Context(), lost, kafkatest.Log(t))
		return err == nil && len(generations) == 0
	})
	untouched(lost, false)
	// Nobody applies the earlier one.
	err := kafka.BeginGeneration(t.Context(), next, kafkatest.Log(t))
	if !errors.Is(err, kafka.ErrNotDrained) || !strings.Contains(err.Error(), "10 records of "+first.EventsTopic()) {
		t.Errorf("got %v, want %v", err, kafka.ErrNotDrained)
	}
	far := first
	far.Generation = 2 + kafka.GenerationsAhead
	if err := kafka.BeginGeneration(t.Context(), far, kafkatest.Log(t)); !errors.Is(err, kafka.ErrGenerationGap) {
		t.Errorf("generation %d: got %v, want %v", far.Generation, err, kafka.ErrGenerationGap)
	}
	if exists(next) || exists(far) {
		t.Error("the topic of a generation that may not begin was made")
	}
	// Without earlier ones there is nothing to wait for, which the context would end.
	alone := b.config()
	alone.Generation = 7
	ctx, cancel := context.WithTimeout(t.Context(), kafka.FenceWait)
	defer cancel()
	kafkatest.Eventually(t, "a first generation to begin", func() bool { return kafka.BeginGeneration(ctx, alone, kafkatest.Log(t)) == nil })
	if !exists(alone) {
		t.Error("the topic of the first generation was not made")
	}
	alone.Generation = 6
	if err := kafka.BeginGeneration(t.Context(), alone, kafkatest.Log(t)); !errors.Is(err, kafka.ErrGenerationOver) {
		t.Errorf("a generation before one that has begun: got %v, want %v", err, kafka.ErrGenerationOver)
	}
}

// TestBeginWithIdleConsumers has consumers of the earlier generation that apply
// nothing.
func TestBeginWithIdleConsumers(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	first := b.topics(t)
	kafkatest.Produce(t, kafkatest.NewProducer(t, first), kafkatest.Updates(0, 10, 10))
	c := kafkatest.NewConsumer(t, first, nil)
	kafkatest.Collect(t, c, 10)
	next := first
	next.Generation = 2
	if err := kafka.BeginGeneration(t.Context(), next, kafkatest.Log(t)); !errors.Is(err, kafka.ErrNotDrained) {
		t.Errorf("got %v, want %v", err, kafka.ErrNotDrained)
	}
}

// testFenceNotices is about which topics a fence takes for a reason.
func testFenceNotices(t *testing.T, b *backend) {
	cfg := b.config()
	cfg.Generation = 3
	info, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.TopicID = info.ID
	nextGeneration(t, cfg, 2) // an earlier one
	other := cfg
	other.TopicPrefix += ".g3"
	nextGeneration(t, other, 4) // of another installation
	if _, err := b.admin(t).CreateTopic(t.Context(), 1, 1, nil, cfg.TopicPrefix+".g4x"); err != nil {
		t.Fatal(err)
	}
	p, f := fenced(t, cfg, false)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 3))
	if err := f.Err(); err != nil {
		t.Fatal(err)
	}
	nextGeneration(t, cfg, 3+kafka.GenerationsAhead)
	f.Expire()
	acks := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))
	if err := acks[0].Err; !errors.Is(err, kafka.ErrGenerationOver) || !strings.Contains(err.Error(), "generation 3: ") || !strings.Contains(err.Error(), "--kafka-generation=19") {
		t.Errorf("after generation 19 has begun: %v", err)
	}

	// A topic that was made anew.
	adm := b.admin(t)
	anew := cfg
	anew.TopicPrefix += "anew"
	if info, err = kafka.EnsureTopics(t.Context(), anew, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	anew.TopicID = info.ID
	f, err = kafka.NewFence(anew, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	if err := f.Allow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := adm.DeleteTopic(t.Context(), info.Topic); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, "the topic to be gone", func() bool {
		f.Expire()
		err := f.Allow(t.Context())
		if errors.Is(err, event.ErrWritesStopped) {
			t.Fatalf("a topic that is gone stops writes for good: %v", err)
		}
		return err != nil
	})
	kafkatest.Eventually(t, "the topic to be made anew", func() bool {
		anew.TopicID = ""
		_, err := kafka.EnsureTopics(t.Context(), anew, kafkatest.Log(t))
		return err == nil
	})
	kafkatest.Eventually(t, "the fence to notice", func() bool {
		f.Expire()
		return errors.Is(f.Allow(t.Context()), kafka.ErrTopicMismatch)
	})
	if err := f.Err(); !errors.Is(err, event.ErrWritesStopped) || !strings.Contains(err.Error(), "made anew") {
		t.Errorf("got %v, want that the topic was made anew", err)
	}
}

// testFenceBlind has a fence whose brokers do not answer, and a producer whose
// brokers do.
func testFenceBlind(t *testing.T, b *backend) {
	cfg := b.topics(t)
	cfg.Producer.AckTimeout = time.Second
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := cfg
	nobody.Brokers = []string{l.Addr().String()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := kafka.NewFence(nobody, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	cfg.Producer.Fence = f
	p := kafkatest.NewProducer(t, cfg)
	start := time.Now()
	a := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))[0]
	if !errors.Is(a.Err, event.ErrUnavailable) || errors.Is(a.Err, event.ErrWritesStopped) {
		t.Errorf("a write is acknowledged with %v, though nobody says whether a later generation has begun", a)
	}
	if took := time.Since(start); took > kafkatest.Timeout/2 {
		t.Errorf("the answer took %s", took)
	}
	// A reason of somebody else's stops writes as well.
	want := errors.New("of the database")
	f.Stop(want)
	f.Stop(errors.New("a later one"))
	if a := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))[0]; !errors.Is(a.Err, want) || !errors.Is(a.Err, event.ErrWritesStopped) {
		t.Errorf("got %v, want %v", a.Err, want)
	}
}
