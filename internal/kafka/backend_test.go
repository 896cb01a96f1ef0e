package kafka_test

import (
	"net"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) {
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
	b := kafkatest.StartEmbedded(t, broker.Config{Dir: dir})
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
			return func() { b = kafkatest.StartEmbedded(t, broker.Config{Dir: dir, Port: n}) }
		},
	}
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

// config returns a config with a topic prefix and a group of its own, and four
// partitions.
func (b *backend) config() kafka.Config { return kafkatest.NewConfig(b.addr) }

// topics returns such a config, with its topics created.
func (b *backend) topics(t *testing.T) kafka.Config { return kafkatest.NewTopics(t, b.addr) }

func (b *backend) admin(t testing.TB) *kadm.Client { return kafkatest.Admin(t, b.addr) }
