package clickhouse_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// checkExport compares an export with the events that match the filter. It breaks the
// export off now and then, and goes on after the last event.
func (w *world) checkExport(t *testing.T, store *clickhouse.Store, f query.Filter, matching []*event.Event) {
	t.Helper()
	ids := make(map[string]event.ID, len(w.refs))
	for id, ref := range w.refs {
		ids[ref.String()] = id
	}
	want := make([]event.Event, len(matching))
	for i, e := range matching {
		want[i] = *e
	}
	slices.SortFunc(want, func(a, b event.Event) int {
		x, y := ids[a.ID], ids[b.ID]
		return cmp.Or(cmp.Compare(a.Micros, b.Micros), bytes.Compare(x[8:], y[8:]), bytes.Compare(x[:8], y[:8]))
	})
	for _, piece := range []int{len(want)/3 + 1, len(want) + 1} {
		q := query.Export{Filter: f, WithEmbeddings: true}
		var got []event.Event
		for more := true; more; {
			more = false
			taken := 0
			for exported, err := range store.Export(t.Context(), q) {
				if err != nil {
					t.Fatal(err)
				}
				if exported.LargeBytes > 0 {
					t.Fatalf("%q is large", exported.Event.ID)
				}
				got = append(got, exported.Event)
				if taken++; taken == piece {
					more = true
					break
				}
			}
			if more {
				ref, err := event.ParseRef(got[len(got)-1].ID, time.UnixMicro(got[len(got)-1].Micros))
				if err != nil {
					t.Fatal(err)
				}
				id, ok, err := store.Place(t.Context(), ref)
				if err != nil || !ok {
					t.Fatalf("place of %q: %v, %v", ref, ok, err)
				}
				q.After = &id
			}
		}
		if diff := gocmp.Diff(want, got, equateContents); diff != "" {
			t.Fatalf("export in pieces of %d (-want +got):\n%s", piece, diff)
		}
	}
}

// TestExportSlowly: a reader that takes longer than the queries may run gets the rest from
// new ones. Large events come without their fields.
func TestExportSlowly(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	const events = 2000
	first := clickhousetest.At(t, "2026-03-01T00:00:00Z")
	var rows event.Rows
	for i := range events {
		position, version := clickhousetest.Created(int64(i))
		id := event.NewID(first+int64(i/3), "c")  // three at a time
		data := bytes.Repeat([]byte("x"), 10<<10) // more than fits into the buffers of a connection
		switch i {
		case 100:
			data = bytes.Repeat([]byte("y"), 100<<10)
		case 101:
			data = bytes.Repeat([]byte("z"), 32<<10)
		}
		core := event.Core{ID: id, ConversationID: "c", EventName: "event_a", Created: position, Version: version}
		if i == 102 {
			core.Metadata = `{"k":"` + strings.Repeat("m", 40<<10) + `"}`
		}
		rows.Cores = append(rows.Cores, core)
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldOutput, Version: version, Content: event.Content{Kind: event.KindString, Data: data}})
	}
	clickhousetest.Insert(t, store, rows)
	cfg := clickhousetest.Config(server, database)
	cfg.ExportTimeout = 500 * time.Millisecond
	slow := clickhousetest.Open(t, cfg)
	var (
		got   []string
		large []event.ID
	)
	for exported, err := range slow.Export(t.Context(), query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax}}) {
		if err != nil {
			t.Fatal(err)
		}
		i := len(got)
		if large := i >= 100 && i <= 102; exported.LargeBytes > 0 != large || !large && len(exported.Event.Output.Data) < 10<<10 {
			t.Fatalf("event %d is large: %d, and has %d bytes", i, exported.LargeBytes, len(exported.Event.Output.Data))
		}
		if exported.LargeBytes > 0 {
			large = append(large, exported.Key)
		}
		if got = append(got, exported.Event.ID); i%400 == 399 {
			<-time.After(2 * cfg.ExportTimeout) // a slow reader
		}
	}
	var want []string
	for _, core := range rows.Cores {
		want = append(want, core.ID.String())
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var tooLarge *event.LargeError
	whole := query.Filter{UntilMicros: query.MicrosMax}
	if _, err := store.ExportedEvents(t.Context(), whole, large, true, 64<<10); !errors.As(err, &tooLarge) || tooLarge.Bytes < 170<<10 {
		t.Errorf("large events in 64 KiB: %v", err)
	}
	gone := event.NewID(first, "none")
	if read, err := store.ExportedEvents(t.Context(), whole, append(large, gone), true, tooLarge.Bytes); err != nil || len(read) != len(large) ||
		read[0].Output.Data[0] != 'y' || read[1].Output.Data[0] != 'z' || len(read[2].Metadata) < 40<<10 {
		t.Errorf("%d large events, error %v", len(read), err)
	}
	// Nothing is read in vain for ever.
	cfg.ExportTimeout = time.Nanosecond
	for _, err := range clickhousetest.Open(t, cfg).Export(t.Context(), query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax}}) {
		if !errors.Is(err, event.ErrQueryTimeout) {
			t.Errorf("got %v, want %v", err, event.ErrQueryTimeout)
		}
	}
	// The caller can leave at any time, and many times.
	for range 3 * query.ExportsMax {
		for _, err := range store.Export(t.Context(), query.Export{Filter: query.OfConversation("c")}) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
}

// TestExportWhileFilterChanges: an event that an update takes out of the filter while it is exported
// is exported whole, or not at all.
func TestExportWhileFilterChanges(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	const events = 20_000
	first := clickhousetest.At(t, "2026-03-01T00:00:00Z")
	var rows event.Rows
	for i := range events {
		position, version := clickhousetest.Created(int64(i))
		id := event.NewID(first+int64(i), fmt.Sprint("c", i%50))
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: fmt.Sprint("c", i%50), EventName: "event_a", Error: "e", Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Version: version, Content: event.Content{Kind: event.KindString, Data: []byte("text")}})
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Version: version, Vector: event.VectorOf(1, 2)})
	}
	clickhousetest.Insert(t, store, rows)
	ctx, cancel := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	defer writer.Wait()
	defer cancel()
	writer.Go(func() {
		for offset := int64(events); ctx.Err() == nil; {
			changed := event.Rows{Cores: slices.Clone(rows.Cores)}
			for i := range changed.Cores {
				offset++
				changed.Cores[i].Version = clickhousetest.Updated(offset)
				if offset/events%2 == 0 {
					changed.Cores[i].Error = ""
				}
			}
			if err := store.Insert(ctx, &changed); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	for range 10 {
		for exported, err := range store.Export(ctx, query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax, Errors: query.WithError}, WithEmbeddings: true}) {
			if err != nil {
				t.Fatal(err)
			}
			if e := &exported.Event; e.Error == "" || string(e.Input.Data) != "text" || e.InputEmbeddings == nil {
				t.Fatalf("event %s has the error %q, the input %q and %d dimensions", e.ID, e.Error, e.Input.Data, e.InputEmbeddings.Dimensions())
			}
		}
	}
}

// BenchmarkExport exports a month of events with a content each, and a vector for some:
// SLUICE_BENCH_EVENTS and SLUICE_BENCH_VECTORS as for BenchmarkSearch.
func BenchmarkExport(b *testing.B) {
	events, vectors := benchSize(b, "SLUICE_BENCH_EVENTS", 1_000_000), benchSize(b, "SLUICE_BENCH_VECTORS", 200_000)
	store, server, database := clickhousetest.Migrated(b)
	fillSearch(b, server, database, events, vectors)
	for _, q := range []struct {
		name string
		query.Export
	}{
		{"everything", query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax}}},
		{"with embeddings", query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax}, WithEmbeddings: true}},
		{"errors", query.Export{Filter: query.Filter{UntilMicros: query.MicrosMax, Errors: query.WithError}}},
	} {
		b.Run(q.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = 0
				for _, err := range store.Export(b.Context(), q.Export) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
	// What an export would be by pages of a list, of which fifty are read.
	b.Run("pages", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = 0
			q := query.List{Filter: query.Filter{UntilMicros: query.MicrosMax}, LimitEvents: 1000}
			for range 50 {
				page, err := store.List(b.Context(), q)
				if err != nil {
					b.Fatal(err)
				}
				n, q.After = n+len(page.Events), page.Next
			}
		}
		b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
	})
}
