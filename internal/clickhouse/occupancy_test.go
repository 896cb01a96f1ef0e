package clickhouse_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
)

func TestOccupancy(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	since := clickhousetest.At(t, "2026-03-01T12:00:30Z")
	got, err := store.Occupancy(t.Context(), since, 0)
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
		position, version := clickhousetest.Created(int64(i))
		core := event.Core{ID: event.NewID(clickhousetest.At(t, text), "c"), ConversationID: "c", Created: position, Version: version}
		if i == 3 { // a tombstone occupies its minute too
			core = event.Core{ID: core.ID, Version: clickhousetest.Deleted(9), Deleted: true}
		}
		rows.Cores = append(rows.Cores, core)
	}
	clickhousetest.Insert(t, store, rows)
	if got, err = store.Occupancy(t.Context(), since, 0); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got.Minutes)
	const minute = 60_000_000
	want := event.Occupancy{
		FirstMicros: clickhousetest.At(t, times[0]), LastMicros: clickhousetest.At(t, times[5]), SinceMicros: since,
		Minutes: []int64{clickhousetest.At(t, times[2]) / minute, clickhousetest.At(t, times[3]) / minute, clickhousetest.At(t, times[5]) / minute},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("occupancy (-want +got):\n%s", diff)
	}

	until := clickhousetest.At(t, "2026-03-01T12:07:30Z")
	if got, err = store.Occupancy(t.Context(), since, until); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got.Minutes)
	want.UntilMicros, want.Minutes = until, want.Minutes[:2]
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("occupancy of a window that ends (-want +got):\n%s", diff)
	}
}

// What takes the server too long is told apart from a server that is away.
func TestOccupancyTooExpensive(t *testing.T) {
	_, server, database := clickhousetest.Migrated(t)
	slow, away := clickhousetest.Config(server, database), clickhousetest.Config(server, database)
	slow.OccupancyTimeout = time.Nanosecond
	away.Addr = "127.0.0.1:1" // nobody listens there
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		cfg  clickhouse.Config
		want bool
	}{
		{"a server that is slow", t.Context(), slow, true},
		{"a server that is away", t.Context(), away, false},
		{"a caller that has gone", gone, slow, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := clickhousetest.Open(t, tt.cfg).Occupancy(tt.ctx, 0, 0)
			if err == nil || errors.Is(err, event.ErrTooExpensive) != tt.want {
				t.Errorf("got %v, want an error that wraps %q: %t", err, event.ErrTooExpensive, tt.want)
			}
		})
	}
}
