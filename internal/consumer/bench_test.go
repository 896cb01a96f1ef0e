package consumer

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	benchEvents  = 200_000
	benchRecords = 50_000
)

// benchStore is an empty table that takes anything.
type benchStore struct{ Store }

func (benchStore) Refused(context.Context, int) ([]event.AliasRow, bool, error) {
	return nil, false, nil
}

func (benchStore) Occupancy(context.Context, int64, int64) (event.Occupancy, error) {
	return event.Occupancy{Empty: true}, nil
}

// benchID is the id of the n-th event, ten of which are in a conversation.
func benchID(n int) event.ID {
	return event.MakeID(micros+int64(n)*100, event.ConversationHash(benchConversation(n)), uint64(n)*0x9e3779b97f4a7c15)
}

func benchConversation(n int) string { return fmt.Sprintf("conversation-%012d", n/10) }

// benchCreate is a create of about 500 bytes.
func benchCreate(n int) event.Write {
	return create(func(w *event.Write) { w.ID, w.ConversationID = benchID(n), benchConversation(n) },
		metadata(fmt.Sprintf(`{"services":["RentalCars_2","Homes_1"],"plan":"free","corpus":"sgd","app":"sluice-bench","user":"user-%d"}`, n/10)),
		latency(12.5), input(strings.Repeat("i", 120)), output(strings.Repeat("o", 160)))
}

// benchUpdate is one of three in turn: of the core row, of the output, of both.
func benchUpdate(n int) event.Write {
	w := update(func(w *event.Write) { w.ID = benchID(n) })
	if n%3 != 1 {
		latency(float64(n))(&w)
	}
	if n%3 != 0 {
		output(strings.Repeat("p", 160))(&w)
	}
	return w
}

func benchDelete(n int) event.Write {
	return remove(func(w *event.Write) { w.ID = benchID(n) })
}

// benchLog is a record of each event, all events in an order of their own.
func benchLog(start, step int, write func(n int) event.Write) []record.Record {
	log := make([]record.Record, benchEvents)
	for i := range log {
		w := write(i * step % benchEvents)
		log[i] = recordOf(w, int32(w.ID[15]%12), int64(start+i))
	}
	return log
}

// benchApply does all but what the ports do.
func benchApply(b *testing.B, c *Consumer, log []record.Record) {
	for len(log) > 0 {
		now := time.UnixMicro(micros)
		for i := range log[:benchRecords] {
			c.filling.add(&log[i], now)
		}
		log = log[benchRecords:]
		if err := c.resolve(b.Context(), c.filling.items); err != nil {
			b.Fatal(err)
		}
		if n := len(c.filling.poison) + len(c.fold.refused); n > 0 {
			b.Fatalf("%d records refused", n)
		}
		c.cacheRows()
		c.filling.reset()
	}
}

// BenchmarkApply takes records from decoding to rows, and to the recent rows.
func BenchmarkApply(b *testing.B) {
	creates := benchLog(0, 1, benchCreate)
	for _, bb := range []struct {
		name        string
		before, log []record.Record
	}{
		{"creates", nil, creates},
		{"updates", creates, benchLog(benchEvents, 77_777, benchUpdate)},
		{"deletes", creates, benchLog(benchEvents, 77_777, benchDelete)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			bytes := 0
			for i := range bb.log {
				bytes += len(bb.log[i].Value)
			}
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c, err := New(DefaultConfig(), nil, benchStore{}, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
				if err != nil {
					b.Fatal(err)
				}
				benchApply(b, c, bb.before)
				b.StartTimer()
				benchApply(b, c, bb.log)
			}
			b.ReportMetric(float64(benchEvents*b.N)/b.Elapsed().Seconds(), "records/s")
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
			rec := recordOf(with(benchCreate(1), bb.options), 0, 0)
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
