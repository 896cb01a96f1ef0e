package kafka

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
)

// The names of the SASL mechanisms.
const (
	MechanismPlain       = "PLAIN"
	MechanismScramSHA256 = "SCRAM-SHA-256"
	MechanismScramSHA512 = "SCRAM-SHA-512"
)

// The names of the compressions.
const (
	CompressionSnappy = "snappy"
	CompressionLZ4    = "lz4"
	CompressionZstd   = "zstd"
	CompressionNone   = "none"
)

const (
	// RecordBytesMax is the longest record value. A request body of 1 MiB is
	// always shorter as a record, since only numbers and base64 change form,
	// and both shrink.
	RecordBytesMax = 2 << 20
	// envelopeBytes is room for key, headers and batch around a value.
	envelopeBytes = 16 << 10

	topicBytesMax      = RecordBytesMax + envelopeBytes
	deadLetterBytesMax = topicBytesMax + envelopeBytes

	// inflatedBatchBytesMax is the largest batch that a client inflates. The
	// consumer of the events topic has a limit of its own.
	inflatedBatchBytesMax = 64 << 20

	// DeadLetterSuffix follows the topic prefix in the name of the dead-letter topic.
	DeadLetterSuffix = ".dlq"

	partitionsMax = 10_000
)

// Config says where Kafka is and what Sluice keeps there. A field left at its
// zero value has the default that its comment gives.
type Config struct {
	// Brokers are the seed brokers, each as host:port. At least one.
	Brokers []string
	// ClientID is how the brokers' logs and quotas name this process. Default "sluice".
	ClientID string
	TLS      TLSConfig
	SASL     SASLConfig

	// TopicPrefix begins the names of all topics. Default "sluice.events".
	TopicPrefix string
	// Generation is that of the events topic, from 1. Default 1.
	Generation int
	// Partitions is the number of partitions of the events topic. It cannot be
	// changed within a generation, because the order of an event's writes depends
	// on it. Default 0: as many as the topic has. [EnsureTopics] and [FindTopics]
	// return that number; a producer and a watcher need it.
	Partitions int
	// TopicID is the id of the events topic, as [EnsureTopics] and [FindTopics]
	// return it. A producer is not ready while a topic of the same name has
	// another id. Default: any id.
	TopicID string
	// PartitionsNew is the number of partitions of a new topic if Partitions is 0.
	// Default 12.
	PartitionsNew int
	// ReplicationFactor is that of new topics. Default 3 if there are three brokers
	// or more, otherwise 1. Above 2, a write must reach all replicas but one.
	ReplicationFactor int
	// Retention is how long the events topic keeps records. Default 7 days.
	Retention time.Duration
	// DeadLetterRetention is how long the dead-letter topic keeps them. Default 30 days.
	DeadLetterRetention time.Duration
	// Group is the consumer group. Default "sluice".
	Group string
	// DialTimeout bounds a connection attempt. Default 5 s.
	DialTimeout time.Duration

	Producer ProducerConfig
	Consumer ConsumerConfig
	Watcher  WatcherConfig

	// ClientMetrics is where the Kafka clients of the producer, the consumer, the
	// watcher and the dead letters register their metrics sluice_kafka_client_*:
	// connections, requests, bytes, buffers and errors, by broker and by the label
	// client. A registry takes one client of each kind at a time. Default nil: no
	// metrics.
	ClientMetrics prometheus.Registerer
}

// TLSConfig configures TLS with the brokers.
type TLSConfig struct {
	// Enabled turns TLS on.
	Enabled bool
	// CAFile holds the PEM certificates to trust instead of the system's.
	CAFile string
	// CertFile and KeyFile are the client's own PEM certificate and key, where
	// the brokers ask for one. Both or neither.
	CertFile, KeyFile string
	// ServerName is the name that the brokers' certificates must have, instead
	// of the host that is dialled.
	ServerName string
	// InsecureSkipVerify accepts any certificate. For tests only.
	InsecureSkipVerify bool
}

// SASLConfig configures the login to the brokers.
type SASLConfig struct {
	// Mechanism is one of the Mechanism constants; empty for no login.
	Mechanism string
	// User and Password are required with a mechanism.
	User, Password string
}

// ProducerConfig bounds the producer.
type ProducerConfig struct {
	// AckTimeout is how long [Producer.Produce] waits for the brokers.
	// Writes that were not sent by then are dropped soon after. Default 4.5 s.
	AckTimeout time.Duration
	// Fence is asked before a write is acknowledged, unless it is nil. The producer
	// does not close it.
	Fence *Fence
	// BufferBytesMax and BufferRecordsMax bound the writes that wait for an
	// acknowledgement, as encoded. When they do not fit, Produce refuses the
	// whole call at once, so one call larger than either never succeeds.
	// Defaults 128 MiB and 262,144.
	BufferBytesMax, BufferRecordsMax int
	// Linger is how long a record waits for others to share its batch. Default
	// 1 ms, which doubles what 64 callers of one write each get through a broker
	// that syncs every batch; negative for none.
	Linger time.Duration
	// BatchBytesMax is the longest batch of one partition, before compression;
	// never shorter than one record may be, which is also the default.
	BatchBytesMax int
	// Compression is one of the Compression constants. Default snappy. Measured
	// with writes of real conversations, 280 bytes each, in calls of 5,000, client
	// and embedded broker together, on a loaded machine (BenchmarkProduce): snappy
	// takes 3.7 s of CPU per million and 153 bytes per record in the log, lz4 4.4 s
	// and 145 bytes, zstd 6.7 s and 113 bytes, none 3.1 s and 343 bytes.
	Compression string
}

// ConsumerConfig bounds the consumer of the events topic.
type ConsumerConfig struct {
	// FetchBytesMax bounds the compressed bytes of one fetch from one broker, unless
	// a single batch is larger. The smallest possible records of uncompressed
	// batches take up to 28 times as much memory. Default 4 MiB.
	FetchBytesMax int
	// PartitionBytesMax bounds the bytes of one partition in a fetch. Default 1 MiB.
	PartitionBytesMax int
	// InflatedBytesMax bounds what the records of compressed batches take in
	// memory from the fetch until Poll returns them: their bytes, 256 for each
	// record and 64 for each header. A batch that alone takes more is not read:
	// Poll returns it as [record.Unreadable]. The batches of a [Producer] take 7 MiB
	// at most. Default 16 MiB, least 8 MiB.
	InflatedBytesMax int
	// RebalanceTimeout is how long the group waits for a member to give its
	// partitions up; OnRevoked has nine tenths of it. Default 60 s.
	RebalanceTimeout time.Duration
	// SessionTimeout is how long a silent member keeps its partitions; it
	// reports every fifteenth of it. Brokers refuse less than 6 s. Default 45 s.
	SessionTimeout time.Duration
}

// WatcherConfig bounds the watcher.
type WatcherConfig struct {
	// PollInterval and PollIntervalMax bound the pause between reading the group's
	// offsets while anybody waits. It is near the first when the writes are likely
	// to be applied soon, and near the second while the group makes no progress or
	// has much to do before them. Defaults 15 ms and 250 ms.
	PollInterval, PollIntervalMax time.Duration
	// RefusedMax is how many of the latest refusals are remembered, besides the
	// refusals of writes that somebody waits for. Older refusals are unknown; see
	// [Watcher.Outcomes]. Default 65,536.
	RefusedMax int
}

// WithDefaults returns the config with every default filled in.
func (c Config) WithDefaults() Config {
	c.ClientID = cmp.Or(c.ClientID, "sluice")
	c.TopicPrefix = cmp.Or(c.TopicPrefix, "sluice.events")
	c.Generation = cmp.Or(c.Generation, 1)
	c.PartitionsNew = cmp.Or(c.PartitionsNew, 12)
	c.Retention = cmp.Or(c.Retention, 7*24*time.Hour)
	c.DeadLetterRetention = cmp.Or(c.DeadLetterRetention, 30*24*time.Hour)
	c.Group = cmp.Or(c.Group, "sluice")
	c.DialTimeout = cmp.Or(c.DialTimeout, 5*time.Second)
	c.Producer.AckTimeout = cmp.Or(c.Producer.AckTimeout, 4500*time.Millisecond)
	c.Producer.BufferBytesMax = cmp.Or(c.Producer.BufferBytesMax, 128<<20)
	c.Producer.BufferRecordsMax = cmp.Or(c.Producer.BufferRecordsMax, 1<<18)
	c.Producer.Linger = cmp.Or(c.Producer.Linger, time.Millisecond)
	c.Producer.BatchBytesMax = cmp.Or(c.Producer.BatchBytesMax, topicBytesMax)
	c.Producer.Compression = cmp.Or(c.Producer.Compression, CompressionSnappy)
	c.Consumer.FetchBytesMax = cmp.Or(c.Consumer.FetchBytesMax, 4<<20)
	c.Consumer.PartitionBytesMax = cmp.Or(c.Consumer.PartitionBytesMax, 1<<20)
	c.Consumer.InflatedBytesMax = cmp.Or(c.Consumer.InflatedBytesMax, 16<<20)
	c.Consumer.RebalanceTimeout = cmp.Or(c.Consumer.RebalanceTimeout, time.Minute)
	c.Consumer.SessionTimeout = cmp.Or(c.Consumer.SessionTimeout, 45*time.Second)
	c.Watcher.PollInterval = cmp.Or(c.Watcher.PollInterval, 15*time.Millisecond)
	c.Watcher.PollIntervalMax = cmp.Or(c.Watcher.PollIntervalMax, max(250*time.Millisecond, c.Watcher.PollInterval))
	c.Watcher.RefusedMax = cmp.Or(c.Watcher.RefusedMax, 1<<16)
	return c
}

// EventsTopic is the name of the topic of writes.
func (c Config) EventsTopic() string {
	c = c.WithDefaults()
	return c.TopicPrefix + ".g" + strconv.Itoa(c.Generation)
}

// DeadLetterTopic is the name of the topic of refused records.
func (c Config) DeadLetterTopic() string { return c.WithDefaults().TopicPrefix + DeadLetterSuffix }

// Validate fills in the defaults and returns all mistakes, joined; each names its
// field.
func (c Config) Validate() error {
	c = c.WithDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(c.Brokers) > 0, "Brokers: at least one is required")
	for _, b := range c.Brokers {
		_, _, err := net.SplitHostPort(b)
		check(err == nil, "Brokers: %q is not host:port", b)
	}
	check(regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`).MatchString(c.TopicPrefix),
		"TopicPrefix: must be 1 to 200 letters, digits, dots, dashes or underscores, and begin with a letter or digit")
	check(c.Generation >= 1 && c.Generation <= event.GenerationMax, "Generation: must be from 1 to %d", event.GenerationMax)
	check(c.Partitions >= 0 && c.Partitions <= partitionsMax, "Partitions: must be from 1 to %d, or 0 for what the topic has", partitionsMax)
	check(c.PartitionsNew >= 1 && c.PartitionsNew <= partitionsMax, "PartitionsNew: must be from 1 to %d", partitionsMax)
	check(c.ReplicationFactor >= 0 && c.ReplicationFactor <= 100, "ReplicationFactor: must be from 1 to 100, or 0 for the default")
	check(c.Retention >= time.Second, "Retention: must be at least 1 s")
	check(c.DeadLetterRetention >= time.Second, "DeadLetterRetention: must be at least 1 s")
	check(c.DialTimeout > 0, "DialTimeout: must be above 0")

	check((c.TLS.CertFile == "") == (c.TLS.KeyFile == ""), "TLS.CertFile, TLS.KeyFile: both or neither are required")
	check(c.TLS.Enabled || c.TLS == TLSConfig{}, "TLS: has settings but is not enabled")
	switch c.SASL.Mechanism {
	case "":
		check(c.SASL.User == "" && c.SASL.Password == "", "SASL.Mechanism: required with a user or password")
	case MechanismPlain, MechanismScramSHA256, MechanismScramSHA512:
		check(c.SASL.User != "", "SASL.User: required")
		check(c.SASL.Password != "", "SASL.Password: required")
	default:
		check(false, "SASL.Mechanism: must be %s, %s or %s", MechanismPlain, MechanismScramSHA256, MechanismScramSHA512)
	}

	check(c.Producer.AckTimeout >= time.Second, "Producer.AckTimeout: must be at least 1 s")
	check(c.Producer.BufferBytesMax >= topicBytesMax, "Producer.BufferBytesMax: must be at least %d", topicBytesMax)
	check(c.Producer.BufferRecordsMax > 0, "Producer.BufferRecordsMax: must be above 0")
	check(c.Producer.Linger <= time.Second, "Producer.Linger: must be at most 1 s")
	check(c.Producer.BatchBytesMax >= topicBytesMax && c.Producer.BatchBytesMax <= 64<<20,
		"Producer.BatchBytesMax: must be from %d to %d", topicBytesMax, 64<<20)
	switch c.Producer.Compression {
	case CompressionSnappy, CompressionLZ4, CompressionZstd, CompressionNone:
	default:
		check(false, "Producer.Compression: must be %s, %s, %s or %s", CompressionSnappy, CompressionLZ4, CompressionZstd, CompressionNone)
	}
	check(c.Consumer.FetchBytesMax > 0 && c.Consumer.FetchBytesMax <= 1<<30, "Consumer.FetchBytesMax: must be from 1 to %d", 1<<30)
	check(c.Consumer.PartitionBytesMax > 0 && c.Consumer.PartitionBytesMax <= c.Consumer.FetchBytesMax,
		"Consumer.PartitionBytesMax: must be from 1 to FetchBytesMax")
	check(c.Consumer.InflatedBytesMax >= 8<<20 && c.Consumer.InflatedBytesMax <= 1<<30,
		"Consumer.InflatedBytesMax: must be from %d to %d", 8<<20, 1<<30)
	check(c.Consumer.RebalanceTimeout >= time.Second, "Consumer.RebalanceTimeout: must be at least 1 s")
	check(c.Consumer.SessionTimeout >= time.Second, "Consumer.SessionTimeout: must be at least 1 s")
	check(c.Watcher.PollInterval > 0, "Watcher.PollInterval: must be above 0")
	check(c.Watcher.PollIntervalMax >= c.Watcher.PollInterval, "Watcher.PollIntervalMax: must be at least PollInterval")
	check(c.Watcher.RefusedMax > 0, "Watcher.RefusedMax: must be above 0")
	return errors.Join(errs...)
}
