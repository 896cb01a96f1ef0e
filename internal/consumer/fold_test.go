package consumer

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
)

// at is a write at its offset.
type at struct {
	offset int64
	write  event.Write
}

// row is the core row of event 1, as created at the offset by create().
func row(offset int64, version event.Version, changes ...func(*event.Core)) event.Core {
	core := event.Core{
		ID: testID(1), ConversationID: conversation, EventName: "event_a", Created: position(offset), Version: version,
	}
	for _, change := range changes {
		change(&core)
	}
	return core
}

func contentRow(f event.Field, s string, version event.Version) event.ContentRow {
	return event.ContentRow{ID: testID(1), Field: f, Content: text(s), Version: version}
}

func vectorRow(f event.Field, v event.Vector, version event.Version) event.EmbeddingRow {
	return event.EmbeddingRow{ID: testID(1), Field: f, Vector: v, Version: version}
}

// tombstones are what a delete of event 1 leaves.
func tombstones(version event.Version) event.Rows {
	rows := event.Rows{Cores: []event.Core{{ID: testID(1), Version: version, Deleted: true}}}
	for _, f := range []event.Field{event.FieldInput, event.FieldOutput} {
		rows.Contents = append(rows.Contents, event.ContentRow{ID: testID(1), Field: f, Version: version, Deleted: true})
	}
	for _, f := range []event.Field{event.FieldInputEmbeddings, event.FieldOutputEmbeddings} {
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: testID(1), Field: f, Version: version, Deleted: true})
	}
	return rows
}

// sorted lets the contents and embeddings of one event come in any order.
var sorted = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.SortSlices(func(a, b event.ContentRow) bool { return a.Field < b.Field }),
	cmpopts.SortSlices(func(a, b event.EmbeddingRow) bool { return a.Field < b.Field }),
}

func TestFold(t *testing.T) {
	withError := func(s string) func(*event.Core) { return func(c *event.Core) { c.Error = s } }
	withLatency := func(ms float64) func(*event.Core) {
		return func(c *event.Core) { c.Latency, c.HasLatency = ms, true }
	}
	withMetadata := func(s string) func(*event.Core) { return func(c *event.Core) { c.Metadata = s } }
	largest := `{"l":"` + strings.Repeat("x", event.MetadataBytesMax-8) + `"}`
	ptr := func(c event.Core) *event.Core { return &c }
	tests := []struct {
		name string
		// base is what the table has of the event, where it was looked up.
		looked   bool
		base     *event.Core
		writes   []at
		want     event.Rows
		refused  map[int64]event.Code
		noEffect int
	}{
		{
			name: "a create leaves a row for each thing it brings",
			writes: []at{{3, create(
				metadata(`{"plan":"pro"}`), failure("timeout"), latency(12.5),
				input("in"), output("out"), inputVector(1, 2), outputVector(3),
			)}},
			want: event.Rows{
				Cores: []event.Core{row(3, created(3), withError("timeout"), withLatency(12.5), func(c *event.Core) {
					c.Metadata = `{"plan":"pro"}`
				})},
				Contents: []event.ContentRow{
					contentRow(event.FieldInput, "in", created(3)), contentRow(event.FieldOutput, "out", created(3)),
				},
				Embeddings: []event.EmbeddingRow{
					vectorRow(event.FieldInputEmbeddings, event.VectorOf(1, 2), created(3)),
					vectorRow(event.FieldOutputEmbeddings, event.VectorOf(3), created(3)),
				},
			},
		},
		{
			name:   "merge patches follow one another, and what is not theirs stays",
			looked: true, base: ptr(row(3, updated(5), withMetadata(`{"a":1,"b":{"c":2}}`), withError("e"))),
			writes: []at{{6, update(patch(`{"b":{"d":3}}`))}, {7, update(patch(`{"a":null,"b":{"c":null}}`), latency(1))}},
			want: event.Rows{
				Cores: []event.Core{row(3, updated(7), withMetadata(`{"b":{"d":3}}`), withError("e"), withLatency(1))},
			},
		},
		{
			name:   "a merge patch of what was created in the batch, set and cleared",
			writes: []at{{3, create(fresh)}, {4, update(patch(`{"a":1}`))}, {5, update(metadata(`{"b":1}`))}, {6, update(patch(`{"c":1}`))}},
			want:   event.Rows{Cores: []event.Core{row(3, updated(6), withMetadata(`{"b":1,"c":1}`))}},
		},
		{
			name:   "a replay of merge patches changes nothing that has them already",
			looked: true, base: ptr(row(3, updated(7), withMetadata(`{"n":2}`))),
			writes: []at{{6, update(patch(`{"n":1,"old":1}`))}, {7, update(patch(`{"n":2,"old":null}`))}},
		},
		{
			name:   "a replay of a merge patch before a later one",
			looked: true, base: ptr(row(3, updated(7), withMetadata(`{"n":2}`))),
			writes: []at{{6, update(patch(`{"n":1}`), output("o"))}, {8, update(patch(`{"m":3}`))}},
			want: event.Rows{
				Cores:    []event.Core{row(3, updated(8), withMetadata(`{"n":2,"m":3}`))},
				Contents: []event.ContentRow{contentRow(event.FieldOutput, "o", updated(6))},
			},
		},
		{
			name:   "metadata that a merge patch makes too large stays, and the rest is applied",
			looked: true, base: ptr(row(3, updated(5), withMetadata(`{"a":1}`))),
			writes: []at{{6, update(patch(largest), failure("e"), output("o"))}, {7, update(patch(`{"b":2}`))}},
			want: event.Rows{
				Cores:    []event.Core{row(3, updated(7), withMetadata(`{"a":1,"b":2}`), withError("e"))},
				Contents: []event.ContentRow{contentRow(event.FieldOutput, "o", updated(6))},
			},
			refused: map[int64]event.Code{6: event.CodeTooLarge},
		},
		{
			name:   "the same with nothing else in it",
			looked: true, base: ptr(row(3, updated(5), withMetadata(`{"a":1}`))),
			writes:  []at{{6, update(patch(largest))}},
			refused: map[int64]event.Code{6: event.CodeTooLarge},
		},
		{
			name:   "the same in a replay that meets a later row",
			looked: true, base: ptr(row(3, updated(7), withMetadata(`{"a":1,"b":2}`), withError("e"))),
			writes: []at{{6, update(patch(largest), failure("e"), output("o"))}},
			want:   event.Rows{Contents: []event.ContentRow{contentRow(event.FieldOutput, "o", updated(6))}},
		},
		{
			name:    "a merge patch of no event",
			looked:  true,
			writes:  []at{{6, update(patch(`{"a":1}`))}},
			refused: map[int64]event.Code{6: event.CodeUnknownEvent},
		},
		{
			name:   "a bare create leaves a core row only",
			writes: []at{{3, create()}},
			want:   event.Rows{Cores: []event.Core{row(3, created(3))}},
		},
		{
			name:   "a latency of 0 is a latency",
			writes: []at{{3, create(latency(0))}},
			want:   event.Rows{Cores: []event.Core{row(3, created(3), withLatency(0))}},
		},
		{
			name:   "the first create wins whole, and the second lends nothing",
			writes: []at{{3, create(input("first"))}, {4, create(named("event_b"), failure("late"), input("second"), output("second"), inputVector(1))}},
			want: event.Rows{
				Cores:    []event.Core{row(3, created(3))},
				Contents: []event.ContentRow{contentRow(event.FieldInput, "first", created(3))},
			},
			noEffect: 1,
		},
		{
			name:   "a create of an event that the table has leaves nothing",
			looked: true, base: ptr(row(3, created(3))),
			writes:   []at{{7, create(named("event_b"), output("second"))}},
			noEffect: 1,
		},
		{
			name:   "a create of a deleted event leaves nothing",
			looked: true, base: &event.Core{ID: testID(1), Version: deleted(3), Deleted: true},
			writes:   []at{{7, create(output("second"))}},
			noEffect: 1,
		},
		{
			name:   "a create after a look-up that found nothing",
			looked: true,
			writes: []at{{3, create()}},
			want:   event.Rows{Cores: []event.Core{row(3, created(3))}},
		},
		{
			name:   "updates merge into one core row, the last one per field winning",
			writes: []at{{3, create(failure("first"), latency(1))}, {5, update(failure("second"))}, {9, update(named("event_b"))}},
			want: event.Rows{Cores: []event.Core{
				row(3, updated(9), withError("second"), withLatency(1), func(c *event.Core) { c.EventName = "event_b" }),
			}},
		},
		{
			name:   "null clears core fields",
			looked: true, base: ptr(row(3, updated(4), withError("e"), withLatency(1), func(c *event.Core) { c.Metadata = `{}` })),
			writes: []at{{5, update(null(event.FieldError, event.FieldLatency, event.FieldMetadata))}},
			want:   event.Rows{Cores: []event.Core{row(3, updated(5))}},
		},
		{
			name:   "null clears contents and embeddings by rows of their own",
			looked: true, base: ptr(row(3, created(3))),
			writes: []at{{5, update(null(event.FieldInput, event.FieldOutputEmbeddings))}},
			want: event.Rows{
				Contents:   []event.ContentRow{{ID: testID(1), Field: event.FieldInput, Version: updated(5)}},
				Embeddings: []event.EmbeddingRow{{ID: testID(1), Field: event.FieldOutputEmbeddings, Version: updated(5)}},
			},
		},
		{
			name:   "a field that is cleared and set again has the last value",
			looked: true, base: ptr(row(3, created(3))),
			writes: []at{{5, update(null(event.FieldOutput, event.FieldLatency))}, {6, update(output("new"), latency(7))}},
			want: event.Rows{
				Cores:    []event.Core{row(3, updated(6), withLatency(7))},
				Contents: []event.ContentRow{contentRow(event.FieldOutput, "new", updated(6))},
			},
		},
		{
			name:   "an update of contents only writes no core row",
			looked: true, base: ptr(row(3, created(3))),
			writes: []at{{5, update(output("new"), inputVector(1))}},
			want: event.Rows{
				Contents:   []event.ContentRow{contentRow(event.FieldOutput, "new", updated(5))},
				Embeddings: []event.EmbeddingRow{vectorRow(event.FieldInputEmbeddings, event.VectorOf(1), updated(5))},
			},
		},
		{
			name:   "an update of contents in the batch of its create leaves the core row's version alone",
			writes: []at{{3, create(input("in"), output("old"))}, {5, update(output("new"))}},
			want: event.Rows{
				Cores: []event.Core{row(3, created(3))},
				Contents: []event.ContentRow{
					contentRow(event.FieldInput, "in", created(3)), contentRow(event.FieldOutput, "new", updated(5)),
				},
			},
		},
		{
			name:   "an update of nothing is refused",
			looked: true,
			writes: []at{{5, update(failure("e"), output("o"))}},
			refused: map[int64]event.Code{
				5: event.CodeUnknownEvent,
			},
		},
		{
			name:   "an update before the create of the same batch is refused, and lends nothing",
			looked: true,
			writes: []at{{5, update(failure("e"), output("o"))}, {6, create(input("in"))}, {7, update(latency(1))}},
			want: event.Rows{
				Cores:    []event.Core{row(6, updated(7), withLatency(1))},
				Contents: []event.ContentRow{contentRow(event.FieldInput, "in", created(6))},
			},
			refused: map[int64]event.Code{5: event.CodeUnknownEvent},
		},
		{
			name:   "an update before the create that the table has is refused, as it was the first time",
			looked: true, base: ptr(row(6, created(6))),
			writes:  []at{{5, update(failure("e"), output("o"))}},
			refused: map[int64]event.Code{5: event.CodeUnknownEvent},
		},
		{
			name:   "an update of a deleted event has no effect",
			looked: true, base: &event.Core{ID: testID(1), Version: deleted(9), Deleted: true},
			writes:   []at{{10, update(failure("e"), output("o"))}},
			noEffect: 1,
		},
		{
			name:     "an update after the delete of the same batch has no effect",
			writes:   []at{{3, create()}, {4, remove()}, {5, update(failure("e"), output("o"))}},
			want:     tombstones(deleted(4)),
			noEffect: 1,
		},
		{
			name:     "a delete that comes first kills the create after it",
			writes:   []at{{3, remove()}, {4, create(input("in"))}},
			want:     tombstones(deleted(3)),
			noEffect: 1,
		},
		{
			name: "create, updates and delete leave the five tombstones alone",
			writes: []at{
				{3, create(input("in"), outputVector(1))}, {4, update(failure("e"))}, {5, update(output("out"), inputVector(2))}, {6, remove()},
			},
			want: tombstones(deleted(6)),
		},
		{
			name:   "a delete of what the table has",
			looked: true, base: ptr(row(3, updated(4), withError("e"))),
			writes: []at{{6, remove()}},
			want:   tombstones(deleted(6)),
		},
		{
			name:   "a delete of what nobody looked up",
			writes: []at{{6, remove()}},
			want:   tombstones(deleted(6)),
		},
		{
			name:   "of repeated deletes the last one's version stays",
			writes: []at{{6, remove()}, {7, remove()}, {9, remove()}},
			want:   tombstones(deleted(9)),
		},
		{
			name:   "a replayed update that the core row has in it writes its contents again and no core row",
			looked: true, base: ptr(row(3, updated(5), withError("e"))),
			writes: []at{{5, update(failure("e"), output("out"))}},
			want:   event.Rows{Contents: []event.ContentRow{contentRow(event.FieldOutput, "out", updated(5))}},
		},
		{
			name:   "a replayed update under a newer core row changes nothing of it",
			looked: true, base: ptr(row(3, updated(8), withError("newer"))),
			writes: []at{{5, update(failure("older"))}, {9, update(latency(1))}},
			want:   event.Rows{Cores: []event.Core{row(3, updated(9), withError("newer"), withLatency(1))}},
		},
		{
			name:   "a replayed create under an updated core row changes nothing",
			looked: true, base: ptr(row(3, updated(8), withError("newer"))),
			writes:   []at{{3, create(input("in"))}},
			noEffect: 1,
		},
		{
			name:   "a whole history replayed on its own end leaves no core row",
			looked: true, base: ptr(row(3, updated(5), withError("e"), withLatency(2))),
			writes:   []at{{3, create(failure("x"))}, {4, update(failure("e"))}, {5, update(latency(2))}},
			noEffect: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFold()
			// What an earlier batch left must not shine through.
			foldOne(f, create(failure("stale"), input("stale"), inputVector(9)), 1)
			foldOne(f, update(failure("stale")), 2)
			foldOne(f, remove(), 2)
			f.reset()

			if tt.looked {
				f.setBase(f.stateOf(testID(1), 0), tt.base)
			}
			for _, w := range tt.writes {
				foldOne(f, w.write, w.offset)
			}
			if diff := cmp.Diff(tt.want, f.rows, sorted); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			refused := make(map[int64]event.Code)
			for _, l := range f.refused {
				refused[l.Record.Offset] = l.Reason
				if l.Detail == "" {
					t.Errorf("the dead letter of offset %d has no detail", l.Record.Offset)
				}
			}
			if diff := cmp.Diff(tt.refused, refused, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if f.noEffect != tt.noEffect {
				t.Errorf("without effect: %d, want %d", f.noEffect, tt.noEffect)
			}
			if len(f.states) > 1 {
				t.Errorf("%d states for one event", len(f.states))
			}
		})
	}
}

func foldOne(f *fold, w event.Write, offset int64) {
	rec := recordOf(w, 0, offset)
	f.apply(f.stateOf(w.ID, 0), &w, &rec, false)
}

// Events of one batch must not mix.
func TestFoldManyEvents(t *testing.T) {
	const events = 100
	f := newFold()
	offset := int64(0)
	for _, w := range []func(n uint64) event.Write{
		func(n uint64) event.Write {
			return create(id(n), failure(fmt.Sprint("created ", n)), input(fmt.Sprint("in ", n)))
		},
		func(n uint64) event.Write { return update(id(n), failure(fmt.Sprint("updated ", n))) },
	} {
		for n := range uint64(events) {
			foldOne(f, w(n), offset)
			offset++
		}
	}
	if len(f.rows.Cores) != events || len(f.rows.Contents) != events || f.rows.Len() != 2*events {
		t.Fatalf("%d cores, %d contents, %d rows in all", len(f.rows.Cores), len(f.rows.Contents), f.rows.Len())
	}
	for n, core := range f.rows.Cores {
		want := row(int64(n), updated(int64(events+n)))
		want.ID, want.Error = testID(uint64(n)), fmt.Sprint("updated ", n)
		if diff := cmp.Diff(want, core); diff != "" {
			t.Errorf("core %d (-want +got):\n%s", n, diff)
		}
		if got := f.rows.Contents[n]; got.ID != core.ID || string(got.Content.Data) != fmt.Sprint("in ", n) {
			t.Errorf("content %d is %+v", n, got)
		}
	}
}

// A base is a copy: folding must not change what the recent rows hold.
func TestFoldLeavesTheBaseAlone(t *testing.T) {
	f := newFold()
	base := row(3, created(3))
	f.setBase(f.stateOf(testID(1), 0), &base)
	foldOne(f, update(failure("e"), latency(2)), 5)
	if diff := cmp.Diff(row(3, created(3)), base); diff != "" {
		t.Errorf("base (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(row(3, created(3)), f.bases[0]); diff != "" {
		t.Errorf("the fold's copy (-want +got):\n%s", diff)
	}
}

// A reset fold must not keep a batch's payloads alive.
func TestFoldResetLetsPayloadsGo(t *testing.T) {
	f := newFold()
	base := row(3, created(3))
	f.setBase(f.stateOf(testID(1), 0), &base)
	foldOne(f, update(failure("e"), output("out"), inputVector(1)), 5)
	foldOne(f, update(id(2), output("out")), 6)
	f.reset()
	if got := f.rows.Cores[:1][0]; got.ConversationID != "" {
		t.Error("a core row is kept")
	}
	if got := f.rows.Contents[:1][0]; got.Content.Data != nil {
		t.Error("a content is kept")
	}
	if got := f.rows.Embeddings[:1][0]; got.Vector != nil {
		t.Error("a vector is kept")
	}
	if got := f.bases[:1][0]; got.ConversationID != "" {
		t.Error("a base is kept")
	}
	if got := f.refused[:1][0]; got.Record.Value != nil {
		t.Error("a refused record is kept")
	}
}
