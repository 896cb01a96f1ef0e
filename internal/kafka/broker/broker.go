// Package broker runs the embedded Kafka broker, for a Sluice without a Kafka
// cluster. It makes kfake of franz-go durable: answers wait until the files they
// depend on are synced, and retention never removes a record that Sluice has yet
// to read.
package broker

import (
	"cmp"
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

	"github.com/sluicehq/sluice/internal/kafka"
)

// Partitions is the number of partitions that a new events topic should have
// on the embedded broker. One process writes and one process reads, so more
// partitions would only split each request, and each sync, into more pieces.
const Partitions = 1

// ErrLocked is wrapped by the error of [New] when another process uses the
// directory.
var ErrLocked = errors.New("directory is in use by another process")

// Config configures the embedded broker. A field at its zero value has the
// default that its comment gives.
type Config struct {
	// Dir is the directory of the broker's data. It is created if it does not
	// exist. Required.
	Dir string
	// Port is the port on 127.0.0.1. Default 0: any free port; see [Broker.Addr].
	Port int
	// Group is the consumer group that retention waits for. A record is never
	// removed before this group has committed it, however old the record is;
	// only dead letters do not wait. Default "sluice".
	Group string
	// TopicBytesMax is the size above which a topic's oldest committed records
	// are removed before their retention ends. It also bounds the memory of a
	// start after a crash, when the broker reads the whole log. Default 1 GiB.
	TopicBytesMax int64
	// RetentionInterval is the pause between two rounds of retention. Default 1 min.
	RetentionInterval time.Duration
	// NoSync leaves syncing to the operating system. The broker is faster, and a
	// power failure (not a crash of the process) may lose acknowledged writes.
	NoSync bool
}

// Validate returns all mistakes, joined; each names its field.
func (c Config) Validate() error {
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
	// segmentBytes is small because the disk space of removed records is freed by
	// the segment.
	segmentBytes = 32 << 20
	never        = 100 * 365 * 24 * time.Hour
)

// Broker is the embedded broker: the kfake cluster of franz-go, which speaks
// the Kafka protocol over TCP on loopback and keeps its data in a directory.
//
// Everything it answers is on disk first, so neither a killed process nor a
// power failure loses a record that was acknowledged or fetched. When a write or
// a sync fails, the broker closes its connections without an answer, and
// [Broker.Run] returns the error.
//
// It is for development, evaluation and small installations. Unlike Apache
// Kafka, it does not replicate, it does not notice a damaged segment (it cuts
// the log there), and it keeps the producer's timestamps instead of its own.
type Broker struct {
	cfg     Config
	log     *slog.Logger
	cluster *kfake.Cluster
	commits *groupCommit
	addr    string
	unlock  func() error
	close   sync.Once
}

// New starts a broker. The error wraps [ErrLocked] when another process uses
// the directory. The caller closes the broker with [Broker.Close].
func New(cfg Config, log *slog.Logger) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("embedded broker config: %w", err)
	}
	return start(cfg, log, (*os.File).Sync)
}

// start is [New] with a replaceable fsync.
func start(cfg Config, log *slog.Logger, fsync func(*os.File) error) (*Broker, error) {
	cfg.Group = cmp.Or(cfg.Group, "sluice")
	cfg.TopicBytesMax = cmp.Or(cfg.TopicBytesMax, 1<<30)
	cfg.RetentionInterval = cmp.Or(cfg.RetentionInterval, time.Minute)
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
	watch := &logWatcher{log: log, commits: commits}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("sluice-embedded"),
		kfake.DataDir(filepath.Join(cfg.Dir, "data")),
		kfake.ListenFn(commits.listen),
		kfake.WithLogger(watch),
		kfake.BrokerConfigs(map[string]string{
			// The cluster's own retention may empty a partition. After a crash, an
			// empty partition would begin at offset 0 again; see retain.
			"log.cleaner.backoff.ms": millis(never),
			// By default the group's commits expire a week after its last member left.
			"offsets.retention.minutes": strconv.FormatInt(int64(never/time.Minute), 10),
			"log.segment.bytes":         strconv.Itoa(segmentBytes),
		}),
	}
	if cfg.Port != 0 {
		opts = append(opts, kfake.Ports(cfg.Port))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err == nil && watch.tornState.Load() {
		// The cluster skipped a torn end of a state file. It would append after that
		// end, and its next start would read none of what was appended. Closing the
		// cluster rewrites these files.
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

// Cluster returns the kfake cluster of the broker. Tests inject faults there,
// for example with ControlKey.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// Run removes old records at each [Config.RetentionInterval] until ctx ends. It
// returns early with the error of a failed write or sync; the broker answers
// nothing from then on. Run does not close the broker.
func (b *Broker) Run(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr), kgo.WithLogger(kafka.ClientLogger(b.log)))
	if err != nil {
		return fmt.Errorf("client of the embedded broker: %w", err)
	}
	defer cl.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			select {
			case <-time.After(b.cfg.RetentionInterval):
			case <-ctx.Done():
				return nil
			}
			if err := b.retain(ctx, kadm.NewClient(cl)); err != nil && ctx.Err() == nil {
				b.log.Warn("could not remove old records from the embedded broker; trying again", "error", err, "after", b.cfg.RetentionInterval)
			}
		}
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

// Close stops the broker and keeps its data for the next start. Close the
// clients first.
func (b *Broker) Close() error {
	var err error
	b.close.Do(func() {
		b.cluster.Close()
		err = errors.Join(b.commits.close(), b.unlock())
	})
	return err
}

// logWatcher passes the cluster's warnings and errors on to log, and acts on two
// of them, which the cluster reports in no other way: torn state files and
// failed writes.
type logWatcher struct {
	log     *slog.Logger
	commits *groupCommit
	// tornState is set when the cluster skipped the torn end of a file that is
	// not a segment, such as the file of the groups' commits.
	tornState atomic.Bool
}

func (l *logWatcher) Logf(level kfake.LogLevel, format string, args ...any) {
	if level != kfake.LogLevelError && level != kfake.LogLevelWarn {
		return
	}
	detail := fmt.Sprintf(format, args...)
	l.log.Warn("embedded broker", "detail", detail)
	if strings.HasSuffix(detail, "corrupt trailing bytes") {
		l.tornState.Store(true)
	}
	// After a failed write the cluster would go on, take the client's retry for a
	// duplicate and acknowledge it, although the log has neither. So the broker
	// fails before it answers the first try.
	if strings.HasPrefix(detail, "persist ") {
		_ = l.commits.fail(errors.New(detail)) // the rounds and Run return it
	}
}
