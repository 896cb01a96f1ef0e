package main

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse"
)

// A page of another site that has its name point to this machine must not read
// the profiles of a process.
func TestProfilesAnswerOnlyLocalNames(t *testing.T) {
	p := newProcess(&env{log: slog.New(slog.DiscardHandler), pprof: "127.0.0.1:0"})
	at, err := p.startProfiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		host string
		want int
	}{
		{host: "", want: http.StatusOK},
		{host: "localhost:6060", want: http.StatusOK},
		{host: "[::1]:6060", want: http.StatusOK},
		{host: "evil.example", want: http.StatusForbidden},
		{host: "evil.example:6060", want: http.StatusForbidden},
		{host: "127.0.0.1.evil.example", want: http.StatusForbidden},
	} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine", "/debug/pprof/trace?seconds=0.01"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.String()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = tt.host
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != tt.want {
				t.Errorf("GET %s of host %q: status %d, want %d", path, tt.host, answer.StatusCode, tt.want)
			}
		}
	}
}

// All questions that run at once fit into half of the embedded database's memory.
func TestQueryMemory(t *testing.T) {
	for _, tt := range []struct {
		name    string
		bytes   int64
		queries int
		want    int64
	}{
		{"the least database", 512 << 20, 2, 128 << 20},
		{"half of a machine of 24 GiB", 12 << 30, 2, 3 << 30},
		{"many questions", 12 << 30, 16, 384 << 20},
		{"no more than the default", 1 << 40, 2, 4 << 30},
		{"a database without a limit", 0, 2, 4 << 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := queryMemory(tt.bytes, tt.queries)
			if got != tt.want {
				t.Errorf("%d bytes, want %d", got, tt.want)
			}
			if tt.bytes > 0 && got*int64(tt.queries) > tt.bytes/2 {
				t.Errorf("%d queries of %d bytes are more than half of %d", tt.queries, got, tt.bytes)
			}
		})
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
