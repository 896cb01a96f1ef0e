package app

import (
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/mcp"
)

// takes is what all parts of a process take together at most, with Go's collector.
func (m *memory) takes(has roles) int64 {
	n := int64(processBytes) + int64(m.limit)/collectorShare
	if has.broker {
		n += brokerBytes
	}
	if has.api {
		n += api.InflateBytes + api.AgentCallsMax*mcp.CallBytes + m.connections*connectionBytes + m.bodies + m.answers + m.producer
	}
	if has.consumer {
		n += 3*fetchBytes + conn.DefaultLookupBytesMax + 2*m.inflated + 2*m.flush + m.recent
		if poll := fetchBytes + m.inflated; poll >= m.flush {
			n += 2 * poll // see consumer.Config.PollBytesMax
		}
	}
	return n
}

// The bounds of all parts fit into every limit that is allowed, and each part
// can work with its own.
func TestMemoryIsDivided(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	plain := memoryWants{batchItems: api.DefaultBatchItemsMax}
	for _, tt := range []struct {
		name string
		has  roles
		want memoryWants
	}{
		{"serve", roles{api: true, consumer: true, broker: true}, plain},
		{"serve without a broker", roles{api: true, consumer: true}, plain},
		{"api", roles{api: true}, plain},
		{"consume", roles{consumer: true}, plain},
		{"serve, small batches", roles{api: true, consumer: true, broker: true}, memoryWants{batchItems: 1000}},
		{"serve, as it was", roles{api: true, consumer: true, broker: true}, memoryWants{
			batchItems: api.DefaultBatchItemsMax, connections: 4096, flushBytes: 64 << 20, recentBytes: 96 << 20,
		}},
		{"large batches", roles{api: true}, memoryWants{batchItems: 1_000_000}},
		{"small flushes", roles{consumer: true}, memoryWants{flushBytes: 1 << 20}},
		{"many connections", roles{api: true}, memoryWants{batchItems: 50_000, connections: 20_000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allowed, least := 0, int64(0)
			check := func(limit int64) {
				m, err := divide(ByteSize(limit), tt.has, tt.want)
				if err != nil {
					if allowed > 0 {
						t.Fatalf("%d bytes are too little, and %d were enough: %v", limit, least, err)
					}
					return
				}
				if allowed++; allowed == 1 {
					least = limit
				}
				if n := m.takes(tt.has); n > limit {
					t.Fatalf("%d of %d bytes: %+v", n, limit, m)
				}
				// None of it lies idle, but what the bounds of the parts leave.
				if n := m.takes(tt.has); tt.has.consumer && tt.want == plain && n < limit*99/100 {
					t.Errorf("%d of %d bytes: %+v", n, limit, m)
				}
				checkDivided(t, &m, tt.has, tt.want)
			}
			for limit := int64(1 << 20); limit <= 2<<30; limit += 1 << 20 {
				check(limit)
			}
			for _, limit := range []int64{8 << 30, 64 << 30, 1 << 40} {
				check(limit)
			}
			if allowed == 0 {
				t.Fatal("no limit is allowed")
			}
			// What the error says is true.
			_, err := divide(1<<20, tt.has, tt.want)
			if want := ByteSize(least).String(); err == nil || !strings.Contains(err.Error(), "--memory-limit: 1MiB is too little") || !strings.Contains(err.Error(), "needs "+want+" at least") {
				t.Errorf("error %v, want it to name %s", err, want)
			}
		})
	}
}

// checkDivided wants the parts to accept their shares.
func checkDivided(t *testing.T, m *memory, has roles, want memoryWants) {
	t.Helper()
	if has.api {
		cfg := api.Config{BatchItemsMax: want.batchItems}
		m.applyAPI(&cfg)
		if err := cfg.Validate(); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if m.connections < connectionsLeast || want.connections > 0 && m.connections != int64(want.connections) {
			t.Fatalf("%d connections", m.connections)
		}
	}
	kafkaCfg := kafka.Config{Brokers: []string{"a:1"}}
	m.applyKafka(&kafkaCfg)
	if err := kafkaCfg.Validate(); err != nil {
		t.Fatalf("%+v: %v", m, err)
	}
	if has.consumer {
		cfg := consumer.DefaultConfig()
		cfg.BatchRecordsMax, cfg.FlushDelayQuiet, cfg.FlushDelayBusy = 50_000, time.Second, time.Second
		m.applyConsumer(&cfg)
		if err := cfg.Validate(); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		// What is polled at once fits into a flush, beside what is there.
		if cfg.PollBytesMax < int(m.inflated)+kafkaCfg.Consumer.FetchBytesMax || want.flushBytes == 0 && cfg.BatchBytesMax < cfg.PollBytesMax+cfg.PollBytesMax/2 {
			t.Fatalf("%+v: %+v", m, cfg)
		}
	}
}

// The documented default is enough for everything in one process.
func TestMemoryDefault(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	m, err := divide(0, roles{api: true, consumer: true, broker: true}, memoryWants{batchItems: api.DefaultBatchItemsMax})
	if err != nil {
		t.Fatal(err)
	}
	if m.limit != 448*mib || m.connections < 1100 || m.recent < 62*mib || m.flush < 32*mib || m.answers < 24*mib {
		t.Errorf("divided as %v", m.LogValue())
	}
}

func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	for _, tt := range []struct {
		flag     ByteSize
		variable string
		runtime  int64 // what the variable has set
		limit    ByteSize
		want     int64 // of the runtime
	}{
		{variable: "", runtime: math.MaxInt64, limit: memoryDefault, want: memoryDefault},
		{variable: "1GiB", runtime: 1 << 30, limit: 1 << 30, want: 1 << 30},
		{variable: "off", runtime: math.MaxInt64, limit: memoryDefault, want: math.MaxInt64},
		{flag: 512 << 20, variable: "", runtime: math.MaxInt64, limit: 512 << 20, want: 512 << 20},
		{flag: 512 << 20, variable: "1GiB", runtime: 1 << 30, limit: 512 << 20, want: 512 << 20},
	} {
		debug.SetMemoryLimit(tt.runtime)
		t.Setenv("GOMEMLIMIT", tt.variable)
		m, err := divide(tt.flag, roles{consumer: true}, memoryWants{})
		if err != nil {
			t.Fatal(err)
		}
		m.set(slog.New(slog.DiscardHandler))
		if got := debug.SetMemoryLimit(-1); got != tt.want || m.limit != tt.limit {
			t.Errorf("flag %s, GOMEMLIMIT=%q: limit %s, the runtime's %d, want %s and %d", tt.flag, tt.variable, m.limit, got, tt.limit, tt.want)
		}
	}
}

func TestByteSizes(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"0": 0, "1000": 1000, "1000B": 1000, "1KiB": 1 << 10, "448MiB": 448 << 20, "1GiB": 1 << 30, "2TiB": 2 << 40,
	} {
		var got ByteSize
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "448M", "448Mi", "448MB", "-1", "1.5GiB", "MiB", "9999999TiB", "1 GiB", "x"} {
		var got ByteSize
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
