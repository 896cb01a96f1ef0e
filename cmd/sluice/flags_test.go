package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
)

// The flag is read as the program reads it.
func TestMemoryLimitFlag(t *testing.T) {
	if os.Getenv("GOMEMLIMIT") != "" {
		t.Skip("GOMEMLIMIT is set")
	}
	var c cli
	if _, err := newParser(&c, io.Discard, io.Discard).Parse([]string{"serve", "--memory-limit", "512MiB"}); err != nil || c.Serve.MemoryLimit != 512<<20 {
		t.Errorf("--memory-limit 512MiB: %d, %v", c.Serve.MemoryLimit, err)
	}
}

func TestReaderFlags(t *testing.T) {
	f := readerFlags{AnalyticsQueue: 100, AnalyticsWait: time.Second, QueryTimeout: time.Second}
	if err := f.checkReader(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	if n := f.analyticsQueries(); n < 2 {
		t.Errorf("%d questions at once", n)
	}
	bad := readerFlags{AnalyticsQueries: -1, QueryMemory: -1, ReadConnections: -1}
	err := bad.checkReader()
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{"analytics-queries", "analytics-queue", "analytics-wait", "query-timeout", "query-memory", "read-connections"} {
		if !strings.Contains(err.Error(), "--"+name) {
			t.Errorf("the error does not name --%s: %v", name, err)
		}
	}
	f.AnalyticsQueries, f.ReadConnections, f.QueryMemory = 5, 7, 11
	var cfg clickhouse.Config
	f.applyReader(&cfg)
	if cfg.AnalyticsConnectionsMax != 5 || cfg.ReadConnectionsMax != 7 || cfg.QueryMemoryBytesMax != 11 || cfg.QueryTimeout != time.Second {
		t.Errorf("got %+v", cfg)
	}
	var apiCfg api.Config
	f.applyAdmission(&apiCfg)
	if apiCfg.AnalyticsQueriesMax != 5 || apiCfg.AnalyticsQueueMax != 100 || apiCfg.QueryTimeout <= cfg.QueryTimeout {
		t.Errorf("got %+v", apiCfg)
	}
}
