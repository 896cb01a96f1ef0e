package consumer

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
)

const benchRecords = 50_000

// benchCreate is a create of about 500 bytes.
func benchCreate(n uint64) event.Write {
	return create(fresh, id(n), metadata(`{"plan":"pro","region":"eu"}`), latency(12.5),
		input(strings.Repeat("i", 180)), output(strings.Repeat("o", 220)))
}

// BenchmarkFold folds a batch that needs no look-up, with the look-up's own
// bookkeeping.
func BenchmarkFold(b *testing.B) {
	creates := make([]event.Write, benchRecords)
	for n := range creates {
		creates[n] = benchCreate(uint64(n))
	}
	half := make([]event.Write, 0, benchRecords)
	for n := range uint64(benchRecords / 2) {
		half = append(half, benchCreate(n))
	}
	for n := range uint64(benchRecords / 2) {
		half = append(half, update(id(n), failure("timeout"), output("retried")))
	}
	for _, bb := range []struct {
		name   string
		writes []event.Write
	}{{"creates", creates}, {"half updates", half}} {
		b.Run(bb.name, func(b *testing.B) {
			c, err := New(DefaultConfig(), nil, nil, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			batch, bytes := newBatch(), 0
			for n, w := range bb.writes {
				rec := record(w, int32(n%12), int64(n))
				// An event's writes share a partition.
				rec.Partition = int32(w.ID[15] % 12)
				bytes += len(rec.Value)
				batch.add(&rec, time.UnixMicro(micros))
			}
			if len(batch.items) != len(bb.writes) {
				b.Fatalf("%d items of %d writes", len(batch.items), len(bb.writes))
			}
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				if err := c.resolve(b.Context(), batch.items); err != nil {
					b.Fatal(err)
				}
				c.remember()
			}
			b.ReportMetric(float64(len(bb.writes)*b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkBatchAdd decodes records into a batch.
func BenchmarkBatchAdd(b *testing.B) {
	vector := make([]float32, 384)
	for i := range vector {
		vector[i] = float32(i) / 384
	}
	for _, bb := range []struct {
		name    string
		options []option
	}{{"text", nil}, {"two vectors of 384", []option{inputVector(vector...), outputVector(vector...)}}} {
		b.Run(bb.name, func(b *testing.B) {
			rec := record(with(benchCreate(1), bb.options), 0, 0)
			batch, now := newBatch(), time.UnixMicro(micros)
			b.SetBytes(int64(len(rec.Value)))
			b.ReportAllocs()
			for b.Loop() {
				if batch.len() == benchRecords/10 {
					batch.reset()
				}
				batch.add(&rec, now)
			}
			if len(batch.poison) > 0 {
				b.Fatal(batch.poison[0].Detail)
			}
		})
	}
}
