package broker_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// BenchmarkProduceSingle is the time of one write, of callers that each wait
// for the acknowledgement before their next one, as handlers of single POSTs do.
func BenchmarkProduceSingle(b *testing.B) {
	writes := make([]event.Write, 10_000)
	for i := range writes {
		writes[i] = kafkatest.Content("alias-"+strconv.Itoa(i), 400)
	}
	for _, bm := range []struct {
		name    string
		callers int
		noSync  bool
	}{
		{"callers=1", 1, false},
		{"callers=64", 64, false},
		{"callers=64/nosync", 64, true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			broker := kafkatest.StartEmbedded(b, broker.Config{Dir: b.TempDir(), NoSync: bm.noSync})
			cfg := kafkatest.NewConfig(broker.Addr())
			cfg.Partitions = 12
			if _, err := kafka.EnsureTopics(b.Context(), cfg, kafkatest.Log(b)); err != nil {
				b.Fatal(err)
			}
			p, err := kafka.NewProducer(cfg, kafkatest.Log(b), prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close(context.WithoutCancel(b.Context()))
			// The first writes load the metadata and create the files.
			kafkatest.Produce(b, p, writes)
			b.ReportAllocs()
			b.ResetTimer()
			took := produceSingly(b, p, writes, bm.callers)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms")
		})
	}
}

// produceSingly makes b.N calls of one write each, and returns how long they
// took, shortest first.
func produceSingly(b *testing.B, p *kafka.Producer, writes []event.Write, callers int) []time.Duration {
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				start := time.Now()
				at := int(i) % len(writes)
				if err := p.Produce(b.Context(), writes[at:at+1])[0].Err; err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}
