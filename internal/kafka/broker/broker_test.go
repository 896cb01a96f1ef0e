package broker_test

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// brokerDirEnv names a directory. With it, the test binary is an embedded broker.
const brokerDirEnv = "SLUICE_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(brokerDirEnv); dir != "" {
		serveBroker(dir)
		return
	}
	m.Run()
}

// serveBroker prints the broker's address, and serves until it is killed or
// its standard input ends.
func serveBroker(dir string) {
	b, err := broker.New(broker.Config{Dir: dir}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
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
func TestTornCommit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	proc := startBrokerProcess(t, dir)
	cfg := kafkatest.NewTopics(t, proc.addr)
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 100, 10))
	c := kafkatest.NewConsumer(t, cfg, nil)
	records := kafkatest.Collect(t, c, 100)
	if err := c.Commit(t.Context(), kafkatest.Offsets(records[:50])); err != nil {
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
	cfg.Brokers = []string{proc.addr}
	if diff := cmp.Diff(kafkatest.Offsets(records[:50]), kafkatest.GroupOffsets(t, cfg)); diff != "" {
		t.Errorf("commits after the first restart: %s", diff)
	}
	cfg.Brokers = []string{proc.addr}
	c = kafkatest.NewConsumer(t, cfg, nil)
	kafkatest.Collect(t, c, 50)
	if err := c.Commit(t.Context(), kafkatest.Offsets(records)); err != nil {
		t.Fatal(err)
	}
	proc.kill(t)

	proc = startBrokerProcess(t, dir)
	cfg.Brokers = []string{proc.addr}
	if diff := cmp.Diff(kafkatest.Offsets(records), kafkatest.GroupOffsets(t, cfg)); diff != "" {
		t.Errorf("commits after the second restart: %s", diff)
	}
	if err := proc.end(); err != nil {
		t.Fatal(err)
	}
}

// The data of a broker that was killed, or closed, is there at its next start:
// topics with their ids and configs, records, and the group's commits.
func TestRestart(t *testing.T) {
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
			cfg := kafkatest.NewConfig(proc.addr)
			info, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
			if err != nil {
				t.Fatal(err)
			}
			p := kafkatest.NewProducer(t, cfg)
			acked := kafkatest.Produce(t, p, kafkatest.Updates(0, 500, 50))
			c := kafkatest.NewConsumer(t, cfg, nil)
			records := kafkatest.Collect(t, c, 500)
			commits := kafkatest.Offsets(records[:300])
			if err := c.Commit(t.Context(), commits); err != nil {
				t.Fatal(err)
			}
			more := kafkatest.Produce(t, p, kafkatest.Updates(500, 100, 50))
			acked = append(acked, more...)
			tt.stop(t, proc)

			proc = startBrokerProcess(t, dir)
			cfg.Brokers = []string{proc.addr}
			again, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(info, again); diff != "" {
				t.Errorf("topic after restart: %s", diff)
			}
			if diff := cmp.Diff(commits, kafkatest.GroupOffsets(t, cfg)); diff != "" {
				t.Errorf("commits after restart: %s", diff)
			}
			// Another group reads the whole log; new records go on after it.
			cfg.Group += ".other"
			acked = append(acked, kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(600, 10, 10))...)
			found := make(map[event.Receipt]bool)
			for _, r := range kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), 610) {
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

func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := kafkatest.StartEmbedded(t, broker.Config{Dir: dir})
	_, err := broker.New(broker.Config{Dir: dir}, kafkatest.Log(t))
	if !errors.Is(err, broker.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second broker: error %v, want that %s is in use", err, dir)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	kafkatest.StartEmbedded(t, broker.Config{Dir: dir})
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := broker.New(broker.Config{Port: 70_000, TopicBytesMax: -1, RetentionInterval: -1}, kafkatest.Log(t))
	for _, field := range []string{"Dir:", "Port:", "TopicBytesMax:", "RetentionInterval:"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("error %v does not name %s", err, field)
		}
	}
}

// Retention removes what is old, or too much, but nothing that the group has
// yet to read, and never the last record: a crash must not start the
// partition's offsets anew.
func TestRetention(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, dir string, cfg broker.Config) *broker.Broker {
		cfg.Dir = dir
		return kafkatest.StartEmbedded(t, cfg)
	}
	retain := func(t *testing.T, b *broker.Broker) {
		t.Helper()
		if err := b.Retain(t.Context(), kafkatest.Admin(t, b.Addr())); err != nil {
			t.Fatal(err)
		}
	}
	logStart := func(b *broker.Broker, cfg kafka.Config) int64 {
		return b.Cluster().PartitionInfo(cfg.EventsTopic(), 0).LogStartOffset
	}

	t.Run("by age", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		b := start(t, dir, broker.Config{Group: "g"})
		cfg := kafkatest.NewConfig(b.Addr())
		cfg.Partitions, cfg.Group, cfg.Retention = 1, "g", time.Second
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
		p := kafkatest.NewProducer(t, cfg)
		for i := range 10 {
			kafkatest.Produce(t, p, kafkatest.Updates(i, 1, 1))
		}
		<-time.After(1100 * time.Millisecond) // the broker's own clock decides
		retain(t, b)
		if got := logStart(b, cfg); got != 0 {
			t.Fatalf("log begins at %d: records are gone that were never read", got)
		}
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Collect(t, c, 10)
		if err := c.Commit(t.Context(), map[int32]int64{0: 6}); err != nil {
			t.Fatal(err)
		}
		retain(t, b)
		if got := logStart(b, cfg); got != 6 {
			t.Errorf("log begins at %d, want the commit, 6", got)
		}
		if err := c.Commit(t.Context(), map[int32]int64{0: 10}); err != nil {
			t.Fatal(err)
		}
		retain(t, b)
		if got := logStart(b, cfg); got != 9 {
			t.Errorf("log begins at %d, want the last record, 9", got)
		}
	})
	t.Run("by size", func(t *testing.T) {
		t.Parallel()
		b := start(t, t.TempDir(), broker.Config{Group: "g", TopicBytesMax: 50_000})
		cfg := kafkatest.NewConfig(b.Addr())
		cfg.Partitions, cfg.Group, cfg.Producer.Compression = 1, "g", kafka.CompressionNone
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
		p := kafkatest.NewProducer(t, cfg)
		for range 100 {
			kafkatest.Produce(t, p, []event.Write{kafkatest.Content("a", 1000)})
		}
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Collect(t, c, 100)
		if err := c.Commit(t.Context(), map[int32]int64{0: 100}); err != nil {
			t.Fatal(err)
		}
		retain(t, b)
		info := b.Cluster().PartitionInfo(cfg.EventsTopic(), 0)
		if info.NumBytes > 55_000 || info.NumBytes < 40_000 {
			t.Errorf("%d bytes are left, want about 50000", info.NumBytes)
		}
	})
	t.Run("and a crash after it", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		b := start(t, dir, broker.Config{Group: "g"})
		cfg := kafkatest.NewConfig(b.Addr())
		cfg.Partitions, cfg.Group, cfg.Retention = 1, "g", time.Second
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
		p := kafkatest.NewProducer(t, cfg)
		for i := range 10 {
			kafkatest.Produce(t, p, kafkatest.Updates(i, 1, 1))
		}
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Collect(t, c, 10)
		if err := c.Commit(t.Context(), map[int32]int64{0: 10}); err != nil {
			t.Fatal(err)
		}
		<-time.After(1100 * time.Millisecond)
		retain(t, b)
		if got := logStart(b, cfg); got != 9 {
			t.Fatalf("log begins at %d, want 9", got)
		}
		// What a crash leaves: the files as they are, without what Close writes.
		crashed := t.TempDir()
		if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		b = start(t, crashed, broker.Config{Group: "g"})
		cfg.Brokers = []string{b.Addr()}
		receipts := kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(10, 1, 1))
		if receipts[0].Offset != 10 {
			t.Errorf("the next record has offset %d, want 10", receipts[0].Offset)
		}
		if got := kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), 1); got[0].Offset != 10 {
			t.Errorf("read offset %d, want 10", got[0].Offset)
		}
	})
}
