package clickhouse_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

func TestOccupancy(t *testing.T) {
	store, _, _ := migrated(t)
	since := at(t, "2026-03-01T12:00:30Z")
	got, err := store.Occupancy(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	if want := (event.Occupancy{Empty: true, SinceMicros: since}); !cmp.Equal(want, got) {
		t.Errorf("an empty table: got %+v, want %+v", got, want)
	}

	var rows event.Rows
	times := []string{
		"2026-01-05T00:00:00.000001Z", "2026-03-01T12:00:29Z", "2026-03-01T12:00:31Z",
		"2026-03-01T12:07:00Z", "2026-03-01T12:07:59.999999Z", "2026-04-02T00:00:00Z",
	}
	for i, text := range times {
		position, version := created(int64(i))
		core := event.Core{ID: event.NewID(at(t, text), "c"), ConversationID: "c", Created: position, Version: version}
		if i == 3 { // a tombstone occupies its minute too
			core = event.Core{ID: core.ID, Version: deleted(9), Deleted: true}
		}
		rows.Cores = append(rows.Cores, core)
	}
	insert(t, store, rows)
	if got, err = store.Occupancy(t.Context(), since); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got.Minutes)
	const minute = 60_000_000
	want := event.Occupancy{
		FirstMicros: at(t, times[0]), LastMicros: at(t, times[5]), SinceMicros: since,
		Minutes: []int64{at(t, times[2]) / minute, at(t, times[3]) / minute, at(t, times[5]) / minute},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("occupancy (-want +got):\n%s", diff)
	}
}
