package schema_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

// recordAtOnce has each of the stores record a topic of its own as that of one
// generation, and checks that one topic wins: for those who recorded it, for
// those who did not, and for whoever comes later.
func recordAtOnce(t *testing.T, stores []*clickhouse.Store, generation int) {
	t.Helper()
	type topic struct {
		id         string
		partitions int
	}
	topics := make([]topic, len(stores))
	for i := range topics {
		topics[i] = topic{"id-" + strconv.Itoa(i%3), 12 + i%2} // the same topic twice, and one topic with two counts
	}
	record := func(i int) error {
		return stores[i].RecordTopic(t.Context(), generation, "events", topics[i].id, topics[i].partitions)
	}
	var (
		begin = make(chan struct{})
		errs  = make([]error, len(stores))
		wg    sync.WaitGroup
	)
	for i := range stores {
		wg.Go(func() {
			<-begin
			errs[i] = record(i)
		})
	}
	close(begin)
	wg.Wait()
	var winners []topic
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, topics[i])
		case !errors.Is(err, schema.ErrTopicRecreated) && !errors.Is(err, schema.ErrPartitionsChanged):
			t.Errorf("generation %d: %v", generation, err)
		}
	}
	slices.SortFunc(winners, func(a, b topic) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	if winners = slices.Compact(winners); len(winners) != 1 {
		t.Fatalf("generation %d: topics %v won, want one", generation, winners)
	}
	for i := range stores {
		if won := topics[i] == winners[0]; (record(i) == nil) != won || (errs[i] == nil) != won {
			t.Errorf("generation %d: topic %v was recorded with %v and later with %v, and %v won", generation, topics[i], errs[i], record(i), winners[0])
		}
	}
}

func TestRecordTopicAtOnce(t *testing.T) {
	server := enginetest.Server(t)
	database := server.Database(t)
	var stores []*clickhouse.Store
	for range 8 {
		stores = append(stores, clickhousetest.Open(t, clickhousetest.Config(server, database)))
	}
	if _, err := stores[0].Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for generation := 1; generation <= 20; generation++ {
		recordAtOnce(t, stores, generation)
	}
}

// TestTopicsRecordedAtOnce has the records that builds before migration 0008
// could leave, with which no process started any more.
func TestTopicsRecordedAtOnce(t *testing.T) {
	store, server, database := clickhousetest.Migrated(t)
	server.Query(t, "INSERT INTO "+database+`.topic_generations VALUES
		(1, 'events', 'id-2', 12, '2026-01-01 00:00:00.000002'),
		(1, 'events', 'id-3', 12, '2026-01-01 00:00:00.000001'), (1, 'events', 'id-1', 12, '2026-01-01 00:00:00.000002')`)
	for id, want := range map[string]error{"id-1": schema.ErrTopicRecreated, "id-2": schema.ErrTopicRecreated, "id-3": nil} {
		if err := store.RecordTopic(t.Context(), 1, "events", id, 12); !errors.Is(err, want) {
			t.Errorf("topic %s: got %v, want %v", id, err, want)
		}
		if err := store.CheckTopic(t.Context(), 1, "events", id, 12); !errors.Is(err, want) {
			t.Errorf("topic %s is compared with %v, want %v", id, err, want)
		}
	}
	if err := store.CheckTopic(t.Context(), 2, "events", "any", 1); err != nil {
		t.Errorf("a generation that is not recorded is compared with %v", err)
	}
	if got, err := store.Generations(t.Context()); err != nil || !slices.Equal(got, []int{1}) {
		t.Errorf("generations %v, error %v: the comparison has recorded one", got, err)
	}
}

func TestRecordTopic(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	if got, err := store.Generations(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("generations %v, error %v before the first", got, err)
	}
	tests := []struct {
		name       string
		generation int
		topic, id  string
		partitions int
		want       error
	}{
		{"first use records", 1, "events.g1", "id-1", 12, nil},
		{"the same again", 1, "events.g1", "id-1", 12, nil},
		{"more partitions", 1, "events.g1", "id-1", 13, schema.ErrPartitionsChanged},
		{"fewer partitions", 1, "events.g1", "id-1", 11, schema.ErrPartitionsChanged},
		{"made anew", 1, "events.g1", "id-2", 12, schema.ErrTopicRecreated},
		{"another name", 1, "other.g1", "id-1", 12, schema.ErrTopicRecreated},
		{"next generation", 2, "events.g2", "id-2", 24, nil},
		{"the refused left no trace", 1, "events.g1", "id-1", 12, nil},
	}
	for _, test := range tests {
		if err := store.RecordTopic(t.Context(), test.generation, test.topic, test.id, test.partitions); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
	if got, err := store.Generations(t.Context()); err != nil || !slices.Equal(got, []int{1, 2}) {
		t.Errorf("generations %v, error %v; want 1 and 2", got, err)
	}
}
