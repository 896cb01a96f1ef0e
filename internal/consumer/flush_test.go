package consumer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

var errDown = errors.New("connection refused")

// failing fails the first n tries.
func failing(n int, err error) func(context.Context, int) error {
	return func(_ context.Context, try int) error {
		if try <= n {
			return err
		}
		return nil
	}
}

func TestOrderOfSteps(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(w *world)
		writes  []event.Write
		want    []string
	}{
		{
			name:   "insert, commit",
			writes: []event.Write{create(fresh)},
			want:   []string{"insert 1", "commit map[0:1]"},
		},
		{
			// A replay after a crash between the two must still refuse the update.
			name:   "look up, dead letters, insert, commit",
			writes: []event.Write{create(id(2), fresh, input("in")), update(failure("e"))},
			want:   []string{"cores [1]", "send 1", "insert 2", "commit map[0:2]"},
		},
		{
			name:   "nothing to insert",
			writes: []event.Write{update(failure("e"))},
			want:   []string{"cores [1]", "send 1", "commit map[0:1]"},
		},
		{
			name:    "no effect at all",
			prepare: func(w *world) { w.cores[testID(1)] = event.Core{ID: testID(1), Version: deleted(0), Deleted: true} },
			writes:  []event.Write{update(failure("e"))},
			want:    []string{"cores [1]", "commit map[0:1]"},
		},
		{
			name:    "no insert before the look-up succeeded",
			prepare: func(w *world) { w.onLookup = failing(2, errDown) },
			writes:  []event.Write{update(failure("e")), create(id(2), fresh)},
			want:    []string{"cores fails", "pause", "cores fails", "cores [1]", "resume", "send 1", "insert 1", "commit map[0:2]"},
		},
		{
			name:    "no commit before the insert succeeded",
			prepare: func(w *world) { w.onInsert = failing(3, errDown) },
			writes:  []event.Write{create(fresh)},
			want:    []string{"insert fails", "pause", "insert fails", "insert fails", "insert 1", "resume", "commit map[0:1]"},
		},
		{
			name:    "no insert and no commit before the dead letters are sent",
			prepare: func(w *world) { w.onSend = failing(2, errDown) },
			writes:  []event.Write{update(failure("e")), remove()},
			want:    []string{"cores [1]", "send fails", "pause", "send fails", "send 1", "resume", "insert 5", "commit map[0:2]"},
		},
		{
			name:    "the commit is tried again, by itself",
			prepare: func(w *world) { w.onCommit = failing(2, errDown) },
			writes:  []event.Write{create(fresh)},
			want:    []string{"insert 1", "commit fails", "pause", "commit fails", "commit map[0:1]", "resume"},
		},
		// Only an insert can be refused for what it brings; elsewhere the batch
		// must not be given up for it.
		{
			name:    "a look-up that says refused is tried again",
			prepare: func(w *world) { w.onLookup = failing(1, event.ErrRejected) },
			writes:  []event.Write{update(failure("e")), create(id(2), fresh)},
			want:    []string{"cores fails", "pause", "cores [1]", "resume", "send 1", "insert 1", "commit map[0:2]"},
		},
		{
			name:    "a look-up of rows that take too much memory is done in halves",
			prepare: func(w *world) { w.onLookup = failing(1, event.ErrQueryTooLarge) },
			writes:  []event.Write{update(failure("e")), update(id(2), failure("e")), create(id(3), fresh)},
			want: []string{
				"cores fails", "cores [1]", "send 1", "cores [2]", "send 1", "insert 1", "commit map[0:3]",
			},
		},
		{
			name:    "one row that takes too much is tried again",
			prepare: func(w *world) { w.onLookup = failing(1, event.ErrQueryTooLarge) },
			writes:  []event.Write{update(failure("e"))},
			want:    []string{"cores fails", "pause", "cores [1]", "resume", "send 1", "commit map[0:1]"},
		},
		{
			name:    "a send that says refused is tried again",
			prepare: func(w *world) { w.onSend = failing(1, event.ErrRejected) },
			writes:  []event.Write{update(failure("e"))},
			want:    []string{"cores [1]", "send fails", "pause", "send 1", "resume", "commit map[0:1]"},
		},
		{
			name:    "a commit that says refused is tried again",
			prepare: func(w *world) { w.onCommit = failing(1, event.ErrRejected) },
			writes:  []event.Write{create(fresh)},
			want:    []string{"insert 1", "commit fails", "pause", "commit map[0:1]", "resume"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runWith(t, func(w *world, _ *Config) {
				if tt.prepare != nil {
					tt.prepare(w)
				}
			}, func(w *world) {
				w.feed(tt.writes...)
				w.advance(10 * time.Second)
				if diff := cmp.Diff(tt.want, w.take()); diff != "" {
					t.Errorf("journal (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// Infrastructure errors are retried for as long as they last, ever more
// slowly, and nothing is dead-lettered for them.
func TestRetriesForever(t *testing.T) {
	const day = 24 * time.Hour
	var tries []time.Time
	down := true
	runWith(t, func(w *world, _ *Config) {
		w.onInsert = func(context.Context, int) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			tries = append(tries, time.Now())
			if down {
				return fmt.Errorf("insert: %w", errDown)
			}
			return nil
		}
	}, func(w *world) {
		w.feed(create(fresh))
		w.advance(day)
		w.mu.Lock()
		if w.pauses != 1 {
			t.Errorf("fetching is paused %d times over", w.pauses)
		}
		down = false
		w.mu.Unlock()
		cfg := DefaultConfig()
		w.advance(cfg.RetryDelayMax)
		if diff := cmp.Diff(map[int32]int64{0: 1}, w.commits()); diff != "" {
			t.Errorf("commits (-want +got):\n%s", diff)
		}
		if w.pauses != 0 {
			t.Errorf("fetching is paused %d times over after it all", w.pauses)
		}
		if got := w.refusals(); got != nil {
			t.Errorf("dead letters: %v", got)
		}
		// Half of the delay is jitter.
		delay := cfg.RetryDelayMin
		for i := range tries[1:] {
			if got := tries[i+1].Sub(tries[i]); got < delay/2 || got > delay {
				t.Fatalf("pause %d is %v, want %v to %v", i, got, delay/2, delay)
			}
			delay = min(2*delay, cfg.RetryDelayMax)
		}
		if least := int(day / cfg.RetryDelayMax); len(tries) < least {
			t.Errorf("%d tries in a day, want at least %d", len(tries), least)
		}
	})
}

// Whichever records the database refuses, they alone are dead-lettered, and
// all others are applied, in order.
func TestRejectedRecordsAreFound(t *testing.T) {
	const records = 37
	tests := map[string][]int{
		"first": {0}, "last": {records - 1}, "middle": {18}, "neighbours": {17, 18, 19}, "several": {3, 4, 11, 30, 36}, "none": nil,
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world, _ *Config) {
				w.refuse = func(core event.Core) bool { return core.Error == "bad" }
			}, func(w *world) {
				var writes []event.Write
				for n := range uint64(records) {
					writes = append(writes, create(fresh, id(n), failure("good")))
				}
				var want []string
				for _, n := range bad {
					failure("bad")(&writes[n])
					want = append(want, fmt.Sprintf("0/%d rejected_by_store", n))
				}
				w.apply(writes...)
				if diff := cmp.Diff(want, w.refusals(), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("refused (-want +got):\n%s", diff)
				}
				for n := range writes {
					refused := writes[n].Error == "bad"
					if core := w.core(uint64(n)); (core.Error == "good") == refused {
						t.Errorf("record %d, refused %t: the table has %+v", n, refused, core)
					}
				}
				journal := w.take()
				if last := journal[len(journal)-1]; last != "commit map[0:37]" {
					t.Errorf("the last step is %q", last)
				}
				for _, line := range journal[:len(journal)-1] {
					if strings.HasPrefix(line, "commit") {
						t.Errorf("an early commit: %v", journal)
					}
				}
				if w.pauses != 0 || strings.Contains(strings.Join(journal, " "), "pause") {
					t.Error("fetching was paused for a refused row")
				}
			})
		})
	}
}

// The writes of one event still see each other when a refused record has cut
// the batch between them.
func TestBisectKeepsTheOrder(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.refuse = func(core event.Core) bool { return core.Error == "bad" }
	}, func(w *world) {
		w.apply(
			update(id(2), failure("too early")),
			create(fresh),
			update(latency(1)),
			create(fresh, id(3), failure("bad")),
			update(named("event_b")),
			create(id(2)),
			update(id(3), latency(1)),
			create(fresh, id(4)),
			remove(id(4)),
			update(failure("last")),
		)
		want := row(1, updated(9), func(c *event.Core) {
			c.Error, c.EventName, c.Latency, c.HasLatency = "last", "event_b", 1, true
		})
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		if w.core(2).Created != position(5) || !w.core(4).Deleted || w.core(3).Version != 0 {
			t.Errorf("the others: %+v, %+v, %+v", w.core(2), w.core(3), w.core(4))
		}
		// An update of an event whose create was refused is one of no event. What
		// was refused before the search is not sent again by it.
		wantRefused := []string{"0/0 unknown_event", "0/3 rejected_by_store", "0/6 unknown_event"}
		if diff := cmp.Diff(wantRefused, w.refusals()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
	})
}

// A refused update's row must not be held as if it were in the table.
func TestRejectedRowsAreNotHeld(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.refuse = func(core event.Core) bool { return core.Error == "bad" }
	}, func(w *world) {
		w.apply(create(fresh))
		w.apply(update(failure("bad")))
		w.apply(update(latency(1)))
		want := row(0, updated(2), func(c *event.Core) { c.Latency, c.HasLatency = 1, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"0/1 rejected_by_store"}, w.refusals()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
	})
}

// An outage in the middle of a search for a refused row must not blame others.
func TestOutageWhileBisecting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	runWith(t, func(w *world, _ *Config) {
		w.refuse = func(core event.Core) bool { return core.Error == "bad" }
		w.onInsert = func(context.Context, int) error {
			if rng.IntN(2) == 0 {
				return errDown
			}
			return nil
		}
	}, func(w *world) {
		var writes []event.Write
		for n := range uint64(20) {
			writes = append(writes, create(fresh, id(n)))
		}
		failure("bad")(&writes[13])
		w.feed(writes...)
		w.advance(time.Hour)
		if diff := cmp.Diff([]string{"0/13 rejected_by_store"}, w.refusals()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[int32]int64{0: 20}, w.commits()); diff != "" {
			t.Errorf("commits (-want +got):\n%s", diff)
		}
		for n := range writes {
			if core := w.core(uint64(n)); (core.Version == 0) != (n == 13) {
				t.Errorf("record %d: the table has %+v", n, core)
			}
		}
	})
}

// Poison goes to the dead letters with its reason, and all around it is applied.
func TestPoison(t *testing.T) {
	run(t, func(w *world) {
		records := []record.Record{
			recordOf(create(fresh), 0, 0),
			recordOf(create(id(2)), 0, 1),
			recordOf(create(id(3)), 0, 2),
			recordOf(create(id(4)), 0, 3),
			recordOf(update(failure("e")), 0, 4),
		}
		records[1].Value = []byte("\xff\xffno message")
		records[2].Version = 9
		records[3].Version = 0
		w.feedRecords(1, records...)
		w.advance(time.Second)
		want := []string{"0/1 bad_record", "0/2 unsupported_version", "0/3 bad_record"}
		if diff := cmp.Diff(want, w.refusals()); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		for _, l := range w.letters {
			if l.Detail == "" || strings.Contains(l.Detail, "no message") {
				t.Errorf("the detail of offset %d is %q", l.Record.Offset, l.Detail)
			}
		}
		if core := w.core(1); core.Error != "e" {
			t.Errorf("core row: %+v", core)
		}
		if diff := cmp.Diff([]string{"send 3", "insert 1", "commit map[0:5]"}, w.take()); diff != "" {
			t.Errorf("journal (-want +got):\n%s", diff)
		}
	})
}

// A batch of nothing but poison is sent and passed.
func TestOnlyPoison(t *testing.T) {
	run(t, func(w *world) {
		rec := recordOf(create(), 0, 0)
		rec.Value = nil
		w.feedRecords(1, rec)
		w.advance(time.Second)
		if diff := cmp.Diff([]string{"send 1", "commit map[0:1]"}, w.take()); diff != "" {
			t.Errorf("journal (-want +got):\n%s", diff)
		}
	})
}

// What was sent to the dead letters must not stay in the memory of the batch.
func TestFlushLetsLettersGo(t *testing.T) {
	run(t, func(w *world) {
		poison := recordOf(create(), 0, 0)
		poison.Value = []byte("poison")
		var records []record.Record
		for i := range int64(5) {
			rec := poison
			rec.Offset = i
			records = append(records, rec)
		}
		records = append(records, recordOf(update(failure("e")), 0, 5))
		w.feedRecords(1, records...)
		w.advance(time.Second)
		if len(w.letters) != 6 {
			t.Fatalf("%d dead letters", len(w.letters))
		}
		for _, b := range []*batch{w.consumer.filling, w.consumer.spare} {
			for _, l := range b.poison[:cap(b.poison)] {
				if l.Record.Value != nil {
					t.Errorf("the dead letter of offset %d is kept", l.Record.Offset)
				}
			}
		}
	})
}
