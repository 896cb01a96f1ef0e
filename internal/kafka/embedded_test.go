package kafka_test

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
)

// brokerDirEnv makes the test binary an embedded broker over the directory.
const brokerDirEnv = "SLUICE_TEST_BROKER_DIR"

// serveBroker prints the broker's address, and serves until it is killed or
// its standard input ends.
func serveBroker(dir string) {
	b, err := kafka.NewBroker(kafka.BrokerConfig{Dir: dir}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.WriteString(b.Addr() + "\n")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	if err := b.Close(); err != nil {
		panic(err)
	}
}

type brokerProcess struct {
	addr string
	cmd  *exec.Cmd
	// end closes its standard input.
	end func() error
}

func startBrokerProcess(t *testing.T, dir string) *brokerProcess {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), brokerDirEnv+"="+dir)
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("broker process: %v\n%s", err, stderr)
	}
	return &brokerProcess{addr: strings.TrimSpace(line), cmd: cmd, end: stdin.Close}
}

func (p *brokerProcess) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait() // killed, as it says
}

// What is committed after a start that found the last commit torn is there at
// the next one.
func TestEmbeddedBrokerTornCommit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	proc := startBrokerProcess(t, dir)
	b := &backend{addr: proc.addr}
	cfg := b.topics(t)
	p := newProducer(t, cfg)
	produce(t, p, updates(0, 100, 10))
	c := newConsumer(t, cfg, nil)
	records := collect(t, c, 100)
	if err := c.Commit(t.Context(), offsets(records[:50])); err != nil {
		t.Fatal(err)
	}
	proc.kill(t)

	path := filepath.Join(dir, "data", "groups.log")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, text[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	proc = startBrokerProcess(t, dir)
	b.addr = proc.addr
	if diff := cmp.Diff(offsets(records[:50]), groupOffsets(t, b, cfg)); diff != "" {
		t.Errorf("commits after the first restart: %s", diff)
	}
	cfg.Brokers = []string{proc.addr}
	c = newConsumer(t, cfg, nil)
	collect(t, c, 50)
	if err := c.Commit(t.Context(), offsets(records)); err != nil {
		t.Fatal(err)
	}
	proc.kill(t)

	proc = startBrokerProcess(t, dir)
	b.addr = proc.addr
	if diff := cmp.Diff(offsets(records), groupOffsets(t, b, cfg)); diff != "" {
		t.Errorf("commits after the second restart: %s", diff)
	}
	if err := proc.end(); err != nil {
		t.Fatal(err)
	}
}

// The data of a broker that was killed, or closed, is there at its next start:
// topics with their ids and configs, records, and the group's commits.
func TestEmbeddedBrokerRestart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		stop func(t *testing.T, p *brokerProcess)
	}{
		{"killed", func(t *testing.T, p *brokerProcess) { p.kill(t) }},
		{"closed", func(t *testing.T, p *brokerProcess) {
			if err := p.end(); err != nil {
				t.Fatal(err)
			}
			if err := p.cmd.Wait(); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			proc := startBrokerProcess(t, dir)
			b := &backend{addr: proc.addr}
			cfg := b.config()
			info, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t))
			if err != nil {
				t.Fatal(err)
			}
			p := newProducer(t, cfg)
			acked := produce(t, p, updates(0, 500, 50))
			c := newConsumer(t, cfg, nil)
			records := collect(t, c, 500)
			commits := offsets(records[:300])
			if err := c.Commit(t.Context(), commits); err != nil {
				t.Fatal(err)
			}
			more := produce(t, p, updates(500, 100, 50))
			acked = append(acked, more...)
			tt.stop(t, proc)

			proc = startBrokerProcess(t, dir)
			b.addr = proc.addr
			cfg.Brokers = []string{proc.addr}
			again, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(info, again); diff != "" {
				t.Errorf("topic after restart: %s", diff)
			}
			if diff := cmp.Diff(commits, groupOffsets(t, b, cfg)); diff != "" {
				t.Errorf("commits after restart: %s", diff)
			}
			// Another group reads the whole log; new records go on after it.
			cfg.Group += ".other"
			acked = append(acked, produce(t, newProducer(t, cfg), updates(600, 10, 10))...)
			found := make(map[event.Receipt]bool)
			for _, r := range collect(t, newConsumer(t, cfg, nil), 610) {
				found[r.Receipt()] = true
			}
			for _, r := range acked {
				if !found[r] {
					t.Errorf("acknowledged record %s is gone", r)
				}
			}
			if err := proc.end(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEmbeddedBrokerLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := startBroker(t, kafka.BrokerConfig{Dir: dir})
	_, err := kafka.NewBroker(kafka.BrokerConfig{Dir: dir}, logTo(t))
	if !errors.Is(err, kafka.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second broker: error %v, want that %s is in use", err, dir)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	startBroker(t, kafka.BrokerConfig{Dir: dir})
}

func TestEmbeddedBrokerConfig(t *testing.T) {
	t.Parallel()
	_, err := kafka.NewBroker(kafka.BrokerConfig{Port: 70_000, TopicBytesMax: -1, RetentionInterval: -1}, logTo(t))
	for _, field := range []string{"Dir:", "Port:", "TopicBytesMax:", "RetentionInterval:"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v does not name %s", err, field)
		}
	}
}

// Retention removes what is old, or too much, but nothing that the group has
// yet to read, and never the last record: a crash must not start the
// partition's offsets anew.
func TestEmbeddedBrokerRetention(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, dir string, cfg kafka.BrokerConfig) (*kafka.Broker, *backend) {
		cfg.Dir = dir
		b := startBroker(t, cfg)
		return b, &backend{addr: b.Addr()}
	}
	retain := func(t *testing.T, broker *kafka.Broker, b *backend) {
		t.Helper()
		if err := broker.Retain(t.Context(), b.admin(t)); err != nil {
			t.Fatal(err)
		}
	}
	logStart := func(broker *kafka.Broker, cfg kafka.Config) int64 {
		return broker.Cluster().PartitionInfo(cfg.EventsTopic(), 0).LogStartOffset
	}

	t.Run("by age", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		broker, b := start(t, dir, kafka.BrokerConfig{Group: "g"})
		cfg := b.config()
		cfg.Partitions, cfg.Group, cfg.Retention = 1, "g", time.Second
		if _, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t)); err != nil {
			t.Fatal(err)
		}
		p := newProducer(t, cfg)
		for i := range 10 {
			produce(t, p, updates(i, 1, 1))
		}
		<-time.After(1100 * time.Millisecond) // the broker's own clock decides
		retain(t, broker, b)
		if got := logStart(broker, cfg); got != 0 {
			t.Fatalf("log begins at %d: records are gone that were never read", got)
		}
		c := newConsumer(t, cfg, nil)
		collect(t, c, 10)
		if err := c.Commit(t.Context(), map[int32]int64{0: 6}); err != nil {
			t.Fatal(err)
		}
		retain(t, broker, b)
		if got := logStart(broker, cfg); got != 6 {
			t.Errorf("log begins at %d, want the commit, 6", got)
		}
		if err := c.Commit(t.Context(), map[int32]int64{0: 10}); err != nil {
			t.Fatal(err)
		}
		retain(t, broker, b)
		if got := logStart(broker, cfg); got != 9 {
			t.Errorf("log begins at %d, want the last record, 9", got)
		}
	})
	t.Run("by size", func(t *testing.T) {
		t.Parallel()
		broker, b := start(t, t.TempDir(), kafka.BrokerConfig{Group: "g", TopicBytesMax: 50_000})
		cfg := b.config()
		cfg.Partitions, cfg.Group, cfg.Producer.Compression = 1, "g", kafka.CompressionNone
		if _, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t)); err != nil {
			t.Fatal(err)
		}
		p := newProducer(t, cfg)
		for range 100 {
			produce(t, p, []event.Write{content("a", 1000)})
		}
		c := newConsumer(t, cfg, nil)
		collect(t, c, 100)
		if err := c.Commit(t.Context(), map[int32]int64{0: 100}); err != nil {
			t.Fatal(err)
		}
		retain(t, broker, b)
		info := broker.Cluster().PartitionInfo(cfg.EventsTopic(), 0)
		if info.NumBytes > 55_000 || info.NumBytes < 40_000 {
			t.Errorf("%d bytes are left, want about 50000", info.NumBytes)
		}
	})
	t.Run("and a crash after it", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		broker, b := start(t, dir, kafka.BrokerConfig{Group: "g"})
		cfg := b.config()
		cfg.Partitions, cfg.Group, cfg.Retention = 1, "g", time.Second
		if _, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t)); err != nil {
			t.Fatal(err)
		}
		p := newProducer(t, cfg)
		for i := range 10 {
			produce(t, p, updates(i, 1, 1))
		}
		c := newConsumer(t, cfg, nil)
		collect(t, c, 10)
		if err := c.Commit(t.Context(), map[int32]int64{0: 10}); err != nil {
			t.Fatal(err)
		}
		<-time.After(1100 * time.Millisecond)
		retain(t, broker, b)
		if got := logStart(broker, cfg); got != 9 {
			t.Fatalf("log begins at %d, want 9", got)
		}
		// What a crash leaves: the files as they are, without what Close writes.
		crashed := t.TempDir()
		if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		_, b = start(t, crashed, kafka.BrokerConfig{Group: "g"})
		cfg.Brokers = []string{b.addr}
		receipts := produce(t, newProducer(t, cfg), updates(10, 1, 1))
		if receipts[0].Offset != 10 {
			t.Errorf("the next record has offset %d, want 10", receipts[0].Offset)
		}
		if got := collect(t, newConsumer(t, cfg, nil), 1); got[0].Offset != 10 {
			t.Errorf("read offset %d, want 10", got[0].Offset)
		}
	})
}

// A gap inside the log is loss as well, also where no broker says so.
func TestGap(t *testing.T) {
	t.Parallel()
	broker := startBroker(t, kafka.BrokerConfig{Dir: t.TempDir()})
	cfg := kafka.Config{Brokers: []string{broker.Addr()}, Partitions: 1}
	if _, err := kafka.EnsureTopics(t.Context(), cfg, logTo(t)); err != nil {
		t.Fatal(err)
	}
	p := newProducer(t, cfg)
	produce(t, p, updates(0, 1, 1))
	c := newConsumer(t, cfg, nil)
	collect(t, c, 1)
	c.Pause()
	idle, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := c.Poll(idle, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want nothing to read", err)
	}
	for range 2 { // batches of their own
		produce(t, p, updates(0, 1, 1))
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
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
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
	broker := startBroker(t, kafka.BrokerConfig{Dir: t.TempDir()})
	b := &backend{addr: broker.Addr()}
	cfg := b.topics(t)
	cfg.Producer.AckTimeout = time.Second
	p := newProducer(t, cfg)
	produce(t, p, updates(0, 4, 4))
	broker.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		return nil, nil, true
	})
	start := time.Now()
	acks := p.Produce(t.Context(), updates(0, 1, 1))
	if took := time.Since(start); !errors.Is(acks[0].Err, event.ErrUnavailable) || took > 1500*time.Millisecond {
		t.Errorf("error %v after %s", acks[0].Err, took)
	}
	eventually(t, "writes again", func() bool { return p.Produce(t.Context(), updates(0, 1, 1))[0].Err == nil })
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("writes again after %s", took)
	}
}
