package bench

import (
	"encoding/json"
	"os"
	"slices"
	"time"
)

// Report is what a run of the benchmark found, as it is written to JSON.
type Report struct {
	Machine Machine `json:"machine"`
	Cases   []Case  `json:"cases"`
}

// EmbeddedBroker is Case.Broker of the broker in "sluice serve".
const EmbeddedBroker = "embedded"

// WriteJSON writes figures to a file, if there is one.
func WriteJSON(path string, figures any) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Case is one load on one system.
type Case struct {
	// Name says what was sent and how, Broker to which: [EmbeddedBroker] or
	// the version of Apache Kafka.
	Name   string `json:"name"`
	Broker string `json:"broker"`
	// Batch is the number of writes of a request, 1 for requests without a
	// batch, and Connections the number of requests under way.
	Batch       int     `json:"batch"`
	Connections int     `json:"connections"`
	Phases      []Phase `json:"phases"`
	// Limits and Alternative are measured in the same run, where asked for.
	Limits      *Limits      `json:"limits,omitempty"`
	Alternative *Alternative `json:"alternative,omitempty"`
}

// Phase is one kind of write, from the first request until every write is
// visible. All times are in the units that their names end in.
type Phase struct {
	// Name is create, update or delete.
	Name   string `json:"name"`
	Writes int    `json:"writes"`
	// Bytes of all request bodies.
	Bytes int64 `json:"bytes"`
	// AckedSeconds is until the last acknowledgement, VisibleSeconds until a
	// query showed all of it, both from the first request.
	AckedSeconds   float64 `json:"acked_seconds"`
	VisibleSeconds float64 `json:"visible_seconds"`
	// AckMillis are of the requests, FreshMillis from the acknowledgement of
	// single probes during the load until a read shows them.
	AckMillis   Quantiles `json:"ack_ms"`
	FreshMillis Quantiles `json:"fresh_ms"`
	// Processes is what each of the system's took, this one included.
	Processes []ProcessUsage `json:"processes"`
	// Parts that inserts and merges created in ClickHouse's tables.
	Parts  float64 `json:"parts"`
	Merges float64 `json:"merges"`
	// Sampled is how many events were compared in all fields afterwards.
	Sampled int `json:"sampled"`
}

// WritesPerSecond is the rate until everything was visible.
func (p *Phase) WritesPerSecond() float64 { return float64(p.Writes) / p.VisibleSeconds }

// Quantiles of a time, in milliseconds.
type Quantiles struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Limits are what Sluice's creates can be compared with: the parts of its work
// done alone, by the same machine in the same run, in writes per second.
type Limits struct {
	// Insert is of the same rows into the same tables by the native protocol.
	InsertPerSecond float64 `json:"insert_per_second"`
	// Produce is of the same records to the same broker.
	ProducePerSecond float64 `json:"produce_per_second"`
	// Discard is of the same requests to a net/http server that reads and
	// discards the bodies.
	DiscardPerSecond float64 `json:"discard_per_second"`
}

// Alternative compares draining one topic of creates into the tables.
type Alternative struct {
	Events int `json:"events"`
	// SluicePerSecond is Sluice's consumer's rate.
	SluicePerSecond float64 `json:"sluice_per_second"`
	// KafkaEnginePerSecond is that of ClickHouse's Kafka table engine with
	// materialized views.
	KafkaEnginePerSecond float64 `json:"kafka_engine_per_second"`
	// How says what was compared with what.
	How string `json:"how"`
}

// quantiles sorts the times.
func quantiles(times []time.Duration) Quantiles {
	if len(times) == 0 {
		return Quantiles{}
	}
	slices.Sort(times)
	at := func(q float64) float64 {
		return millis(times[min(len(times)-1, int(q*float64(len(times))))])
	}
	return Quantiles{N: len(times), P50: at(0.5), P99: at(0.99), Max: millis(times[len(times)-1])}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
