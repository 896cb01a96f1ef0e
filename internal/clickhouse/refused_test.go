package clickhouse_test

import (
	"cmp"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
)

// The mark of a refused create is found by its alias, outranks that create's own
// row, hides it from readers, and gives way to a later create and to a delete.
func TestRefused(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	id := func(n uint64) event.ID { return event.MakeID(clickhousetest.At(t, "2026-03-01T12:00:00Z"), 1, n) }
	_, first := clickhousetest.Created(1)
	mark := func(alias string, n uint64, offset int64) event.AliasRow {
		return event.AliasRow{Alias: alias, ID: id(n), Version: clickhousetest.Updated(offset), Refused: true}
	}
	minted := mark(event.RefusalAlias(id(9)), 9, 4)
	for _, rows := range [][]event.AliasRow{
		{{Alias: "a", ID: id(1), Version: first}, {Alias: "b", ID: id(1), Version: first}, {Alias: "c", ID: id(1), Version: first}},
		{mark("a", 1, 1), mark("b", 1, 1), mark("c", 1, 1)},
		{{Alias: "b", ID: id(2), Version: clickhousetest.Updated(2)}, {Alias: "c", Version: clickhousetest.Deleted(3), Deleted: true}},
		{{Alias: "d", ID: id(3), Version: clickhousetest.Updated(5)}},
		{mark("d", 3, 5)},
		{minted, mark(event.RefusalAlias(id(8)), 8, 3)},
	} {
		clickhousetest.Insert(t, store, event.Rows{Aliases: rows})
	}
	got, err := store.Aliases(t.Context(), []string{"a", "b", "c", "d", minted.Alias})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]event.AliasRow{
		"a": mark("a", 1, 1), "b": {Alias: "b", ID: id(2), Version: clickhousetest.Updated(2)},
		"c": {Alias: "c", Version: clickhousetest.Deleted(3), Deleted: true}, "d": mark("d", 3, 5), minted.Alias: minted,
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("aliases (-want +got):\n%s", diff)
	}
	if e, err := store.Event(t.Context(), event.Ref{Alias: "a"}, 1<<20); err != nil || e != nil {
		t.Errorf("event of a refused create: %v, %v", e, err)
	}
	refused, more, err := store.Refused(t.Context(), 10)
	slices.SortFunc(refused, func(a, b event.AliasRow) int { return cmp.Compare(a.Alias, b.Alias) })
	if err != nil || more || len(refused) != 2 || refused[1] != minted {
		t.Errorf("refused: %+v, more %t, error %v; want two of minted ids", refused, more, err)
	}
	if refused, more, err = store.Refused(t.Context(), 1); err != nil || !more || len(refused) != 1 {
		t.Errorf("one refused: %+v, more %t, error %v", refused, more, err)
	}
}
