package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// testTimeout bounds every wait of these tests that is expected to end.
const testTimeout = 30 * time.Second

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerDirEnv); dir != "" {
		serveBroker(dir)
		return
	}
	m.Run()
	jvm.mu.Lock()
	if jvm.broker != nil {
		jvm.broker.Close()
		_ = os.RemoveAll(jvm.dir)
	}
}

// jvm is the one Apache Kafka that the package's tests share; each of them has
// topics and a group of its own.
var jvm struct {
	mu     sync.Mutex
	broker *kafkatest.Broker
	dir    string
	err    error
}

func apacheKafka(t testing.TB) *kafkatest.Broker {
	t.Helper()
	kafkatest.Require(t)
	jvm.mu.Lock()
	defer jvm.mu.Unlock()
	if jvm.broker == nil && jvm.err == nil {
		if jvm.dir, jvm.err = os.MkdirTemp("", "sluice-kafka-"); jvm.err == nil { //nolint:usetesting // it outlives the test
			jvm.broker, jvm.err = kafkatest.New(jvm.dir, kafkatest.Options{})
		}
	}
	if jvm.err != nil {
		t.Fatalf("start Apache Kafka: %v", jvm.err)
	}
	return jvm.broker
}

// backend is a broker that the conformance suite runs over.
type backend struct {
	addr string
	// freeze makes the broker answer nothing from its next write on, until thaw.
	freeze func(t *testing.T) (thaw func())
	// kill ends the broker as a crash does, until restart.
	kill func(t *testing.T) (restart func())
}

func embeddedBackend(t *testing.T) *backend {
	t.Helper()
	dir := t.TempDir()
	b := startBroker(t, kafka.BrokerConfig{Dir: dir})
	_, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return &backend{
		addr: b.Addr(),
		freeze: func(t *testing.T) func() {
			// The broker answers nobody while a control function runs. (Its own
			// SleepControl, which would freeze produce requests alone, has a data
			// race when several of them sleep on one connection.)
			thawed := make(chan struct{})
			b.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				<-thawed
				return nil, nil, false
			})
			once := sync.OnceFunc(func() { close(thawed) })
			t.Cleanup(once)
			return once
		},
		kill: func(t *testing.T) func() {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			return func() { b = startBroker(t, kafka.BrokerConfig{Dir: dir, Port: n}) }
		},
	}
}

func startBroker(t testing.TB, cfg kafka.BrokerConfig) *kafka.Broker {
	t.Helper()
	b, err := kafka.NewBroker(cfg, logTo(t))
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

func apacheBackend(t *testing.T) *backend {
	t.Helper()
	b := apacheKafka(t)
	return &backend{
		addr: b.Addrs[0],
		freeze: func(t *testing.T) func() {
			thaw, err := b.Freeze(0)
			if err != nil {
				t.Fatal(err)
			}
			once := sync.OnceFunc(thaw)
			t.Cleanup(once)
			return once
		},
		kill: func(t *testing.T) func() {
			b.Kill(0)
			once := sync.OnceFunc(func() {
				if err := b.Restart(0); err != nil {
					t.Fatal(err)
				}
			})
			t.Cleanup(once)
			return once
		},
	}
}

var prefixes atomic.Int64

// config has topics and a group of the test's own, and four partitions.
func (b *backend) config() kafka.Config {
	name := fmt.Sprintf("t%d.%d", os.Getpid(), prefixes.Add(1))
	return kafka.Config{
		Brokers: []string{b.addr}, TopicPrefix: name, Group: name, Partitions: 4,
		Producer: kafka.ProducerConfig{AckTimeout: 10 * time.Second},
		Consumer: kafka.ConsumerConfig{SessionTimeout: 6 * time.Second},
	}
}

// topics makes the topics of a new config.
func (b *backend) topics(t *testing.T) kafka.Config {
	t.Helper()
	cfg := b.config()
	if _, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t)); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (b *backend) admin(t testing.TB) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

func newProducer(t testing.TB, cfg kafka.Config) *kafka.Producer {
	t.Helper()
	p, err := kafka.NewProducer(cfg, logTo(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = p.Close(ctx) // what a test left frozen is not of interest
	})
	return p
}

func newConsumer(t testing.TB, cfg kafka.Config, revoked kafka.RevokedFunc) *kafka.Consumer {
	t.Helper()
	c, err := kafka.NewConsumer(cfg, revoked, logTo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// logTo passes logs on while the test runs.
func logTo(t testing.TB) *slog.Logger {
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

// updates are n updates, of which each names one of the aliases in turn and
// carries its place, from first on, as its latency.
func updates(first, n, aliases int) []event.Write {
	writes := make([]event.Write, n)
	for i := range writes {
		writes[i] = event.Write{
			Op: event.OpUpdate, Alias: "alias-" + strconv.Itoa((first+i)%aliases),
			Set: event.Fields(0).With(event.FieldLatency), Latency: float64(first + i),
		}
	}
	return writes
}

// produce writes all, and returns their receipts.
func produce(t testing.TB, p *kafka.Producer, writes []event.Write) []event.Receipt {
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

// collect polls until there are n records.
func collect(t testing.TB, c *kafka.Consumer, n int) []event.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	var records []event.Record
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

// offsets are the next offset of each partition after the records.
func offsets(records []event.Record) map[int32]int64 {
	next := make(map[int32]int64)
	for i := range records {
		next[records[i].Partition] = max(next[records[i].Partition], records[i].Offset+1)
	}
	return next
}

// eventually polls cond until it holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", testTimeout, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}
