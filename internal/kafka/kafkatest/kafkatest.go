// Package kafkatest has what tests of Kafka share: Apache Kafka as a KRaft cluster
// of real brokers, from the jars that scripts/install-kafka.sh installs; the
// embedded broker; and clients with topics of their own.
package kafkatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/testport"
)

const (
	// Version of Apache Kafka. scripts/install-kafka.sh says the same.
	Version = "4.3.1"

	// EnvVar says what to do without Java or the jars: 1 fails the test, 0
	// skips it even with them, unset skips it.
	EnvVar = "SLUICE_TEST_KAFKA"

	// User is that of the SASL listener, for SCRAM-SHA-256,
	// SCRAM-SHA-512 and PLAIN.
	User = "sluice"
	// Password is User's.
	Password = "sluice-secret"

	startTimeout = 2 * time.Minute
)

// Options are those of [Start].
type Options struct {
	// Brokers is the number of brokers, each also a controller. Default 1.
	Brokers int
	// QuickStart has the brokers start in less time, at the cost of throughput.
	QuickStart bool
	// Advertise returns the address that clients are to use instead of a broker's
	// plaintext listener at addr, such as that of a proxy to it. It is called
	// before the broker starts. The brokers themselves do not go by it. Default:
	// addr.
	Advertise func(addr string) string
}

// Broker is a running cluster.
type Broker struct {
	// Addrs are the plaintext listeners, or what [Options].Advertise made of them,
	// SecureAddrs those with TLS and SASL, by broker.
	Addrs, SecureAddrs []string
	// CAFile holds the PEM certificate that the secure listeners' are signed with.
	CAFile string

	quickStart bool
	// record is where the first broker leaves an archive of its classes when it
	// is asked to end; empty for none.
	record string

	dir   string
	java  string
	libs  string
	procs []*process
	// plain are the plaintext listeners, internal those of the brokers' own
	// traffic, controllers those of the controllers'.
	plain, internal, controllers []string
}

// Available returns why no broker can be started here, nil if one can.
func Available() error {
	if _, err := exec.LookPath("java"); err != nil {
		return fmt.Errorf("java: %w", err)
	}
	libs, err := libsDir()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(libs, "kafka_2.13-"+Version+".jar")); err != nil {
		return fmt.Errorf("jars of Kafka, which scripts/install-kafka.sh installs: %w", err)
	}
	return nil
}

func libsDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	return filepath.Join(cache, "sluice", "kafka-"+Version, "libs"), nil
}

// Require skips or fails the test where no broker is to be, or can be, started.
func Require(tb testing.TB) {
	tb.Helper()
	mode := os.Getenv(EnvVar)
	if mode == "0" {
		tb.Skipf("%s=0", EnvVar)
	}
	if err := Available(); err != nil {
		if mode == "1" {
			tb.Fatalf("%s=1: %v", EnvVar, err)
		}
		tb.Skipf("no Apache Kafka: %v", err)
	}
}

// Start starts a cluster and waits until it answers. It ends with the test, and
// with the process however that ends.
func Start(tb testing.TB, opts Options) *Broker {
	tb.Helper()
	Require(tb)
	b, err := New(tb.TempDir(), opts)
	if err != nil {
		tb.Fatalf("start Apache Kafka: %v", err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("end of the broker's log:\n%s", b.logTail())
		}
		b.Close()
	})
	return b
}

// New is [Start] outside of a test, such as in TestMain. The cluster keeps its
// data in dir. Close it with [Broker.Close].
func New(dir string, opts Options) (*Broker, error) { return newBroker(dir, opts, "") }

func newBroker(dir string, opts Options, record string) (*Broker, error) {
	libs, err := libsDir()
	if err != nil {
		return nil, err
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("java: %w", err)
	}
	n := max(1, opts.Brokers)
	b := &Broker{quickStart: opts.QuickStart, record: record, dir: dir, java: java, libs: libs, CAFile: filepath.Join(dir, "ca.pem")}
	keystore := filepath.Join(dir, "keystore.pem")
	if err := writeCertificates(b.CAFile, keystore); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	ports, err := testport.Free(4 * n)
	if err != nil {
		return nil, err
	}
	addr := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	advertise := opts.Advertise
	if advertise == nil {
		advertise = func(addr string) string { return addr }
	}
	var voters []string
	for i := range n {
		b.plain = append(b.plain, addr(4*i))
		b.Addrs = append(b.Addrs, advertise(addr(4*i)))
		b.SecureAddrs = append(b.SecureAddrs, addr(4*i+1))
		b.internal = append(b.internal, addr(4*i+2))
		b.controllers = append(b.controllers, addr(4*i+3))
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, addr(4*i+3)))
	}
	for i := range n {
		props := b.properties(i, n, voters, keystore)
		if err := os.WriteFile(b.path(i, "server.properties"), []byte(props), 0o600); err != nil {
			return nil, err
		}
		if err := b.format(i, n); err != nil {
			return nil, err
		}
		b.procs = append(b.procs, nil)
	}
	for i := range n {
		if err := b.launch(i); err != nil {
			b.Close()
			return nil, err
		}
	}
	if err := b.wait(n); err != nil {
		err = fmt.Errorf("%w\n%s", err, b.logTail())
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Broker) path(i int, name string) string {
	return filepath.Join(b.dir, fmt.Sprintf("%d-%s", i+1, name))
}

func (b *Broker) properties(i, n int, voters []string, keystore string) string {
	replicas := min(n, 3)
	jaas := fmt.Sprintf(`org.apache.kafka.common.security.%%s required username="%s" password="%s"`, User, Password)
	lines := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", i+1),
		fmt.Sprintf("listeners=PLAINTEXT://%s,SECURE://%s,INTERNAL://%s,CONTROLLER://%s",
			b.plain[i], b.SecureAddrs[i], b.internal[i], b.controllers[i]),
		fmt.Sprintf("advertised.listeners=PLAINTEXT://%s,SECURE://%s,INTERNAL://%s", b.Addrs[i], b.SecureAddrs[i], b.internal[i]),
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
		"controller.listener.names=CONTROLLER",
		"inter.broker.listener.name=INTERNAL",
		"log.dirs=" + b.path(i, "data"),
		fmt.Sprintf("offsets.topic.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.replication.factor=%d", replicas),
		fmt.Sprintf("share.coordinator.state.topic.replication.factor=%d", replicas),
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.min.isr=1",
		"offsets.topic.num.partitions=4",
		"group.initial.rebalance.delay.ms=0",
		"group.min.session.timeout.ms=1000",
		"auto.create.topics.enable=false",
		// A killed broker may come back only when its old session is over.
		"broker.heartbeat.interval.ms=500",
		"broker.session.timeout.ms=2000",
		"ssl.keystore.type=PEM",
		"ssl.keystore.location=" + keystore,
		"ssl.endpoint.identification.algorithm=",
		"listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
		"listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.secure.plain.sasl.jaas.config=" + fmt.Sprintf(jaas, "plain.PlainLoginModule") + fmt.Sprintf(` user_%s="%s";`, User, Password),
	}
	if n == 1 {
		lines = append(lines, "controller.quorum.bootstrap.servers="+b.controllers[0])
	} else {
		lines = append(lines, "controller.quorum.voters="+strings.Join(voters, ","))
	}
	return strings.Join(lines, "\n") + "\n"
}

func (b *Broker) format(i, n int) error {
	args := append(b.archiveArgs(), "-Xmx128m", "-XX:TieredStopAtLevel=1",
		"-cp", filepath.Join(b.libs, "*"), "kafka.tools.StorageTool", "format",
		"-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", b.path(i, "server.properties"),
		"--add-scram", fmt.Sprintf("SCRAM-SHA-256=[name=%s,password=%s]", User, Password),
		"--add-scram", fmt.Sprintf("SCRAM-SHA-512=[name=%s,password=%s]", User, Password),
	)
	if n == 1 {
		args = append(args, "--standalone")
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, b.java, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("format storage: %w\n%s", err, out)
	}
	return nil
}

func (b *Broker) launch(i int) error {
	log, err := os.OpenFile(b.path(i, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own descriptor
	heap := "-Xmx768m"
	if len(b.Addrs) > 1 {
		heap = "-Xmx512m"
	}
	args := append(b.archiveArgs(), heap)
	if b.record != "" {
		args = append(args, "-XX:ArchiveClassesAtExit="+b.record)
	}
	if b.quickStart {
		args = append(args, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
	}
	args = append(args, "-cp", filepath.Join(b.libs, "*"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"kafka.Kafka", b.path(i, "server.properties"))
	cmd := exec.Command(b.java, args...) //nolint:noctx // ended by Close
	cmd.Stdout, cmd.Stderr = log, log
	p, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("start broker %d: %w", i+1, err)
	}
	b.procs[i] = p
	return nil
}

func archivePath(libs string) string { return filepath.Join(filepath.Dir(libs), "classes.jsa") }

// archiveArgs has Java take classes from the archive, where there is one. One
// of another Java, or of other jars, it does not heed.
func (b *Broker) archiveArgs() []string {
	path := archivePath(b.libs)
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return []string{"-XX:SharedArchiveFile=" + path, "-Xlog:cds=off", "-Xlog:cds+dynamic=off"}
}

// Archive makes the archive of the classes that a broker loads, already parsed
// and verified, with which all that start later do so in half the time. It does
// nothing where there is one. Several runs at once are safe.
func Archive() error {
	libs, err := libsDir()
	if err != nil {
		return err
	}
	path := archivePath(libs)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".archive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "classes.jsa")
	b, err := newBroker(dir, Options{QuickStart: true}, made)
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := b.use(ctx); err != nil {
		return fmt.Errorf("use the broker: %w", err)
	}
	p := b.procs[0]
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end the broker: %w", err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("the broker does not end: %w", ctx.Err())
	}
	return os.Rename(made, path)
}

// use makes the broker load what it needs for a topic, a record and a group.
func (b *Broker) use(ctx context.Context) error {
	const topic = "topic"
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs...), kgo.ConsumeTopics(topic), kgo.ConsumerGroup("group"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 1, 1, nil, topic); err != nil {
		return err
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("value")}).FirstErr(); err != nil {
		return err
	}
	if err := cl.PollFetches(ctx).Err(); err != nil {
		return err
	}
	return cl.CommitUncommittedOffsets(ctx)
}

// wait returns when n brokers answer and one of them coordinates groups.
func (b *Broker) wait(n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs...))
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		brokers, err := kadm.NewClient(cl).ListBrokers(ctx)
		if err == nil && len(brokers) >= n {
			return nil
		}
		for i, p := range b.procs {
			select {
			case <-p.done:
				return fmt.Errorf("broker %d ended: %w", i+1, errors.Join(p.err, err))
			default:
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("brokers do not answer: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// PIDs are the brokers' processes.
func (b *Broker) PIDs() []int {
	var pids []int
	for _, p := range b.procs {
		pids = append(pids, p.cmd.Process.Pid)
	}
	return pids
}

// Kill ends broker i, from 0, at once. [Broker.Restart] brings it back.
func (b *Broker) Kill(i int) { b.procs[i].kill() }

// Restart starts a killed broker on the same addresses and data, and waits
// until the whole cluster answers.
func (b *Broker) Restart(i int) error {
	if err := b.launch(i); err != nil {
		return err
	}
	return b.wait(len(b.procs))
}

// Freeze stops broker i without closing its connections, as a hung machine
// does, until the returned function is called.
func (b *Broker) Freeze(i int) (thaw func(), err error) {
	p := b.procs[i].cmd.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return nil, fmt.Errorf("stop broker %d: %w", i+1, err)
	}
	return func() { _ = p.Signal(syscall.SIGCONT) }, nil
}

// Close ends all brokers.
func (b *Broker) Close() {
	for _, p := range b.procs {
		if p != nil {
			p.kill()
		}
	}
}

func (b *Broker) logTail() string {
	var all bytes.Buffer
	for i := range b.procs {
		text, err := os.ReadFile(b.path(i, "server.log"))
		if err != nil {
			text = []byte(err.Error())
		}
		all.Write(text[max(0, len(text)-4000):])
	}
	return all.String()
}

// process is a child with its own thread: on Linux it is told to die with its
// parent, which the kernel takes to mean the thread that started it.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	once sync.Once
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	dieWithParent(cmd)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	return p, <-started
}

func (p *process) kill() {
	p.once.Do(func() { _ = p.cmd.Process.Kill() })
	<-p.done
}
