package clickhouse_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// benchID is the id of the i-th of a set of events in conversations of twenty, over 60 days.
func benchID(i int) (event.ID, string) {
	conversation := fmt.Sprint("conversation-", i/20)
	own, shared := rand.New(rand.NewPCG(7, uint64(i))), rand.New(rand.NewPCG(8, uint64(i/20)))
	first := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	micros := first + shared.Int64N(60*24*3600*1_000_000) + int64(i%20)*5_000_000 + own.Int64N(1_000_000)
	return event.MakeID(micros, event.ConversationHash(conversation), own.Uint64()), conversation
}

func benchRows(from, n, contentBytes, dimensions int) event.Rows {
	var rows event.Rows
	for i := from; i < from+n; i++ {
		id, conversation := benchID(i)
		position, version := clickhousetest.Created(int64(i))
		rows.Cores = append(rows.Cores, event.Core{
			ID: id, ConversationID: conversation, EventName: "event_a", Metadata: `{"plan":"pro"}`,
			Latency: float64(i % 5000), HasLatency: true, Created: position, Version: version,
		})
		if contentBytes > 0 {
			data := make([]byte, contentBytes)
			for j := range data {
				data[j] = 'a' + byte(rand.IntN(26))
			}
			rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: data}, Version: version})
		}
		if dimensions > 0 {
			values := make([]float32, dimensions)
			for j := range values {
				values[j] = rand.Float32()
			}
			rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(values...), Version: version})
		}
	}
	return rows
}

func BenchmarkInsert(b *testing.B) {
	for _, bench := range []struct {
		name                           string
		rows, contentBytes, dimensions int
	}{{"cores", 50_000, 0, 0}, {"contents", 50_000, 500, 0}, {"embeddings", 20_000, 0, 384}} {
		b.Run(bench.name, func(b *testing.B) {
			store, _, _ := clickhousetest.Migrated(b)
			rows := benchRows(0, bench.rows, bench.contentBytes, bench.dimensions)
			b.SetBytes(int64(bench.rows * (100 + bench.contentBytes + 4*bench.dimensions)))
			b.ReportAllocs()
			for b.Loop() {
				if err := store.Insert(b.Context(), &rows); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(bench.rows*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	const total = 1_000_000
	store, server, database := clickhousetest.Migrated(b)
	for from := 0; from < total; from += 100_000 {
		rows := benchRows(from, 100_000, 0, 0)
		if err := store.Insert(b.Context(), &rows); err != nil {
			b.Fatal(err)
		}
	}
	server.Query(b, "OPTIMIZE TABLE "+database+".events FINAL")
	for _, count := range []int{1, 1000, 50_000} {
		ids := make([]event.ID, count)
		for i := range ids {
			ids[i], _ = benchID(rand.IntN(total))
		}
		b.Run(fmt.Sprintf("cores/%d", count), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := store.Cores(b.Context(), ids); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(count*b.N)/b.Elapsed().Seconds(), "keys/s")
		})
		b.Run(fmt.Sprintf("states/%d", count), func(b *testing.B) {
			for b.Loop() {
				if _, err := store.CoreStates(b.Context(), ids); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(count*b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// BenchmarkEvent reads single events and pages, as one reader does and as 64 at
// a time.
func BenchmarkEvent(b *testing.B) {
	const total = 300_000
	store, server, database := clickhousetest.Migrated(b)
	for from := 0; from < total; from += 50_000 {
		rows := benchRows(from, 50_000, 500, 0)
		if err := store.Insert(b.Context(), &rows); err != nil {
			b.Fatal(err)
		}
	}
	for _, table := range []string{"events", "event_contents"} {
		server.Query(b, "OPTIMIZE TABLE "+database+"."+table+" FINAL")
	}
	read := map[string]func(i int) error{
		"event": func(i int) error {
			id, _ := benchID(i)
			e, err := store.Event(b.Context(), event.Ref{ID: id}, 64<<10)
			if err == nil && e == nil {
				err = errors.New("there is no such event")
			}
			return err
		},
		"page": func(i int) error {
			_, conversation := benchID(i)
			page, err := store.List(b.Context(), query.List{Filter: query.OfConversation(conversation), LimitEvents: 100})
			if err == nil && len(page.Events) != 20 {
				err = fmt.Errorf("%d events", len(page.Events))
			}
			return err
		},
	}
	for _, name := range []string{"event", "page"} {
		for _, readers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, readers), func(b *testing.B) {
				var (
					all  sync.WaitGroup
					next atomic.Int64
				)
				took := make([]time.Duration, b.N)
				for range readers {
					all.Go(func() {
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							begun := time.Now()
							if err := read[name](rand.IntN(total)); err != nil {
								b.Error(err)
								return
							}
							took[n-1] = time.Since(begun)
						}
					})
				}
				all.Wait()
				slices.Sort(took)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
				b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "ms-median")
			})
		}
	}
}
