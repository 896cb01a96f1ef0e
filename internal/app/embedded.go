package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
)

// EmbeddedConfig says how the embedded broker and database run. Package app alone
// knows whether they are used. The other packages get addresses, whatever is there.
type EmbeddedConfig struct {
	// Dir is where both keep their data. Required.
	Dir string
	// Library is libchdb. Default: see [engine.Find].
	Library string
	// ClickHouseBytesMax is the most memory of the database. 0 is half of the
	// machine's.
	ClickHouseBytesMax int64
	// BrokerPort is the broker's port; 0 is any that is free.
	BrokerPort int
}

// startDatabase starts an embedded database, and puts how to reach it into cfg and
// sql, unless cfg has an address. The database's memory is divided among the
// analytics queries that run at once.
func (p *process) startDatabase(ctx context.Context, embedded *EmbeddedConfig, cfg *clickhouse.Config, sql *clickhouse.SQLConfig) error {
	if cfg.Addr != "" {
		return nil
	}
	library, err := engine.Find(embedded.Library)
	if err != nil {
		return err
	}
	e, err := engine.New(engine.Config{
		Library: library, Dir: filepath.Join(embedded.Dir, "clickhouse"), MemoryMaxBytes: embedded.ClickHouseBytesMax,
		SQLUser: sqlUser(embedded, cfg),
	}, p.log, p.registry)
	if err != nil {
		return err
	}
	p.start(ctx, "clickhouse", e.Run)
	if err := e.WaitReady(ctx); err != nil {
		return err
	}
	cfg.Addr, cfg.Database, cfg.User, cfg.Password = e.Addr(), engine.Database, engine.User, e.Password()
	*sql = clickhouse.SQLConfig{Addr: e.HTTPAddr(), Database: engine.Database, User: engine.SQLUser, Password: e.SQLPassword()}
	memory, err := p.serverMemory(ctx, *cfg)
	if err != nil {
		return err
	}
	if cfg.QueryMemoryBytesMax == 0 {
		cfg.QueryMemoryBytesMax = queryMemory(memory, cfg.AnalyticsConnectionsMax)
	}
	p.log.Debug("memory of the database", "bytes", memory, "query_bytes_max", cfg.QueryMemoryBytesMax)
	return nil
}

// sqlUser returns the embedded database's user for queries in SQL. The bounds of the user
// are written before the database starts, so they are computed from the configured memory
// of the database or, without it, from half of the machine's memory.
func sqlUser(embedded *EmbeddedConfig, cfg *clickhouse.Config) *engine.SQLUserConfig {
	limits := clickhouse.SQLLimits{Timeout: cfg.QueryTimeout, MemoryBytesMax: cfg.QueryMemoryBytesMax}
	if limits.MemoryBytesMax == 0 {
		memory := embedded.ClickHouseBytesMax
		if memory == 0 {
			memory = machineMemory() / 2
		}
		limits.MemoryBytesMax = queryMemory(memory, max(1, cfg.AnalyticsConnectionsMax))
	}
	return &engine.SQLUserConfig{Grants: clickhouse.SQLGrants(engine.Database), Settings: clickhouse.SQLSettings(limits)}
}

// machineMemory is how much memory this machine, or this container, has. It is 0 if the
// system does not say.
func machineMemory() int64 {
	var bytes int64
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			bytes = kib << 10
		}
	}
	text, _ = os.ReadFile("/sys/fs/cgroup/memory.max")
	if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && (bytes == 0 || limit < bytes) {
		return limit
	}
	return bytes
}

// serverMemory asks the database how much memory it has.
func (p *process) serverMemory(ctx context.Context, cfg clickhouse.Config) (bytes int64, err error) {
	db, err := conn.Open(cfg, nil)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = p.retry(ctx, "ask for the database's memory", clickhouse.IsRetryable, func(ctx context.Context) error {
		bytes, err = db.ServerMemory(ctx)
		return err
	})
	return bytes, err
}

// queryMemory is the memory of one question, of which so many run at once in a
// database of so much memory: together half of it. The rest is for inserts,
// merges, caches and single events.
func queryMemory(bytes int64, queriesMax int) int64 {
	if bytes == 0 {
		return conn.DefaultQueryMemoryBytesMax
	}
	return min(conn.DefaultQueryMemoryBytesMax, bytes/2/int64(queriesMax))
}

// startBroker starts an embedded broker, and puts its address into cfg, unless
// cfg has brokers.
func (p *process) startBroker(ctx context.Context, embedded *EmbeddedConfig, cfg *kafka.Config) error {
	if len(cfg.Brokers) > 0 {
		return nil
	}
	b, err := broker.New(broker.Config{
		Dir: filepath.Join(embedded.Dir, "kafka"), Port: embedded.BrokerPort, Group: cfg.Group,
	}, p.log)
	if err != nil {
		return err
	}
	p.onStop("broker", b.Close)
	p.start(ctx, "broker's retention", b.Run)
	cfg.Brokers = []string{b.Addr()}
	cfg.PartitionsNew = broker.Partitions
	// For the commands that look at a running pipeline from outside.
	file := brokerFile(embedded.Dir)
	if err := os.WriteFile(file, []byte(b.Addr()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the broker's address: %w", err)
	}
	p.onStop("broker's address", func() error { return os.Remove(file) })
	return nil
}

// EmbeddedBroker returns the address of the embedded broker of a process that
// runs [Serve] with the directory. The error wraps [fs.ErrNotExist] if none does.
func EmbeddedBroker(dir string) (string, error) {
	addr, err := os.ReadFile(brokerFile(dir))
	return strings.TrimSpace(string(addr)), err
}

func brokerFile(dir string) string { return filepath.Join(dir, "broker.addr") }
