package app

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/consumer"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/mcp"
)

const (
	mib = 1 << 20
	// memoryDefault is the limit of a process that has neither --memory-limit nor
	// GOMEMLIMIT.
	memoryDefault = 448 * mib
	// The limit divided by collectorShare is left for garbage that has not been
	// collected yet. The parts of the process share the rest.
	collectorShare = 10

	// processBytes is what every process needs: the Go runtime, the clients of Kafka
	// and ClickHouse with their connections, and metrics.
	processBytes = 32 * mib
	// brokerBytes is what the embedded broker needs: for the requests in progress,
	// and for the places of the batches on its disk.
	brokerBytes = 16 * mib
	// connectionBytes is what an open connection needs, without the bodies and
	// answers on it. An idle one was measured to take 19 KiB resident, with garbage.
	connectionBytes = 16 << 10
	// fetchBytes is the size of one fetch of the consumer, compressed. There are up to
	// three at a time: two in the Kafka client, and one that was polled from it.
	fetchBytes = 4 * mib
	// pollBytesMost is the most bytes that one poll of the consumer returns.
	pollBytesMost = 20 * mib
	// producedRecordBytes is what a record in the producer's buffer needs in addition
	// to its key and value.
	producedRecordBytes = 256

	connectionsLeast, connectionsMost = 256, 4096
)

// ByteSize is a number of bytes. Its text has the form of GOMEMLIMIT, such as 448MiB.
type ByteSize int64

// UnmarshalText reads a number of bytes, or a number with a unit: B, KiB, MiB, GiB
// or TiB.
func (s *ByteSize) UnmarshalText(text []byte) error {
	number, unit := strings.TrimSuffix(string(text), "B"), int64(1)
	for i, letter := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(number, letter); ok && strings.HasSuffix(string(text), "B") {
			number, unit = n, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return errors.New("must be a number of bytes, or one with a unit, such as 448MiB")
	}
	*s = ByteSize(n * unit)
	return nil
}

// String returns the size in mebibytes, such as 448MiB.
func (s ByteSize) String() string {
	if s%mib == 0 {
		return strconv.FormatInt(int64(s/mib), 10) + "MiB"
	}
	return strconv.FormatFloat(float64(s)/mib, 'f', 1, 64) + "MiB"
}

// memory says how the memory of a process is divided. It has a bound for each part.
// All bounds together, with the garbage that is not collected yet, fit into the limit.
type memory struct {
	limit ByteSize
	// goLimit is the limit to set for the Go runtime. 0 leaves the runtime's own.
	goLimit int64

	// connections is the number of connections that may be open at a time. bodies and
	// answers bound the request bodies and the answers of the API.
	connections     int64
	bodies, answers int64
	// producer bounds the buffer of the Kafka producer.
	producer int64
	// inflated bounds the records that the consumer has fetched and inflated but not
	// polled yet. As much again was polled and waits for the next flush. flush bounds
	// one batch; two exist at a time. recent bounds the rows that are held for updates.
	inflated, flush, recent int64
}

// roles are the parts that a process has.
type roles struct{ api, consumer, broker bool }

// memoryWants are bounds that the operator has set. 0 means that divide chooses.
type memoryWants struct {
	batchItems  int
	connections int
	flushBytes  int
	recentBytes int
}

// share says how much memory one part gets.
type share struct {
	bytes *int64
	// unit is the memory that the part needs for each one of *bytes.
	unit int64
	// least and most bound *bytes. What is left once every part has its least is
	// divided in proportion to weight.
	least, most, weight int64
}

// limits returns the limit of the process, and the limit to set for the Go runtime,
// which is 0 if the runtime has a limit already. If given is not 0, it is both.
func limits(given ByteSize) (limit ByteSize, goLimit int64) {
	if given != 0 {
		return given, int64(given)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		return memoryDefault, memoryDefault
	}
	if set := debug.SetMemoryLimit(-1); set != math.MaxInt64 {
		return ByteSize(set), 0
	}
	return memoryDefault, 0 // GOMEMLIMIT=off
}

// divide divides the memory among the parts of the process. The error says how much
// they need at least.
func divide(given ByteSize, has roles, want memoryWants) (memory, error) {
	var m memory
	m.limit, m.goLimit = limits(given)
	fixed := int64(processBytes)
	var parts []share
	add := func(bytes *int64, unit, least, most, weight int64, given int) {
		if given > 0 {
			least, most = int64(given), int64(given)
		}
		*bytes = least
		parts = append(parts, share{bytes, unit, least, most, weight})
	}
	if has.api {
		fixed += api.InflateBytes + api.AgentCallsMax*mcp.CallBytes
		cfg := api.Config{BatchItemsMax: want.batchItems, AnswerBytesMax: 1}
		bodies := cfg.InFlightBytesLeast() - 1
		largestCall := int64(api.DefaultBatchBytesMax) + int64(want.batchItems)*producedRecordBytes
		add(&m.connections, connectionBytes, connectionsLeast, connectionsMost, 2, want.connections)
		add(&m.bodies, 1, bodies, max(bodies, 192*mib), 1, 0)
		add(&m.answers, 1, api.AnswerBytesLeast, 128*mib, 2, 0)
		add(&m.producer, 1, largestCall, max(largestCall, 128*mib), 1, 0)
	}
	if has.consumer {
		fixed += 3*fetchBytes + conn.DefaultLookupBytesMax
		add(&m.inflated, 2, 8*mib, pollBytesMost-fetchBytes, 1, 0)
		// A flush leaves room for one poll, unless the flush is no larger than a poll.
		if want.flushBytes > 0 && want.flushBytes <= pollBytesMost {
			fixed += 2 * pollBytesMost
		}
		add(&m.flush, 2, 20*mib, 84*mib, 4, want.flushBytes)
		add(&m.recent, 1, 8*mib, math.MaxInt64, 8, want.recentBytes)
	}
	if has.broker {
		fixed += brokerBytes
	}
	free := int64(m.limit) - int64(m.limit)/collectorShare - fixed
	for _, p := range parts {
		free -= *p.bytes * p.unit
	}
	if free < 0 {
		least := (int64(m.limit) - int64(m.limit)/collectorShare - free + collectorShare - 2) / (collectorShare - 1) * collectorShare
		return m, fmt.Errorf("--memory-limit: %s is too little for this process and its settings; it needs %s at least",
			m.limit, ByteSize((least+mib-1)/mib*mib))
	}
	// If a part reaches its most, the other parts get what it could not take.
	for free > 0 {
		weights := int64(0)
		for _, p := range parts {
			if *p.bytes < p.most {
				weights += p.weight
			}
		}
		if weights == 0 {
			break
		}
		share, given := free/weights, int64(0)
		for _, p := range parts {
			if n := min(share*p.weight/p.unit, p.most-*p.bytes); n > 0 {
				*p.bytes += n
				given += n * p.unit
			}
		}
		if free -= given; given == 0 {
			break
		}
	}
	return m, nil
}

func (m *memory) applyAPI(cfg *api.Config) {
	cfg.ConnectionsMax = int(m.connections)
	cfg.InFlightBytesMax, cfg.AnswerBytesMax = m.bodies+m.answers, m.answers
}

func (m *memory) applyKafka(cfg *kafka.Config) {
	if m.producer > 0 {
		cfg.Producer.BufferBytesMax = int(m.producer)
	}
	if m.inflated > 0 {
		cfg.Consumer.FetchBytesMax, cfg.Consumer.InflatedBytesMax = fetchBytes, int(m.inflated)
	}
}

func (m *memory) applyConsumer(cfg *consumer.Config) {
	cfg.BatchBytesMax, cfg.RecentBytesMax = int(m.flush), int(m.recent)
	cfg.PollBytesMax = int(m.inflated) + fetchBytes
}

// set sets the limit of the Go runtime and logs how the memory is divided. Near the
// limit the runtime collects garbage before the heap has doubled.
func (m *memory) set(log *slog.Logger) {
	if m.goLimit > 0 {
		debug.SetMemoryLimit(m.goLimit)
	}
	log.Info("memory is divided", "memory", m)
}

// LogValue returns the bounds of the parts that the process has.
func (m *memory) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("limit", m.limit.String())}
	add := func(name string, bytes int64) {
		if bytes > 0 {
			attrs = append(attrs, slog.String(name, ByteSize(bytes).String()))
		}
	}
	if m.connections > 0 {
		attrs = append(attrs, slog.Int64("connections", m.connections))
	}
	add("bodies", m.bodies)
	add("answers", m.answers)
	add("producer", m.producer)
	add("inflated", m.inflated)
	add("flush", m.flush)
	add("recent", m.recent)
	return slog.GroupValue(attrs...)
}
