package clickhouse_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// largeRows are events of one conversation whose texts, contents or embeddings
// are long, each in its own way.
func largeRows(t *testing.T, conversation string, events int) (rows event.Rows, want []event.Event) {
	t.Helper()
	vector := make([]float32, 1000)
	for i := range vector {
		vector[i] = float32(i)
	}
	for i := range events {
		position, version := clickhousetest.Created(int64(i))
		core := event.Core{
			ID: event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), conversation), ConversationID: conversation,
			EventName: "event_a", Created: position, Version: version,
		}
		e := event.Event{ID: core.ID.String(), ConversationID: conversation, EventName: "event_a", Micros: core.ID.Micros()}
		text := strings.Repeat(fmt.Sprintf("%04d", i), 2000)
		switch i % 5 {
		case 0:
			e.Input = event.Content{Kind: event.KindString, Data: []byte(text)}
			rows.Contents = append(rows.Contents, event.ContentRow{ID: core.ID, Field: event.FieldInput, Content: e.Input, Version: version})
		case 1:
			e.Output = event.Content{Kind: event.KindString, Data: []byte(text)}
			rows.Contents = append(rows.Contents, event.ContentRow{ID: core.ID, Field: event.FieldOutput, Content: e.Output, Version: version})
		case 2:
			e.InputEmbeddings, e.OutputEmbeddings = event.VectorOf(vector...), event.VectorOf(vector...)
			rows.Embeddings = append(rows.Embeddings,
				event.EmbeddingRow{ID: core.ID, Field: event.FieldInputEmbeddings, Vector: e.InputEmbeddings, Version: version},
				event.EmbeddingRow{ID: core.ID, Field: event.FieldOutputEmbeddings, Vector: e.OutputEmbeddings, Version: version})
		case 3:
			core.Error, e.Error = text, text
		case 4:
			core.Metadata = `{"k":"` + text + `"}`
			e.Metadata = core.Metadata
		}
		rows.Cores = append(rows.Cores, core)
		want = append(want, e)
	}
	return rows, want
}

// Pages end before the event that does not fit, whatever makes it large, and
// together they have every event.
func TestPagesAreBoundedInBytes(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	rows, want := largeRows(t, "c", 60)
	clickhousetest.Insert(t, store, rows)
	for _, bytesMax := range []int{10_000, 50_000, 1 << 20} {
		t.Run(fmt.Sprint(bytesMax), func(t *testing.T) {
			var got []event.Event
			var after *event.ID
			pages := 0
			for {
				page, err := store.List(t.Context(), query.List{Filter: query.OfConversation("c"), After: after, LimitEvents: 1000, WithEmbeddings: true, BytesMax: bytesMax})
				if err != nil {
					t.Fatal(err)
				}
				if page.Bytes > bytesMax {
					t.Errorf("a page of %d bytes", page.Bytes)
				}
				texts := 0
				for _, e := range page.Events {
					texts += len(e.Input.Data) + len(e.Output.Data) + len(e.Error) + len(e.Metadata) + len(e.InputEmbeddings) + len(e.OutputEmbeddings)
				}
				if texts > page.Bytes {
					t.Errorf("a page of %d bytes has %d", page.Bytes, texts)
				}
				got = append(got, page.Events...)
				pages++
				if after = page.Next; after == nil {
					break
				}
			}
			if diff := gocmp.Diff(want, got, equateContents); diff != "" {
				t.Error("events (-want +got):\n" + diff)
			}
			if least := 60 * 8000 / bytesMax; pages < least || pages > 60 {
				t.Errorf("%d pages", pages)
			}
		})
	}
}

// The first event of a page that does not fit says what it takes, and is read
// by whoever allows that.
func TestLargeEvents(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	rows, want := largeRows(t, "c", 5)
	clickhousetest.Insert(t, store, rows)
	for i := range want {
		ref, after := event.Ref{ID: rows.Cores[i].ID}, (*event.ID)(nil)
		if i > 0 {
			after = &rows.Cores[i-1].ID
		}
		q := query.List{Filter: query.OfConversation("c"), After: after, LimitEvents: 1, WithEmbeddings: true, BytesMax: 4000}
		_, pageErr := store.List(t.Context(), q)
		_, eventErr := store.Event(t.Context(), ref, 4000)
		for _, err := range []error{pageErr, eventErr} {
			var large *event.LargeError
			if !errors.As(err, &large) || large.Bytes < 8000 || large.Bytes > 12_000 {
				t.Fatalf("event %d: error %v", i, err)
			}
			q.BytesMax = large.Bytes
		}
		page, err := store.List(t.Context(), q)
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		e, err := store.Event(t.Context(), ref, q.BytesMax)
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if diff := gocmp.Diff([]event.Event{want[i], want[i]}, append(page.Events, *e), equateContents); diff != "" {
			t.Errorf("event %d (-want +got):\n%s", i, diff)
		}
		if (page.Next == nil) != (i == len(want)-1) {
			t.Errorf("event %d: next page %v", i, page.Next)
		}
	}
}

// What is read of a server is bounded, however much it has: many events, and
// many versions of one that no merge has met yet.
func TestReadsTakeBoundedBytesOffTheWire(t *testing.T) {
	direct, server, database := clickhousetest.Migrated(t)
	server.Query(t, "SYSTEM STOP MERGES "+database+".event_contents")
	server.Query(t, "SYSTEM STOP MERGES "+database+".events")
	const versions, bytesMax = 40, 256 << 10
	var rows event.Rows
	for i := range 50 {
		position, version := clickhousetest.Created(int64(i))
		id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i), "many")
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "many", Created: position, Version: version})
		rows.Contents = append(rows.Contents, event.ContentRow{
			ID: id, Field: event.FieldInput, Version: version,
			Content: event.Content{Kind: event.KindString, Data: slices.Repeat([]byte{'x'}, 200<<10)},
		})
	}
	clickhousetest.Insert(t, direct, rows)
	position, version := clickhousetest.Created(1000)
	updatedID := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "updated")
	for i := range versions {
		if i > 0 {
			version = clickhousetest.Updated(int64(1000 + i))
		}
		content := event.Content{Kind: event.KindString, Data: slices.Repeat([]byte{byte('a' + i%26)}, 200<<10)}
		clickhousetest.Insert(t, direct, event.Rows{
			Cores:    []event.Core{{ID: updatedID, ConversationID: "updated", Error: strings.Repeat("e", 10<<10), Created: position, Version: version}},
			Contents: []event.ContentRow{{ID: updatedID, Field: event.FieldOutput, Content: content, Version: version}},
		})
	}

	p := clickhousetest.NewProxy(t, server.Addr)
	cfg := clickhousetest.Config(server, database)
	cfg.Addr = p.Addr().String()
	store := clickhousetest.Open(t, cfg)
	for _, tt := range []struct {
		name string
		read func() (query.Page, error)
		want byte
	}{
		{"many events", func() (query.Page, error) {
			return store.List(t.Context(), query.List{Filter: query.OfConversation("many"), LimitEvents: 1000, BytesMax: bytesMax})
		}, 'x'},
		{"many versions, page", func() (query.Page, error) {
			return store.List(t.Context(), query.List{Filter: query.OfConversation("updated"), LimitEvents: 1000, BytesMax: bytesMax})
		}, 'a' + (versions-1)%26},
		{"many versions, event", func() (query.Page, error) {
			e, err := store.Event(t.Context(), event.Ref{ID: updatedID}, bytesMax)
			if err != nil || e == nil {
				return query.Page{}, err
			}
			return query.Page{Events: []event.Event{*e}}, nil
		}, 'a' + (versions-1)%26},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.Answers.Load()
			page, err := tt.read()
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Events) != 1 {
				t.Fatalf("%d events", len(page.Events))
			}
			if content := slices.Concat(page.Events[0].Input.Data, page.Events[0].Output.Data); len(content) != 200<<10 || content[0] != tt.want {
				t.Errorf("%d bytes of %.1q", len(content), content)
			}
			// At most as much for a first try that did not fit, and for the second.
			if took := before - p.Answers.Load(); took > 3*bytesMax {
				t.Errorf("%d bytes came from the server", took)
			}
		})
	}
}
