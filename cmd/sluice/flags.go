package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/app"
	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
)

// memoryFlags say how much memory a process may take.
type memoryFlags struct {
	MemoryLimit app.ByteSize `help:"Memory limit of the Go runtime, such as 448MiB. Connections, bodies, answers, buffers, batches and caches get shares of it. 0 takes GOMEMLIMIT, or 448MiB where that is not set." default:"0" group:"memory"`
}

// httpFlags are those of a process that serves the API.
type httpFlags struct {
	Listen        string        `help:"Address of the API, host:port. An address that is not loopback needs --api-keys or --insecure." default:"127.0.0.1:8080" group:"http"`
	APIKeys       string        `name:"api-keys" help:"File of API keys, with one line for each key, as \"sluice key new\" prints it. Changes take effect within 5 s." placeholder:"FILE" type:"path" group:"http"`
	Insecure      bool          `help:"Allow every address without API keys, for example behind a proxy that authenticates." group:"http"`
	CORSOrigins   []string      `name:"cors-origins" help:"Origins whose pages may use the API from a browser, such as https://app.example. * allows all origins, and needs --api-keys." placeholder:"ORIGIN" group:"http"`
	EventNames    []string      `help:"Event names that are accepted. A name that ends in * is a pattern: checkout.* accepts every name that begins with checkout., and * accepts every name." default:"event_a,event_b,event_c" group:"http"`
	EventNamesMax int           `help:"Maximum number of distinct event names that the patterns accept. Each process counts from its start." default:"1000" group:"http"`
	BatchItems    int           `help:"Maximum number of writes in one request." default:"50000" group:"http"`
	Connections   int           `help:"Maximum number of open connections. 0 takes as many as --memory-limit allows, up to 4096." default:"0" group:"http"`
	AckTimeout    time.Duration `help:"How long a write waits for the broker's acknowledgement before the answer is 503. The default leaves time to answer within 5 s." default:"4500ms" group:"http"`
}

func (f *httpFlags) config() (app.APIConfig, error) {
	cfg := app.APIConfig{
		Config: api.Config{
			Addr: f.Listen, Insecure: f.Insecure, EventNames: f.EventNames, EventNamesMax: f.EventNamesMax,
			BatchItemsMax: f.BatchItems, ConnectionsMax: f.Connections, CORSOrigins: f.CORSOrigins,
		},
		KeysFile: f.APIKeys, AckTimeout: f.AckTimeout,
	}
	err := api.CheckBind(f.Listen, f.APIKeys != "", f.Insecure)
	if originErr := api.CheckOrigins(f.CORSOrigins, f.APIKeys != ""); originErr != nil {
		err = errors.Join(err, fmt.Errorf("--cors-origins: %w", originErr))
	}
	return cfg, err
}

// readerFlags are those of a process that reads the database for others.
type readerFlags struct {
	AnalyticsQueries int           `help:"Maximum number of analytics queries that run at once. 0 takes the number of this machine's cores, but at least 2." default:"0" group:"http"`
	AnalyticsQueue   int           `help:"Maximum number of analytics queries that wait. More are answered 429." default:"100" group:"http"`
	AnalyticsWait    time.Duration `help:"How long an analytics query waits before it is answered 429." default:"10s" group:"http"`
	QueryTimeout     time.Duration `help:"How long ClickHouse may work on one read." default:"30s" group:"clickhouse"`
	QueryMemory      int64         `help:"Memory that ClickHouse may use for one read, in bytes. 0 takes 4 GiB; with the embedded ClickHouse, so much that all --analytics-queries together get half of its memory." default:"0" group:"clickhouse"`
	ReadConnections  int           `help:"Maximum number of connections to ClickHouse for reads of single events and pages. 0 takes pool_size from the URL, or 8." default:"0" group:"clickhouse"`
}

// checkReader refuses values that would stand for a default, or make no sense.
func (f *readerFlags) checkReader() error {
	var errs []error
	for _, flag := range []struct {
		name         string
		value, least int64
	}{
		{"analytics-queries", int64(f.AnalyticsQueries), 0},
		{"analytics-queue", int64(f.AnalyticsQueue), 1},
		{"analytics-wait", int64(f.AnalyticsWait), 1},
		{"query-timeout", int64(f.QueryTimeout), int64(time.Second)},
		{"query-memory", f.QueryMemory, 0},
		{"read-connections", int64(f.ReadConnections), 0},
	} {
		if flag.value < flag.least {
			errs = append(errs, fmt.Errorf("--%s: is too small", flag.name))
		}
	}
	return errors.Join(errs...)
}

// analyticsQueries is how many questions run at once.
func (f *readerFlags) analyticsQueries() int {
	if f.AnalyticsQueries > 0 {
		return f.AnalyticsQueries
	}
	return max(2, runtime.GOMAXPROCS(0))
}

// queryGrace is how much longer the API waits than the database may work on a
// read, so that the caller gets the database's error and not a bare timeout.
const queryGrace = 10 * time.Second

// applyAdmission puts the flags into cfg.
func (f *readerFlags) applyAdmission(cfg *api.Config) {
	cfg.AnalyticsQueriesMax, cfg.AnalyticsQueueMax, cfg.AnalyticsWait = f.analyticsQueries(), f.AnalyticsQueue, f.AnalyticsWait
	cfg.QueryTimeout = f.QueryTimeout + queryGrace
}

// applyReader puts the flags into cfg.
func (f *readerFlags) applyReader(cfg *clickhouse.Config) {
	cfg.AnalyticsConnectionsMax = f.analyticsQueries()
	cfg.QueryTimeout = f.QueryTimeout
	if f.QueryMemory > 0 {
		cfg.QueryMemoryBytesMax = f.QueryMemory
	}
	if f.ReadConnections > 0 {
		cfg.ReadConnectionsMax = f.ReadConnections
	}
}

// kafkaFlags say where Kafka is and what Sluice keeps there.
type kafkaFlags struct {
	KafkaBrokers      []string      `help:"Seed brokers, each as host:port." placeholder:"HOST:PORT" group:"kafka"`
	KafkaTopic        string        `help:"Prefix of the topic names: PREFIX.g1 has the events, PREFIX.dlq the dead letters." default:"sluice.events" group:"kafka"`
	KafkaGeneration   int           `help:"Generation of the events topic. A higher number begins a new topic, once all records of the topic before it are applied." default:"1" group:"kafka"`
	KafkaPartitions   int           `help:"Number of partitions of the events topic. It cannot change once the topic exists, because the order of an event's writes depends on it. 0 takes the number that the topic has; a new topic gets 12, or 1 on the embedded broker." default:"0" group:"kafka"`
	KafkaReplicas     int           `help:"Number of replicas of new topics. 0 takes 3 if there are at least three brokers, otherwise 1." default:"0" group:"kafka"`
	KafkaRetention    time.Duration `help:"How long a new events topic keeps its records. The contents of deleted events stay in the log for as long." default:"168h" group:"kafka"`
	KafkaGroup        string        `help:"Name of the consumer group. A new name applies the whole log again." default:"sluice" group:"kafka"`
	KafkaSession      time.Duration `name:"kafka-session-timeout" help:"How long a consumer that was killed or hangs keeps its partitions. Brokers accept 6s to 30m by default." default:"45s" group:"kafka"`
	KafkaCompression  string        `help:"Compression of records: snappy, lz4, zstd or none." enum:"snappy,lz4,zstd,none" default:"snappy" group:"kafka"`
	KafkaTLS          bool          `name:"kafka-tls" help:"Use TLS for connections to the brokers." group:"kafka"`
	KafkaTLSCA        string        `name:"kafka-tls-ca" help:"PEM file with the certificate authorities to trust instead of the system's." placeholder:"FILE" type:"path" group:"kafka"`
	KafkaTLSCert      string        `name:"kafka-tls-cert" help:"PEM file with this client's certificate." placeholder:"FILE" type:"path" group:"kafka"`
	KafkaTLSKey       string        `name:"kafka-tls-key" help:"PEM file with the key of this client's certificate." placeholder:"FILE" type:"path" group:"kafka"`
	KafkaTLSName      string        `name:"kafka-tls-server-name" help:"Name that the brokers' certificates must have, if it is not the name in their address." placeholder:"NAME" group:"kafka"`
	KafkaSASL         string        `name:"kafka-sasl" help:"SASL mechanism: SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN." placeholder:"MECHANISM" group:"kafka"`
	KafkaUser         string        `help:"User name for SASL." placeholder:"NAME" group:"kafka"`
	KafkaPassword     string        `help:"Password for SASL. Prefer the variable or --kafka-password-file, because other users of the machine can see flags." placeholder:"PASSWORD" group:"kafka"`
	KafkaPasswordFile string        `help:"File with the password for SASL." placeholder:"FILE" type:"path" group:"kafka"`
}

func (f *kafkaFlags) config() (kafka.Config, error) {
	cfg := kafka.Config{
		Brokers:  f.KafkaBrokers,
		ClientID: "sluice",
		TLS: kafka.TLSConfig{
			Enabled: f.KafkaTLS, CAFile: f.KafkaTLSCA, CertFile: f.KafkaTLSCert, KeyFile: f.KafkaTLSKey,
			ServerName: f.KafkaTLSName,
		},
		SASL:        kafka.SASLConfig{Mechanism: strings.ToUpper(f.KafkaSASL), User: f.KafkaUser, Password: f.KafkaPassword},
		TopicPrefix: f.KafkaTopic, Generation: f.KafkaGeneration, Partitions: f.KafkaPartitions,
		ReplicationFactor: f.KafkaReplicas, Retention: f.KafkaRetention, Group: f.KafkaGroup,
		Producer: kafka.ProducerConfig{Compression: f.KafkaCompression},
		Consumer: kafka.ConsumerConfig{SessionTimeout: f.KafkaSession},
	}
	if f.KafkaPasswordFile != "" {
		text, err := os.ReadFile(f.KafkaPasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("--kafka-password-file: %w", err)
		}
		cfg.SASL.Password = strings.TrimRight(string(text), "\r\n")
	}
	if len(cfg.Brokers) == 0 {
		return cfg, nil // they are embedded
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("kafka: %w", err)
	}
	return cfg, nil
}

// clickhouseFlags say where ClickHouse is.
type clickhouseFlags struct {
	ClickhouseURL          string `help:"Address of ClickHouse, as clickhouse://USER:PASSWORD@HOST:9000/DATABASE. Add ?secure=true for TLS." placeholder:"URL" group:"clickhouse"`
	ClickhousePasswordFile string `help:"File with the password for ClickHouse, so that it need not be in the URL." placeholder:"FILE" type:"path" group:"clickhouse"`
	Cluster                string `help:"Name of the cluster, from remote_servers of ClickHouse's configuration, that the tables are spread over. Only \"sluice migrate\" needs it. It keeps the other commands from making tables for a single machine." placeholder:"NAME" group:"clickhouse"`
}

func (f *clickhouseFlags) config() (clickhouse.Config, error) {
	cfg, err := conn.ParseURL(f.ClickhouseURL)
	if err != nil {
		return cfg, fmt.Errorf("--clickhouse-url: %w", err)
	}
	cfg.Cluster = f.Cluster
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("--cluster: %w", err)
	}
	if f.ClickhousePasswordFile != "" {
		text, err := os.ReadFile(f.ClickhousePasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("--clickhouse-password-file: %w", err)
		}
		cfg.Password = strings.TrimRight(string(text), "\r\n")
	}
	return cfg, nil
}

// sqlFlags say as whom queries in SQL are run.
type sqlFlags struct {
	ClickhouseSQLURL          string `name:"clickhouse-sql-url" help:"ClickHouse's HTTP interface for POST /sql, as http://USER:PASSWORD@HOST:8123/NAME, or https. USER must be one who may only read the live views: see docs/sql.md. An embedded ClickHouse has such a user; otherwise POST /sql needs this URL." placeholder:"URL" group:"clickhouse"`
	ClickhouseSQLPasswordFile string `name:"clickhouse-sql-password-file" help:"File that holds that user's password, instead of the URL." placeholder:"FILE" type:"path" group:"clickhouse"`
}

// config has no address where SQL is not set up.
func (f *sqlFlags) config() (clickhouse.SQLConfig, error) {
	if f.ClickhouseSQLURL == "" {
		return clickhouse.SQLConfig{}, nil
	}
	cfg, err := clickhouse.ParseSQLURL(f.ClickhouseSQLURL)
	if err != nil {
		return cfg, fmt.Errorf("--clickhouse-sql-url: %w", err)
	}
	if f.ClickhouseSQLPasswordFile != "" {
		text, err := os.ReadFile(f.ClickhouseSQLPasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("--clickhouse-sql-password-file: %w", err)
		}
		cfg.Password = strings.TrimRight(string(text), "\r\n")
	}
	return cfg, nil
}

// retentionFlags say how long events are kept.
type retentionFlags struct {
	Retention string `help:"How long events are kept after their timestamp: days such as 90d, hours such as 2160h, at least 24h, or forever. Without this flag the retention stays as it was set last; at first it is forever." placeholder:"DURATION" group:"clickhouse"`
}

// config is nil where nothing is to be changed.
func (f *retentionFlags) config() (*time.Duration, error) {
	if f.Retention == "" {
		return nil, nil //nolint:nilnil // no retention is no error
	}
	keep, err := schema.ParseRetention(f.Retention)
	if err != nil {
		return nil, fmt.Errorf("--retention: %w", err)
	}
	return &keep, nil
}

// consumerFlags are those of a process that consumes.
type consumerFlags struct {
	FlushRecords     int           `help:"Maximum number of records in one flush to ClickHouse." default:"50000" group:"consumer"`
	FlushBytes       int           `help:"Maximum number of bytes in one flush. 0 takes as many as --memory-limit allows, up to 84 MiB. A flush begins early enough to leave room for one fetch of up to 20 MiB." default:"0" group:"consumer"`
	FlushQuiet       time.Duration `help:"How long the first record of a flush waits for others while there are fewer than 200. It waits longer where flushes are slow, up to --flush-busy, so that they take at most a quarter of the time." default:"60ms" group:"consumer"`
	FlushBusy        time.Duration `help:"The same while there are 200 records or more. The flush begins earlier if no record has come for --flush-quiet." default:"400ms" group:"consumer"`
	RecentBytes      int           `help:"Memory for recent rows, in bytes. An update of such a row needs no lookup in ClickHouse. 0 takes as much as --memory-limit allows." default:"0" group:"consumer"`
	WriteConnections int           `help:"Maximum number of connections to ClickHouse for inserts and lookups. 0 takes pool_size from the URL, or 8." default:"0" group:"clickhouse"`
	EraseAfter       time.Duration `help:"How long the contents of a deleted event may stay on ClickHouse's disk before the consumer has their month merged. Each month is merged at most once in this time. 0 leaves it to ClickHouse's own merges, which may never come." default:"168h" group:"consumer"`
}

// checkConsumer checks what [consumer.Config] does not have.
func (f *consumerFlags) checkConsumer() error {
	if f.WriteConnections < 0 {
		return errors.New("--write-connections: must not be negative")
	}
	if f.EraseAfter != 0 && f.EraseAfter < time.Second {
		return errors.New("--erase-after: must be 0, or at least 1s")
	}
	return nil
}

// applyWriter puts the flags into cfg.
func (f *consumerFlags) applyWriter(cfg *clickhouse.Config) {
	if f.WriteConnections > 0 {
		cfg.WriteConnectionsMax = f.WriteConnections
	}
}

func (f *consumerFlags) config() app.ConsumerConfig {
	cfg := app.ConsumerConfig{Config: consumer.DefaultConfig(), EraseAfter: f.EraseAfter}
	cfg.BatchRecordsMax, cfg.BatchBytesMax = f.FlushRecords, f.FlushBytes
	cfg.RecentBytesMax = f.RecentBytes
	cfg.FlushDelayQuiet, cfg.FlushDelayBusy = f.FlushQuiet, f.FlushBusy
	return cfg
}

func (f *kafkaFlags) required() error {
	if len(f.KafkaBrokers) == 0 {
		return errors.New("--kafka-brokers is required")
	}
	return nil
}

func (f *clickhouseFlags) required() error {
	if f.ClickhouseURL == "" {
		return errors.New("--clickhouse-url is required")
	}
	return nil
}

// remote is where Kafka and ClickHouse are, for a process that embeds nothing.
func remote(k *kafkaFlags, c *clickhouseFlags) (kafka.Config, clickhouse.Config, error) {
	if err := errors.Join(k.required(), c.required()); err != nil {
		return kafka.Config{}, clickhouse.Config{}, err
	}
	kafkaCfg, err := k.config()
	if err != nil {
		return kafkaCfg, clickhouse.Config{}, err
	}
	clickhouseCfg, err := c.config()
	return kafkaCfg, clickhouseCfg, err
}

// embeddedFlags are those of the broker and the database that sluice brings along.
type embeddedFlags struct {
	DataDir          string `help:"Directory for the data of the embedded broker and the embedded ClickHouse." default:"./sluice-data" placeholder:"DIR" group:"embedded"`
	Libchdb          string `help:"File of ClickHouse's library. By default libchdb.so beside this program, or where make engine installs it." placeholder:"FILE" type:"path" group:"embedded"`
	ClickhouseMemory int64  `help:"Memory limit of the embedded ClickHouse, in bytes. 0 takes half of the machine's memory." default:"0" group:"embedded"`
	BrokerPort       int    `help:"Port of the embedded broker on loopback, which the commands dlq and offsets use. 0 takes a free port." default:"0" group:"embedded"`
}

func (f *embeddedFlags) config() app.EmbeddedConfig {
	return app.EmbeddedConfig{Dir: f.DataDir, Library: f.Libchdb, ClickHouseBytesMax: f.ClickhouseMemory, BrokerPort: f.BrokerPort}
}

// brokerFlags find the broker of a running pipeline.
type brokerFlags struct {
	kafkaFlags
	DataDir string `help:"Data directory of a running \"sluice serve\". Its embedded broker is used if --kafka-brokers is not given." default:"./sluice-data" placeholder:"DIR" group:"embedded"`
}

func (f *brokerFlags) config() (kafka.Config, error) {
	cfg, err := f.kafkaFlags.config()
	if err != nil || len(cfg.Brokers) > 0 {
		return cfg, err
	}
	addr, err := app.EmbeddedBroker(f.DataDir)
	if err != nil {
		return cfg, fmt.Errorf("--kafka-brokers is required, as no pipeline runs on --data-dir: %w", err)
	}
	cfg.Brokers = []string{addr}
	return cfg, nil
}
