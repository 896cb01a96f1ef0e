package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// EmbeddedPartitions is for Config.PartitionsNew on the embedded broker: one
// process writes and one reads, so partitions would only cut each request to
// the broker, and each of its syncs, into as many.
const EmbeddedPartitions = 1

// BrokerConfig is the embedded broker's.
type BrokerConfig struct {
	// Dir holds its data, and is made where it does not exist. Required.
	Dir string
	// Port on 127.0.0.1. Default 0: any free one; see [Broker.Addr].
	Port int
	// Group is the consumer group that retention waits for: a record of a
	// topic other than the dead letters is never removed before this group has
	// committed it, however old it is. Default "sluice".
	Group string
	// TopicBytesMax is the size from which a topic's oldest committed records
	// are removed before their time. After a crash the broker reads the whole
	// log into memory, so this bounds that too. Default 1 GiB.
	TopicBytesMax int64
	// RetentionInterval is the pause between removals. Default 1 min.
	RetentionInterval time.Duration
	// NoSync leaves syncing to the operating system: faster, and a power failure
	// (not a crash of the process) may lose acknowledged writes.
	NoSync bool
}

// Validate reports every mistake, naming the fields.
func (c BrokerConfig) Validate() error {
	var errs []error
	check := func(ok bool, field, must string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s", field, must))
		}
	}
	check(c.Dir != "", "Dir", "required")
	check(c.Port >= 0 && c.Port <= 65535, "Port", "must be from 0 to 65535")
	check(c.TopicBytesMax >= 0, "TopicBytesMax", "must not be negative")
	check(c.RetentionInterval >= 0, "RetentionInterval", "must not be negative")
	return errors.Join(errs...)
}

const (
	// segmentBytes is small so that removed records leave the disk soon.
	segmentBytes = 32 << 20
	never        = 100 * 365 * 24 * time.Hour
)

// Broker is the embedded broker: the kfake cluster of franz-go, which speaks
// the Kafka protocol over TCP on loopback and keeps its data in a directory.
// What it answers is on disk: neither a killed process nor a power failure
// loses an acknowledged or fetched record. When a write or a sync fails it
// closes its connections without an answer, and [Broker.Run] returns.
//
// What Apache Kafka does and this does not: replicate, notice a damaged
// segment (it cuts the log there), and stamp records itself (the time is the
// producer's, on the same machine). It is for development, evaluation and small
// installations.
type Broker struct {
	cfg     BrokerConfig
	log     *slog.Logger
	cluster *kfake.Cluster
	commits *groupCommit
	addr    string
	unlock  func() error
	close   sync.Once
}

// NewBroker starts the broker. The error wraps [ErrLocked] where another
// process uses the directory. Close it with [Broker.Close].
func NewBroker(cfg BrokerConfig, log *slog.Logger) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("embedded broker config: %w", err)
	}
	return newBroker(cfg, log, (*os.File).Sync)
}

func newBroker(cfg BrokerConfig, log *slog.Logger, fsync func(*os.File) error) (*Broker, error) {
	def(&cfg.Group, "sluice")
	def(&cfg.TopicBytesMax, 1<<30)
	def(&cfg.RetentionInterval, time.Minute)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make broker directory: %w", err)
	}
	unlock, err := lockFile(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("lock broker directory %s: %w", cfg.Dir, err)
	}
	makeDurable := newTree(cfg.Dir, fsync).sync
	if cfg.NoSync {
		makeDurable = func() error { return nil }
	}
	commits := newGroupCommit(makeDurable)
	go commits.run()
	says := &brokerLogger{log: log, commits: commits}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("sluice-embedded"),
		kfake.DataDir(filepath.Join(cfg.Dir, "data")),
		kfake.ListenFn(commits.listen),
		kfake.WithLogger(says),
		kfake.BrokerConfigs(map[string]string{
			// Its own retention empties a partition whole, after which a crash
			// would make it begin at offset 0 again; see retain.
			"log.cleaner.backoff.ms": millis(never),
			// It would also forget the group's commits a week after its last member left.
			"offsets.retention.minutes": strconv.FormatInt(int64(never/time.Minute), 10),
			"log.segment.bytes":         strconv.Itoa(segmentBytes),
		}),
	}
	if cfg.Port != 0 {
		opts = append(opts, kfake.Ports(cfg.Port))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err == nil && says.tornState.Load() {
		// It would append to what it passed over, and read none of that at its
		// next start. When it is closed, it writes those files anew.
		cluster.Close()
		cluster, err = kfake.NewCluster(opts...)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start embedded broker: %w", err), commits.close(), unlock())
	}
	b := &Broker{cfg: cfg, log: log, cluster: cluster, commits: commits, addr: cluster.ListenAddrs()[0], unlock: unlock}
	if err := commits.commit(); err != nil {
		return nil, errors.Join(fmt.Errorf("start embedded broker: %w", err), b.Close())
	}
	return b, nil
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// Addr is where the broker listens, as host:port.
func (b *Broker) Addr() string { return b.addr }

// Run removes old records from time to time, until ctx ends. It does not close
// the broker. Its error is what a write or a sync failed with: the broker
// answers nothing from then on.
func (b *Broker) Run(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr), kgo.WithLogger(logger{b.log}))
	if err != nil {
		return fmt.Errorf("client of the embedded broker: %w", err)
	}
	defer cl.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for pause(ctx, b.cfg.RetentionInterval) {
			if err := b.retain(ctx, kadm.NewClient(cl)); err != nil && ctx.Err() == nil {
				b.log.Warn("retention did not succeed", "error", err)
			}
		}
		return nil
	})
	group.Go(func() error {
		select {
		case <-b.commits.failed:
			return fmt.Errorf("embedded broker: %w", b.commits.commit())
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// retain removes what is older than its topic's retention or over TopicBytesMax.
// It keeps the last record of a partition, so that its file tells a later start
// which offset comes next.
func (b *Broker) retain(ctx context.Context, adm *kadm.Client) error {
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var errs []error
	for _, topic := range topics.Names() {
		if err := b.retainTopic(ctx, adm, topic); err != nil {
			errs = append(errs, fmt.Errorf("topic %s: %w", topic, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Broker) retainTopic(ctx context.Context, adm *kadm.Client, topic string) error {
	info := b.cluster.TopicInfo(topic)
	if info == nil {
		return nil
	}
	retention := 7 * 24 * time.Hour
	if v := info.Configs["retention.ms"]; v != nil {
		ms, err := strconv.ParseInt(*v, 10, 64)
		if err != nil {
			return fmt.Errorf("read retention.ms: %w", err)
		}
		retention = min(never, time.Duration(ms)*time.Millisecond)
		if ms < 0 {
			retention = never
		}
	}
	young, err := adm.ListOffsetsAfterMilli(ctx, time.Now().Add(-retention).UnixMilli(), topic)
	if err != nil {
		return fmt.Errorf("list offsets: %w", err)
	}
	partitions := b.cluster.PartitionInfos(topic)
	var total int64
	for _, p := range partitions {
		total += p.NumBytes
	}
	committed := map[int32]kfake.GroupCommit{}
	if group := b.cluster.GroupInfo(b.cfg.Group); group != nil {
		committed = group.Commits[topic]
	}
	for _, p := range partitions {
		until := p.LogStartOffset
		if o, ok := young.Lookup(topic, p.Partition); ok && o.Err == nil {
			until = max(until, o.Offset)
		}
		if over := total - b.cfg.TopicBytesMax; over > 0 {
			// All partitions give up the same share. Their records are taken to
			// be of one size; the next round corrects that.
			share := float64(over) / float64(total)
			until = max(until, p.LogStartOffset+int64(share*float64(p.HighWatermark-p.LogStartOffset)))
		}
		if !strings.HasSuffix(topic, deadLetterSuffix) {
			until = min(until, committed[p.Partition].Offset)
		}
		until = min(until, p.HighWatermark-1)
		if until <= p.LogStartOffset {
			continue
		}
		if err := b.cluster.DeleteRecords(topic, p.Partition, until); err != nil {
			return fmt.Errorf("delete records of partition %d: %w", p.Partition, err)
		}
		b.log.Debug("records removed", "topic", topic, "partition", p.Partition, "offset", until)
	}
	return nil
}

// Close stops the broker and leaves its data for the next start. Clients
// should be closed before.
func (b *Broker) Close() error {
	var err error
	b.close.Do(func() {
		b.cluster.Close()
		err = errors.Join(b.commits.close(), b.unlock())
	})
	return err
}

// brokerLogger passes on what the broker warns of, damaged files and failing
// writes, and stops it at the latter.
type brokerLogger struct {
	log     *slog.Logger
	commits *groupCommit
	// tornState is set when the end of a file other than a segment was passed
	// over, such as that of the groups' commits.
	tornState atomic.Bool
}

func (l *brokerLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	if level != kfake.LogLevelError && level != kfake.LogLevelWarn {
		return
	}
	detail := fmt.Sprintf(format, args...)
	l.log.Warn("embedded broker", "detail", detail)
	if strings.HasSuffix(detail, "corrupt trailing bytes") {
		l.tornState.Store(true)
	}
	// The broker would go on, and take the client's second try for a duplicate
	// of the first, which is not in the log. Nobody has an answer yet.
	if strings.HasPrefix(detail, "persist ") {
		_ = l.commits.fail(errors.New(detail)) // rounds and Run return it
	}
}
