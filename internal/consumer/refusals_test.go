package consumer

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

// alias names the event behind it; a create brings the n-th internal id.
func alias(name string, n uint64) option {
	return func(w *event.Write) {
		w.Alias = name
		w.ID = event.ID{}
		if w.Op == event.OpCreate {
			w.ID = testID(n).AsInternal()
		}
	}
}

// refusing has the database refuse core rows with the error "bad".
func refusing(w *world, _ *Config) {
	w.refuse = func(core event.Core) bool { return core.Error == "bad" }
}

// A refused create does not take its alias: the next create of it has it, however
// the two are cut into batches, and a replay leaves it that way once the database
// takes the first one too.
func TestRefusedCreateLeavesTheAliasFree(t *testing.T) {
	writes := []event.Write{
		create(alias("a", 1), failure("bad"), output("of the refused one")),
		update(alias("a", 0), latency(1)),
		create(alias("a", 2), failure("good"), input("in")),
		update(alias("a", 0), latency(2)),
		create(alias("a", 3), failure("late")),
	}
	for _, batches := range [][][]event.Write{
		{writes}, {writes[:1], writes[1:]}, {writes[:2], writes[2:3], writes[3:]}, {writes[:3], writes[3:]},
	} {
		runWith(t, refusing, func(w *world) {
			for _, batch := range batches {
				w.apply(batch...)
			}
			check := func(when string) {
				t.Helper()
				w.mu.Lock()
				defer w.mu.Unlock()
				if row := w.aliases["a"]; row.ID != testID(2).AsInternal() || row.Refused {
					t.Errorf("%s: the alias is %+v", when, row)
				}
				if core := w.cores[testID(2).AsInternal()]; core.Error != "good" || core.Latency != 2 {
					t.Errorf("%s: the core row is %+v", when, core)
				}
				for _, n := range []uint64{1, 3} {
					if core, ok := w.cores[testID(n).AsInternal()]; ok {
						t.Errorf("%s: there is the core row %+v", when, core)
					}
				}
			}
			check("at first")
			want := []string{"0/0 rejected_by_store", "0/1 unknown_event"}
			if diff := cmp.Diff(want, w.refusals()); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			<-w.revoke(t.Context(), false, 0)
			w.mu.Lock()
			w.refuse = nil
			w.mu.Unlock()
			w.next[0] = 0
			w.feedChunk(0, 2, writes...)
			w.advance(1e9)
			check("after a replay")
			if diff := cmp.Diff(append(want, want...), w.refusals()); diff != "" {
				t.Errorf("refused, with the replay (-want +got):\n%s", diff)
			}
		})
	}
}

// What a later step of the same flush does with an alias counts, and not the mark
// of the create that an earlier step found to be refused: here a delete, and then
// a create, each of which is applied alone, because their neighbours are refused.
func TestRefusedCreateThenDeleteInSteps(t *testing.T) {
	runWith(t, refusing, func(w *world) {
		other := func(n uint64) event.Write { return create(id(n), failure("bad")) }
		w.apply(
			other(11), create(alias("a", 1), failure("bad")), create(id(12)), create(id(13)),
			remove(alias("a", 0)), other(14), create(alias("a", 2), failure("good")), other(15),
		)
		w.apply(create(alias("a", 3), failure("good")))
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range []uint64{2, 3} {
			if core, ok := w.cores[testID(n).AsInternal()]; ok {
				t.Errorf("the deleted alias has the event %+v", core)
			}
		}
		if row := w.aliases["a"]; !row.Deleted {
			t.Errorf("the alias is %+v", row)
		}
	})
}

// Contents of a refused create outrank those of every later create of the id, so
// the one that comes after it writes all of them as an update does, and only where
// there is no event yet.
func TestRefusedCreateLeavesNoContents(t *testing.T) {
	for _, refusedMax := range []int{1 << 30, 0} { // held in memory, and looked up
		runWith(t, func(w *world, cfg *Config) {
			refusing(w, cfg)
			w.refusedMax = refusedMax
		}, func(w *world) {
			w.apply(create(failure("bad"), input("in 1"), output("out 1")))
			<-w.revoke(t.Context(), false, 0) // the next owner knows of it
			w.feedChunk(0, 2, create(output("out 2")))
			w.advance(1e9)
			if core := w.core(1); core.Version != created(1) || core.Created != position(1) {
				t.Errorf("core row: %+v", core)
			}
			want := []event.ContentRow{
				{ID: testID(1), Field: event.FieldInput, Version: updated(1)},
				{ID: testID(1), Field: event.FieldOutput, Content: text("out 2"), Version: updated(1)},
			}
			if diff := cmp.Diff(want, w.rows().Contents); diff != "" {
				t.Errorf("contents (-want +got):\n%s", diff)
			}
			if n := len(w.rows().Embeddings); n != 2 {
				t.Errorf("%d rows of embeddings, want 2 that clear", n)
			}
			inserts := len(w.inserts)
			w.feedChunk(0, 2, create(output("out 3")))
			w.advance(1e9)
			if len(w.inserts) != inserts {
				t.Errorf("a create that lost was written: %+v", w.rows())
			}
			if diff := cmp.Diff([]string{"0/0 rejected_by_store"}, w.refusals()); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// A delete of an alias whose create was refused is final, and takes what that
// create may have left.
func TestDeleteAfterRefusedCreate(t *testing.T) {
	runWith(t, refusing, func(w *world) {
		w.apply(create(alias("a", 1), failure("bad"), output("out")))
		w.apply(remove(alias("a", 0)))
		w.apply(create(alias("a", 2)))
		if row := w.aliases["a"]; !row.Deleted {
			t.Errorf("the alias is %+v", row)
		}
		if core := w.cores[testID(1).AsInternal()]; !core.Deleted {
			t.Errorf("the refused create's row is %+v, want a tombstone", core)
		}
		if _, ok := w.cores[testID(2).AsInternal()]; ok {
			t.Error("the alias lives again")
		}
	})
}
