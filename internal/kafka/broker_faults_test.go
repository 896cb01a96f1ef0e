package kafka_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// A gap inside the log is loss as well, also where no broker says so.
func TestGap(t *testing.T) {
	t.Parallel()
	broker := kafkatest.StartEmbedded(t, broker.Config{Dir: t.TempDir()})
	cfg := kafka.Config{Brokers: []string{broker.Addr()}, Partitions: 1}
	if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 1, 1))
	c := kafkatest.NewConsumer(t, cfg, nil)
	kafkatest.Collect(t, c, 1)
	c.Pause()
	idle, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := c.Poll(idle, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want nothing to read", err)
	}
	for range 2 { // batches of their own
		kafkatest.Produce(t, p, kafkatest.Updates(0, 1, 1))
	}
	// The broker has lost the second batch: from where it was, the third comes.
	broker.Cluster().ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		broker.Cluster().KeepControl()
		for _, topic := range req.(*kmsg.FetchRequest).Topics { //nolint:forcetypeassert // of that key
			for i := range topic.Partitions {
				if p := &topic.Partitions[i]; p.FetchOffset == 1 {
					p.FetchOffset = 2
				}
			}
		}
		return nil, nil, false
	})
	c.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), kafkatest.Timeout)
	defer cancel()
	var err error
	for err == nil {
		_, err = c.Poll(ctx, 1)
	}
	if !errors.Is(err, kafka.ErrDataLoss) || !strings.Contains(err.Error(), "offsets 1 to 1 are missing") {
		t.Errorf("error %v, want that offset 1 is missing", err)
	}
}

// A request that vanishes, as behind a broken network, holds its connection up
// for a while; callers hear in time, and the producer gets over it by itself.
func TestSwallowedRequest(t *testing.T) {
	t.Parallel()
	broker := kafkatest.StartEmbedded(t, broker.Config{Dir: t.TempDir()})
	b := &backend{addr: broker.Addr()}
	cfg := b.topics(t)
	cfg.Producer.AckTimeout = time.Second
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4))
	broker.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		return nil, nil, true
	})
	start := time.Now()
	acks := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))
	if took := time.Since(start); !errors.Is(acks[0].Err, event.ErrUnavailable) || took > 1500*time.Millisecond {
		t.Errorf("error %v after %s", acks[0].Err, took)
	}
	kafkatest.Eventually(t, "writes again", func() bool { return p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))[0].Err == nil })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("writes again after %s", took)
	}
}
