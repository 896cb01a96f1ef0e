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
)

const (
	mib = 1 << 20
	// memoryDefault is the limit where nothing else is said.
	memoryDefault = 448 * mib
	// collectorShare is the part of the limit, 1 in so many, that is garbage which
	// has not been collected yet. What may live is the rest.
	collectorShare = 10

	// processBytes is what every process takes: Go's runtime, the clients of Kafka
	// and ClickHouse with their connections, metrics.
	processBytes = 32 * mib
	// brokerBytes is what the embedded broker takes: the requests under way, and
	// the places of the batches that it keeps on disk.
	brokerBytes = 16 * mib
	// connectionBytes is what an open connection takes beside the bodies and
	// answers on it. Measured: 19 KiB resident when idle, garbage included.
	connectionBytes = 16 << 10
	// fetchBytes is one fetch of the consumer, as compressed. There are two, and
	// one that has been polled.
	fetchBytes = 4 * mib
	// pollBytesMost is the most of one answer of the consumer's source.
	pollBytesMost = 20 * mib
	// producedRecordBytes is what a record in the producer's buffer takes beside its bytes.
	producedRecordBytes = 256

	connectionsLeast, connectionsMost = 256, 4096
)

// ByteSize is a number of bytes. As text it is written like GOMEMLIMIT: 448MiB.
type ByteSize int64

// UnmarshalText takes bytes, or a number with a unit: B, KiB, MiB, GiB or TiB.
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

// String writes mebibytes, such as 448MiB.
func (s ByteSize) String() string {
	if s%mib == 0 {
		return strconv.FormatInt(int64(s/mib), 10) + "MiB"
	}
	return strconv.FormatFloat(float64(s)/mib, 'f', 1, 64) + "MiB"
}

// memory is how the memory of a process is divided: the bounds of its parts,
// which fit into the limit together, with what Go's collector needs.
type memory struct {
	limit ByteSize
	// goLimit is the limit to set for Go's runtime; 0 leaves it as it is.
	goLimit int64

	// connections is how many may be open at a time. bodies and answers are
	// those of the API.
	connections     int64
	bodies, answers int64
	// producer is the producer's buffer.
	producer int64
	// inflated is what the consumer has fetched and inflated and not polled yet, of
	// which as much again waits for the next flush; flush is one batch, of which
	// there are two; recent is for the rows held for updates.
	inflated, flush, recent int64
}

// roles are the parts that a process has.
type roles struct{ api, consumer, broker bool }

// memoryWants are the settings that are given instead of divided; 0 is not given.
type memoryWants struct {
	batchItems  int
	connections int
	flushBytes  int
	recentBytes int
}

// share is the memory of one part.
type share struct {
	bytes *int64
	// unit is what the part takes for each of *bytes.
	unit int64
	// least and most bound *bytes; weight is the share of what is left.
	least, most, weight int64
}

// limits returns the limit of the process, and of Go's runtime, 0 where that has it.
// A given limit, if it is not 0, is both.
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

// divide divides the memory. The error says how much is needed at least.
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
		fixed += api.InflateBytes
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
		// A flush leaves room for one poll; one that is no larger than that does not.
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
	// What one part cannot take goes to the others.
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

// set sets the limit of Go's runtime, from which on it collects garbage before
// the heap has doubled, and says how the memory is divided.
func (m *memory) set(log *slog.Logger) {
	if m.goLimit > 0 {
		debug.SetMemoryLimit(m.goLimit)
	}
	log.Info("memory is divided", "memory", m)
}

// LogValue tells an operator how the memory is divided.
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
