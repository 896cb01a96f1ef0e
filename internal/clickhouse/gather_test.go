package clickhouse_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
)

// smallEvents are events with contents and a vector, of which some have an
// alias and some are deleted.
func smallEvents(t *testing.T, n int) (rows event.Rows, refs []event.Ref, want []*event.Event) {
	t.Helper()
	for i := range n {
		conversation := fmt.Sprint("c", i/3)
		id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z")+int64(i)*3_600_000_000*29, conversation)
		position, version := clickhousetest.Created(int64(i))
		ref := event.Ref{ID: id}
		core := event.Core{ID: id, ConversationID: conversation, EventName: "event_b", Created: position, Version: version}
		if i%4 == 1 {
			ref = event.Ref{Alias: fmt.Sprint("order 'of' \\ ", i)}
			core.Alias = ref.Alias
			rows.Aliases = append(rows.Aliases, event.AliasRow{Alias: ref.Alias, ID: id, Version: version})
		}
		e := &event.Event{
			ID: ref.String(), ConversationID: conversation, EventName: "event_b", Micros: id.Micros(),
			Input:            event.Content{Kind: event.KindString, Data: fmt.Append(nil, "input ", i)},
			OutputEmbeddings: event.VectorOf(float32(i), 2),
		}
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: e.Input, Version: version})
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldOutputEmbeddings, Vector: e.OutputEmbeddings, Version: version})
		if i%4 == 2 {
			core.Deleted, core.Version, e = true, clickhousetest.Deleted(int64(1000+i)), nil
		}
		rows.Cores = append(rows.Cores, core)
		refs, want = append(refs, ref), append(want, e)
	}
	return rows, refs, want
}

// A batch finds each event by what it was asked by, and nothing else: not one
// that is deleted, unknown, or asked for by the id behind its alias.
func TestBatchOfReads(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	rows, refs, want := smallEvents(t, 40)
	clickhousetest.Insert(t, store, rows)
	refs = append(refs, refs[0], event.Ref{ID: rows.Cores[1].ID}, event.Ref{Alias: "unknown"}, event.Ref{ID: event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), "c")})
	want = append(want, want[0], nil, nil, nil)
	for _, n := range []int{1, 2, len(refs)} {
		for from := 0; from+n <= len(refs); from += n {
			got, alone, err := store.ReadTogether(t.Context(), refs[from:from+n], 64<<10)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if alone[i] {
					t.Errorf("event %d is to be read alone", from+i)
				}
				if diff := gocmp.Diff(want[from+i], got[i], equateContents); diff != "" {
					t.Errorf("event %d (-want +got):\n%s", from+i, diff)
				}
			}
		}
	}
}

// An event that is too large for its reader does not harm those that are read
// with it, and its reader is told what it takes.
func TestLargeEventInABatch(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	rows, refs, want := smallEvents(t, 12)
	large := event.Content{Kind: event.KindString, Data: []byte(strings.Repeat("x", 20<<10))}
	rows.Contents[0].Content, want[0].Input = large, large
	clickhousetest.Insert(t, store, rows)

	_, alone, err := store.ReadTogether(t.Context(), refs, 16<<10) // all together fit
	if err != nil || !alone[0] || alone[3] {
		t.Errorf("alone %v, error %v", alone, err)
	}
	_, alone, err = store.ReadTogether(t.Context(), refs, 2<<10) // they do not
	if err != nil || !alone[0] || !alone[3] {
		t.Errorf("alone %v, error %v", alone, err)
	}
	var readers sync.WaitGroup
	for i, ref := range refs {
		readers.Go(func() {
			got, err := store.Event(t.Context(), ref, 16<<10)
			if i == 0 {
				var tooLarge *event.LargeError
				if !errors.As(err, &tooLarge) || tooLarge.Bytes < 20<<10 {
					t.Errorf("the large event: error %v", err)
					return
				}
				got, err = store.Event(t.Context(), ref, tooLarge.Bytes)
			}
			if err != nil {
				t.Error(err)
			}
			if diff := gocmp.Diff(want[i], got, equateContents); diff != "" {
				t.Errorf("event %d (-want +got):\n%s", i, diff)
			}
		})
	}
	readers.Wait()
}

// Few keys stand in the text of a query and many in a table beside it, which is
// the same to a lookup, also for ids of times that no event has.
func TestLookupsOfFewAndManyKeys(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	rows, _, _ := smallEvents(t, 150)
	clickhousetest.Insert(t, store, rows)
	var none []event.ID
	for _, time := range []string{"1970-01-01T00:00:00Z", "1999-12-31T23:59:59.999999Z", "2099-12-31T23:59:59.999999Z", "2110-01-01T00:00:00Z", "2299-01-01T00:00:00Z", "9999-01-01T00:00:00Z"} {
		none = append(none, event.NewID(clickhousetest.At(t, time), "c"))
	}
	for _, n := range []int{1, 2, 100, 127, 128, 129, 150} {
		for _, more := range [][]event.ID{nil, none[1:3], none} {
			ids := slices.Clone(more)
			for _, core := range rows.Cores[:n] {
				ids = append(ids, core.ID)
			}
			got, err := store.Cores(t.Context(), ids)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != n {
				t.Errorf("%d events of %d, with %d others asked for", len(got), n, len(more))
			}
			for _, core := range rows.Cores[:n] {
				if diff := gocmp.Diff(core, got[core.ID]); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		}
	}
}
