package kafkatest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/record"
)

// Timeout bounds every wait of these functions that is expected to end.
const Timeout = 30 * time.Second

// StartEmbedded starts an embedded broker that is closed when the test ends.
func StartEmbedded(t testing.TB, cfg broker.Config) *broker.Broker {
	t.Helper()
	b, err := broker.New(cfg, Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

var prefixes atomic.Int64

// NewConfig returns a config for the broker at addr with a topic prefix and a
// group of its own, and four partitions.
func NewConfig(addr string) kafka.Config {
	name := fmt.Sprintf("t%d.%d", os.Getpid(), prefixes.Add(1))
	return kafka.Config{
		Brokers: []string{addr}, TopicPrefix: name, Group: name, Partitions: 4,
		Producer: kafka.ProducerConfig{AckTimeout: 10 * time.Second},
		Consumer: kafka.ConsumerConfig{SessionTimeout: 6 * time.Second},
	}
}

// NewTopics creates the topics of a [NewConfig].
func NewTopics(t testing.TB, addr string) kafka.Config {
	t.Helper()
	cfg := NewConfig(addr)
	if _, err := kafka.EnsureTopics(t.Context(), cfg, Log(t)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Admin returns an admin client of the broker at addr.
func Admin(t testing.TB, addr string) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// NewProducer returns a producer that is closed when the test ends.
func NewProducer(t testing.TB, cfg kafka.Config) *kafka.Producer {
	t.Helper()
	p, err := kafka.NewProducer(cfg, Log(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = p.Close(ctx) // a test may have left the broker frozen
	})
	return p
}

// NewConsumer returns a consumer that is closed when the test ends.
func NewConsumer(t testing.TB, cfg kafka.Config, revoked kafka.RevokedFunc) *kafka.Consumer {
	t.Helper()
	c, err := kafka.NewConsumer(cfg, revoked, Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Timeout)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Log returns a logger that writes warnings to the test's log while the test runs.
func Log(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

// Updates returns n updates. They name the aliases in turn, and their latencies
// are first, first+1 and so on.
func Updates(first, n, aliases int) []event.Write {
	writes := make([]event.Write, n)
	for i := range writes {
		writes[i] = event.Write{
			Op: event.OpUpdate, Alias: "alias-" + strconv.Itoa((first+i)%aliases),
			Set: event.Fields(0).With(event.FieldLatency), Latency: float64(first + i),
		}
	}
	return writes
}

// Produce sends all writes and returns their receipts.
func Produce(t testing.TB, p *kafka.Producer, writes []event.Write) []event.Receipt {
	t.Helper()
	acks := p.Produce(t.Context(), writes)
	if len(acks) != len(writes) {
		t.Fatalf("%d acks of %d writes", len(acks), len(writes))
	}
	receipts := make([]event.Receipt, len(acks))
	for i, a := range acks {
		if a.Err != nil {
			t.Fatalf("ack %d: %v", i, a.Err)
		}
		receipts[i] = a.Receipt
	}
	return receipts
}

// Collect polls until it has n records.
func Collect(t testing.TB, c *kafka.Consumer, n int) []record.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	var records []record.Record
	for len(records) < n {
		chunks, err := c.Poll(ctx, 500)
		if err != nil {
			t.Fatalf("poll after %d of %d records: %v", len(records), n, err)
		}
		for _, chunk := range chunks {
			records = append(records, chunk.Records...)
		}
	}
	if len(records) > n {
		t.Fatalf("%d records, want %d", len(records), n)
	}
	return records
}

// Offsets returns the offset after the last record of each partition.
func Offsets(records []record.Record) map[int32]int64 {
	next := make(map[int32]int64)
	for i := range records {
		next[records[i].Partition] = max(next[records[i].Partition], records[i].Offset+1)
	}
	return next
}

// Eventually polls cond until it holds.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(Timeout)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Timeout, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// GroupOffsets returns the offsets that the group has committed.
func GroupOffsets(t testing.TB, cfg kafka.Config) map[int32]int64 {
	t.Helper()
	resp, err := Admin(t, cfg.Brokers[0]).FetchOffsets(t.Context(), cfg.Group)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[int32]int64)
	for p, o := range resp[cfg.EventsTopic()] {
		got[p] = o.At
	}
	return got
}

// Content returns an update that sets an input of size bytes.
func Content(alias string, size int) event.Write {
	return event.Write{
		Op: event.OpUpdate, Alias: alias, Set: event.Fields(0).With(event.FieldInput),
		Input: event.Content{Kind: event.KindString, Data: []byte(strings.Repeat("x", size))},
	}
}
