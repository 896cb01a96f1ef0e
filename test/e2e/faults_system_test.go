//go:build faults

package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/test/checker"
)

const (
	// drainBound is how long the consumer may take for all that is left of the
	// log, once nothing fails any more.
	drainBound = 2 * time.Minute
	// sessionTimeout is the consumers' in these tests: how long the partitions
	// of a killed one wait.
	sessionTimeout = time.Second
)

// clickhouseServer is a ClickHouse of the test's own, which comes back when its
// process is killed.
type clickhouseServer struct {
	engine *engine.Engine
	stop   func() error
}

func startClickHouse(t *testing.T, dir string, with ...func(*engine.Config)) *clickhouseServer {
	t.Helper()
	s, err := openClickHouse(dir, with...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("ClickHouse: %v", err)
		}
	})
	return s
}

func openClickHouse(dir string, with ...func(*engine.Config)) (*clickhouseServer, error) {
	library, err := engine.Find("")
	if err != nil {
		return nil, err
	}
	cfg := engine.Config{Library: library, Dir: dir, RestartDelayMax: 200 * time.Millisecond}
	for _, change := range with {
		change(&cfg)
	}
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	s := &clickhouseServer{engine: e, stop: sync.OnceValue(func() error {
		cancel()
		return <-done
	})}
	if err := e.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// url is that of a database, by the native protocol at the address.
func (s *clickhouseServer) url(addr, database string) string {
	u := url.URL{Scheme: "clickhouse", User: url.UserPassword(engine.User, s.engine.Password()), Host: addr, Path: "/" + database}
	return u.String()
}

// system is a Sluice whose parts the test starts and ends, with the load on it
// and the history of that.
type system struct {
	clickhouse *clickhouseServer
	// database is the name of the one that has the tables.
	database string
	kafka    kafka.Config
	// broker is nil for an embedded one.
	broker *kafkatest.Broker
	// dir is where an embedded broker keeps its data.
	dir     string
	api     string // address
	history *checker.History
	// flags are those of every process, and env its variables. binary is the
	// program, where it is not this build's.
	flags, env []string
	binary     string

	mu      sync.Mutex
	started []*process
}

// end ends all processes of the system, and shows what the last ones said when
// the test has failed.
func (s *system) end(t *testing.T) {
	const shown = 4
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.started {
		p.kill()
		if t.Failed() && i >= len(s.started)-shown {
			t.Logf("end of the log of sluice %s:\n%s", p.name, p.log.tail(logTailBytes))
		}
	}
}

// newKafkaSystem has Apache Kafka and ClickHouse, and no process of Sluice yet.
func newKafkaSystem(t *testing.T, brokers int) *system {
	t.Helper()
	return onServers(t, kafkatest.Start(t, kafkatest.Options{Brokers: brokers, QuickStart: true}), startClickHouse(t, t.TempDir()), engine.Database)
}

// shared are servers for the tests that do not break them.
var shared struct {
	once       sync.Once
	broker     *kafkatest.Broker
	clickhouse *clickhouseServer
	err        error
	systems    atomic.Int64
}

// newSharedSystem has topics, a group and a database of its own on Apache
// Kafka and ClickHouse, which it must leave as they are.
func newSharedSystem(t *testing.T) *system {
	t.Helper()
	kafkatest.Require(t)
	shared.once.Do(func() {
		var dir string
		if dir, shared.err = os.MkdirTemp("", "sluice-faults-"); shared.err != nil { //nolint:usetesting // it outlives the test
			return
		}
		atEnd = append(atEnd, func() { _ = os.RemoveAll(dir) })
		if shared.broker, shared.err = kafkatest.New(dir, kafkatest.Options{QuickStart: true}); shared.err != nil {
			return
		}
		atEnd = append(atEnd, shared.broker.Close)
		shared.clickhouse, shared.err = openClickHouse(filepath.Join(dir, "clickhouse"))
		if shared.err == nil {
			atEnd = append(atEnd, func() { _ = shared.clickhouse.stop() })
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return onServers(t, shared.broker, shared.clickhouse, fmt.Sprintf("shared_%d", shared.systems.Add(1)))
}

// onServers has topics, a group and a database of the name on servers that it
// may share with others.
func onServers(t *testing.T, broker *kafkatest.Broker, clickhouse *clickhouseServer, name string) *system {
	t.Helper()
	s := &system{broker: broker, clickhouse: clickhouse, database: name, api: freeAddr(t), history: checker.NewHistory()}
	t.Cleanup(func() { s.end(t) })
	s.kafka = kafka.Config{Brokers: broker.Addrs, TopicPrefix: name, Group: name}
	s.flags = []string{
		"--kafka-brokers", strings.Join(broker.Addrs, ","), "--kafka-topic", name, "--kafka-group", name,
		"--kafka-session-timeout", sessionTimeout.String(),
		"--clickhouse-url", clickhouse.url(clickhouse.engine.Addr(), name),
	}
	return s
}

// newEmbeddedSystem has a ClickHouse, and the data of an embedded broker.
func newEmbeddedSystem(t *testing.T) *system {
	t.Helper()
	s := newWholeSystem(t, t.TempDir())
	s.clickhouse = startClickHouse(t, t.TempDir())
	s.flags = append(s.flags, "--clickhouse-url", s.clickhouse.url(s.clickhouse.engine.Addr(), s.database))
	return s
}

// newWholeSystem has the data of a sluice serve that has all in it.
func newWholeSystem(t *testing.T, dir string) *system {
	t.Helper()
	s := &system{dir: dir, database: engine.Database, api: freeAddr(t), history: checker.NewHistory()}
	t.Cleanup(func() { s.end(t) })
	broker := freeAddr(t) // that stays
	_, port, err := net.SplitHostPort(broker)
	if err != nil {
		t.Fatal(err)
	}
	s.kafka = kafka.Config{Brokers: []string{broker}}
	s.flags = []string{"--data-dir", s.dir, "--broker-port", port}
	return s
}

// run starts a process of the system, which ends with the test.
func (s *system) run(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := launch(t, cmp.Or(s.binary, sluiceBinary), os.TempDir(), append(slices.Clone(s.env), env...), append(args, s.flags...)...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started = append(s.started, p)
	return p
}

func (s *system) runAPI(t *testing.T, env ...string) *process {
	t.Helper()
	return s.run(t, env, "api", "--listen", s.api)
}

func (s *system) runConsumer(t *testing.T, env ...string) *process {
	t.Helper()
	return s.run(t, env, "consume", "--metrics-listen", "")
}

func (s *system) runServe(t *testing.T, env ...string) *process {
	t.Helper()
	return s.run(t, env, "serve", "--listen", s.api)
}

func (s *system) checkerDatabase() checker.Database {
	e := s.clickhouse.engine
	return checker.Database{Addr: e.HTTPAddr(), Name: s.database, User: engine.User, Password: e.Password()}
}

// tables reads what is in the database.
func (s *system) tables(ctx context.Context) (*checker.Tables, error) {
	return s.checkerDatabase().ReadTables(ctx)
}

// sql runs a statement on the database.
func (s *system) sql(t *testing.T, statement string) [][]string {
	t.Helper()
	rows, err := s.checkerDatabase().Query(t.Context(), statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return rows
}

func (s *system) client() *client { return newClient(s.api) }

// load runs a load until the returned function is called, which returns when
// the last answer was there.
func (s *system) load(seed uint64, clients int) (stop func()) {
	return s.loadSlowly(seed, clients, 0)
}

// loadSlowly is load with another than the usual pause between requests.
func (s *system) loadSlowly(seed uint64, clients int, pause time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	l := &checker.Load{URL: "http://" + s.api, Clients: clients, Pause: pause, Seed: seed, History: s.history}
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// waitForWrites waits until so many more writes were acknowledged.
func (s *system) waitForWrites(t *testing.T, n int) {
	t.Helper()
	want := s.acknowledged() + n
	eventually(t, startBound, fmt.Sprintf("%d more writes", n), func() error {
		if now := s.acknowledged(); now < want {
			return fmt.Errorf("%d are missing", want-now)
		}
		return nil
	})
}

// admin asks the brokers.
func (s *system) admin(t *testing.T, ask func(ctx context.Context, adm *kadm.Client) error) error {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return ask(ctx, kadm.NewClient(cl))
}

// stopConsumers stops the consumers that run, in order.
func (s *system) stopConsumers(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	started := slices.Clone(s.started)
	s.mu.Unlock()
	for _, p := range started {
		if p.name == "consume" && !p.ended() {
			p.stop(t)
		}
	}
}

// lag is the number of records that are not applied.
func (s *system) lag(t *testing.T) (int64, error) {
	t.Helper()
	var lag int64
	topic := s.kafka.EventsTopic()
	err := s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		ends, err := adm.ListEndOffsets(ctx, topic)
		if err = errors.Join(err, ends.Error()); err != nil {
			return err
		}
		commits, err := adm.FetchOffsets(ctx, s.kafka.WithDefaults().Group)
		if err = errors.Join(err, commits.Error()); err != nil {
			return err
		}
		ends.Each(func(o kadm.ListedOffset) {
			at := int64(0)
			if c, ok := commits.Lookup(topic, o.Partition); ok && c.At > 0 {
				at = c.At
			}
			lag += o.Offset - at
		})
		return nil
	})
	return lag, err
}

// drain waits until all of the log is applied.
func (s *system) drain(t *testing.T) {
	t.Helper()
	eventually(t, drainBound, "the consumer to apply all", func() error {
		lag, err := s.lag(t)
		if err == nil && lag > 0 {
			err = fmt.Errorf("%d records are left", lag)
		}
		return err
	})
}

// verdict is what the history, the log and the tables say at the end. The
// system must run, and there must be no load on it.
func (s *system) verdict(t *testing.T) error {
	t.Helper()
	s.drain(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log, err := checker.ReadLog(ctx, s.kafka)
	if err != nil {
		return err
	}
	tables, err := s.tables(ctx)
	if err != nil {
		return err
	}
	t.Logf("%s; log: %d records, %d dead letters; tables: %s", s.history.Summary(), len(log.Records), len(log.Letters), tables)
	return s.history.Check(log, tables)
}

// rewind makes the consumer read all of the log again, from its first record.
// No consumer must run.
func (s *system) rewind(t *testing.T) {
	t.Helper()
	if s.broker == nil {
		s.embeddedBroker(t, func() { s.setBack(t) })
	} else {
		s.setBack(t)
	}
}

func (s *system) setBack(t *testing.T) {
	t.Helper()
	topic := s.kafka.EventsTopic()
	eventually(t, startBound, "the offsets to be set back", func() error {
		return s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
			starts, err := adm.ListStartOffsets(ctx, topic)
			if err = errors.Join(err, starts.Error()); err != nil {
				return err
			}
			return adm.CommitAllOffsets(ctx, s.kafka.WithDefaults().Group, starts.Offsets())
		})
	})
	if lag, err := s.lag(t); err != nil || lag == 0 {
		t.Fatalf("after the offsets were set back, %d records are to be read, error %v", lag, err)
	}
}

// checkReplay has start start a consumer that reads the whole log again, into
// the tables that have it, and compares them with what they were. No consumer
// must run.
func (s *system) checkReplay(t *testing.T, start func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), drainBound)
	defer cancel()
	before, err := s.tables(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.rewind(t)
	start()
	s.drain(t)
	after, err := s.tables(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range checker.Differences(before, after) {
		t.Errorf("a replay of the whole log changed something: %v", err)
	}
}

// embeddedBroker runs the system's embedded broker alone, without a consumer
// or an API, while do runs.
func (s *system) embeddedBroker(t *testing.T, do func()) {
	t.Helper()
	_, port, err := net.SplitHostPort(s.kafka.Brokers[0])
	if err != nil {
		t.Fatal(err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	b, err := broker.New(broker.Config{Dir: filepath.Join(s.dir, "kafka"), Port: number}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	do()
}

// ourIDs begins the ids that tests write to themselves, beside the load, where
// the ids are theirs to choose.
const ourIDs = "ours/"

// isOurs is for [checker.History.Foreign].
func isOurs(id string) bool { return strings.HasPrefix(id, ourIDs) }

// readLog reads both topics.
func (s *system) readLog(t *testing.T) *checker.Log {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log, err := checker.ReadLog(ctx, s.kafka)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// requireRunning fails the test if a process has ended by itself.
func requireRunning(t *testing.T, processes ...*process) {
	t.Helper()
	for _, p := range processes {
		if p.ended() {
			t.Errorf("sluice %s has ended, exit code %d", p.name, p.cmd.ProcessState.ExitCode())
		}
	}
}

// acknowledged is the number of the load's writes that are.
func (s *system) acknowledged() int {
	return s.history.Count(checker.Acknowledged) + s.history.Count(checker.Applied)
}

func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// mountSmall mounts a file system of a size like "8m" at dir, and returns what
// gives it another size, which must have room for what is there.
func mountSmall(t *testing.T, dir, size string) (resize func(size string) error) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount := func(options string) error {
		out, err := exec.Command("mount", "-t", "tmpfs", "-o", options, "tmpfs", dir).CombinedOutput()
		if err != nil {
			return fmt.Errorf("mount: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	if err := mount("size=" + size); err != nil {
		t.Skipf("no small disk can be had here: %v", err)
	}
	t.Cleanup(func() {
		// Lazily: its processes end after this.
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return func(size string) error { return mount("remount,size=" + size) }
}
