package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
)

// embeddedFlags are those of the broker and the database that sluice brings
// along. This file alone knows whether they are used; everything else gets
// their addresses.
type embeddedFlags struct {
	DataDir          string `help:"Where the embedded broker and database keep their data." default:"./sluice-data" placeholder:"DIR" group:"embedded"`
	Libchdb          string `help:"ClickHouse's library. Default: where make engine put it." placeholder:"FILE" type:"path" group:"embedded"`
	ClickhouseMemory int64  `help:"Most memory of the embedded database, in bytes; 0 for half of the machine's." default:"0" group:"embedded"`
	BrokerPort       int    `help:"Port of the embedded broker, for the other commands; 0 for any that is free." default:"0" group:"embedded"`
}

// database returns the configuration of the database: the one given, or that
// of an embedded one, which it starts. queriesMax is how many questions are to
// run at once; the memory of an embedded database is divided among them.
func (f *embeddedFlags) database(ctx context.Context, p *process, remote *clickhouseFlags, queriesMax int) (clickhouse.Config, error) {
	if remote.ClickhouseURL != "" {
		return remote.config()
	}
	if remote.Cluster != "" {
		return clickhouse.Config{}, errors.New("--cluster needs --clickhouse-url: the embedded database is on one machine")
	}
	library, err := engine.Find(f.Libchdb)
	if err != nil {
		return clickhouse.Config{}, err
	}
	e, err := engine.New(engine.Config{
		Library: library, Dir: filepath.Join(f.DataDir, "clickhouse"), MemoryMaxBytes: f.ClickhouseMemory,
	}, p.log, p.registry)
	if err != nil {
		return clickhouse.Config{}, err
	}
	p.start(ctx, "clickhouse", e.Run)
	if err := e.WaitReady(ctx); err != nil {
		return clickhouse.Config{}, err
	}
	cfg := clickhouse.Config{Addr: e.Addr(), Database: engine.Database, User: engine.User, Password: e.Password()}
	memory, err := serverMemory(ctx, p, cfg)
	if err != nil {
		return clickhouse.Config{}, err
	}
	cfg.QueryMemoryBytesMax = queryMemory(memory, queriesMax)
	p.log.Debug("memory of the database", "bytes", memory, "query_bytes_max", cfg.QueryMemoryBytesMax)
	return cfg, nil
}

// serverMemory asks the database how much memory it has.
func serverMemory(ctx context.Context, p *process, cfg clickhouse.Config) (bytes int64, err error) {
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

// broker puts the address of an embedded broker, which it starts, into cfg,
// unless brokers are given.
func (f *embeddedFlags) broker(ctx context.Context, p *process, cfg *kafka.Config) error {
	if len(cfg.Brokers) > 0 {
		return nil
	}
	b, err := broker.New(broker.Config{
		Dir: filepath.Join(f.DataDir, "kafka"), Port: f.BrokerPort, Group: cfg.Group,
	}, p.log)
	if err != nil {
		return err
	}
	p.onStop("broker", b.Close)
	p.start(ctx, "broker's retention", b.Run)
	cfg.Brokers = []string{b.Addr()}
	cfg.PartitionsNew = broker.Partitions
	// For the commands that look at a running pipeline from outside.
	if err := os.WriteFile(f.brokerFile(), []byte(b.Addr()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the broker's address: %w", err)
	}
	p.onStop("broker's address", func() error { return os.Remove(f.brokerFile()) })
	return nil
}

// brokerFlags find the broker of a running pipeline.
type brokerFlags struct {
	kafkaFlags
	DataDir string `help:"Where a running \"sluice serve\" keeps its data; its embedded broker is used where no other is given." default:"./sluice-data" placeholder:"DIR" group:"embedded"`
}

func (f *brokerFlags) config() (kafka.Config, error) {
	cfg, err := f.kafkaFlags.config()
	if err != nil || len(cfg.Brokers) > 0 {
		return cfg, err
	}
	embedded := embeddedFlags{DataDir: f.DataDir}
	addr, err := os.ReadFile(embedded.brokerFile())
	if err != nil {
		return cfg, fmt.Errorf("--kafka-brokers is required, as no pipeline runs on --data-dir: %w", err)
	}
	cfg.Brokers = []string{strings.TrimSpace(string(addr))}
	return cfg, nil
}

func (f *embeddedFlags) brokerFile() string { return filepath.Join(f.DataDir, "broker.addr") }
