package kafka_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// benchWrites are creates from the lines of the file in SLUICE_BENCH_EVENTS
// (gzipped NDJSON), or of made-up text.
func benchWrites(b *testing.B, n int) []event.Write {
	b.Helper()
	writes := make([]event.Write, 0, n)
	file := os.Getenv("SLUICE_BENCH_EVENTS")
	if file == "" {
		for i := range n {
			w := kafkatest.Content("alias-"+strconv.Itoa(i), 400)
			writes = append(writes, w)
		}
		return writes
	}
	f, err := os.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		b.Fatal(err)
	}
	parser := body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for len(writes) < n && lines.Scan() {
		w, err := parser.ParseCreate([]byte(lines.Text()), time.Now())
		if err != nil {
			b.Fatal(err)
		}
		writes = append(writes, w)
	}
	return writes
}

// BenchmarkProduce is the time of one call of 5,000 writes, four at a time.
func BenchmarkProduce(b *testing.B) {
	writes := benchWrites(b, 50_000)
	var bytes int
	for i := range writes {
		bytes += len(record.AppendWrite(nil, &writes[i]))
	}
	for _, broker := range []struct {
		name string
		addr func(*testing.B) string
	}{
		{"embedded", func(b *testing.B) string {
			return kafkatest.StartEmbedded(b, broker.Config{Dir: b.TempDir()}).Addr()
		}},
		{"apache", func(b *testing.B) string { return apacheKafka(b).Addrs[0] }},
	} {
		for _, compression := range []string{kafka.CompressionSnappy, kafka.CompressionLZ4, kafka.CompressionZstd, kafka.CompressionNone} {
			b.Run(broker.name+"/"+compression, func(b *testing.B) {
				at := &backend{addr: broker.addr(b)}
				cfg := at.config()
				cfg.Partitions, cfg.Producer.Compression = 12, compression
				if _, err := kafka.EnsureTopics(b.Context(), cfg, kafkatest.Log(b)); err != nil {
					b.Fatal(err)
				}
				p, err := kafka.NewProducer(cfg, kafkatest.Log(b), prometheus.NewRegistry())
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close(context.WithoutCancel(b.Context()))
				calls := make(chan []event.Write)
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for call := range calls {
							for _, a := range p.Produce(b.Context(), call) {
								if a.Err != nil {
									b.Error(a.Err)
									break
								}
							}
						}
					})
				}
				b.SetBytes(int64(bytes / len(writes) * 5000))
				b.ReportAllocs()
				i, began := 0, cpuTime(b)
				for b.Loop() {
					calls <- writes[i : i+5000]
					i = (i + 5000) % len(writes)
				}
				close(calls)
				wg.Wait()
				records := float64(b.N) * 5000
				b.ReportMetric(records/b.Elapsed().Seconds(), "records/s")
				b.ReportMetric(float64((cpuTime(b)-began).Nanoseconds())/records, "cpu-ns/record")
				b.ReportMetric(logBytes(b, at, cfg)/records, "log-B/record")
			})
		}
	}
}

// cpuTime is what this process has used, the embedded broker included.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// logBytes is the size of the events topic's partitions.
func logBytes(b *testing.B, at *backend, cfg kafka.Config) float64 {
	b.Helper()
	all, err := at.admin(b).DescribeAllLogDirs(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	var sum int64
	all.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			if p.Topic == cfg.EventsTopic() {
				sum += p.Size
			}
		})
	})
	return float64(sum)
}
