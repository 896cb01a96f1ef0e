package consumer

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
)

// called makes the write one of the event that the caller names so. A create
// offers the n-th id for it, as the server would mint it.
func called(alias string, n uint64) option {
	return func(w *event.Write) {
		w.Alias, w.ID = alias, event.ID{}
		if w.Op == event.OpCreate {
			w.ID = testID(n).AsInternal()
		}
	}
}

func aliasRow(alias string, n uint64, version event.Version) event.AliasRow {
	return event.AliasRow{Alias: alias, ID: testID(n).AsInternal(), Version: version}
}

// Each step is a batch of its own; the journal says what was looked up for it.
func TestLookups(t *testing.T) {
	type batch struct {
		writes []event.Write
		want   []string
	}
	tests := []struct {
		name    string
		batches []batch
	}{
		{"creates look nothing up", []batch{
			{[]event.Write{create(fresh), create(id(2))}, nil},
		}},
		{"deletes look nothing up", []batch{
			{[]event.Write{remove(), remove(id(2))}, nil},
		}},
		{"an update in the batch of its fresh create", []batch{
			{[]event.Write{create(fresh), update(failure("e")), update(output("o"))}, nil},
		}},
		{"an update after its fresh create", []batch{
			{[]event.Write{create(fresh)}, nil},
			{[]event.Write{update(failure("e"))}, nil},
			{[]event.Write{update(output("o"))}, nil},
		}},
		{"an update of core fields needs the whole row, once", []batch{
			{[]event.Write{update(failure("e")), create(id(2), fresh), update(id(3), latency(1))}, []string{"cores [1 3]"}},
		}},
		{"an update of contents needs the row's state only", []batch{
			{[]event.Write{update(output("o")), update(id(3), inputVector(1))}, []string{"states [1 3]"}},
		}},
		{"updates of both kinds of one event need the whole row", []batch{
			{[]event.Write{update(output("o")), update(failure("e")), update(inputVector(1)), update(id(2), output("o"))}, []string{"cores [1]", "states [2]"}},
		}},
		{"a row that was looked up is held", []batch{
			{[]event.Write{create()}, nil},
			{[]event.Write{update(failure("e"))}, []string{"cores [1]"}},
			{[]event.Write{update(failure("f"))}, nil},
			{[]event.Write{update(output("o"))}, nil},
		}},
		{"a state that was looked up is not a row", []batch{
			{[]event.Write{create(failure("e"))}, nil},
			{[]event.Write{update(output("o"))}, []string{"states [1]"}},
			{[]event.Write{update(latency(1))}, []string{"cores [1]"}},
		}},
		{"a create that may be a repetition is not trusted", []batch{
			{[]event.Write{create(), update(failure("e"))}, []string{"cores [1]"}},
			{[]event.Write{create(id(2)), update(id(2), output("o"))}, []string{"states [2]"}},
		}},
		{"nothing is needed after a delete", []batch{
			{[]event.Write{remove(), update(failure("e")), create()}, nil},
			{[]event.Write{update(failure("e"))}, nil},
		}},
		{"an update before the delete still needs the row", []batch{
			{[]event.Write{update(failure("e")), remove()}, []string{"cores [1]"}},
		}},
		{"aliases once a batch", []batch{
			{[]event.Write{
				create(called("a", 1)), update(called("a", 0), failure("e")), update(called("b", 0), latency(1)), remove(called("a", 0)),
			}, []string{"aliases [a b]"}},
		}},
		{"an alias that was written is held, with its event", []batch{
			{[]event.Write{create(called("a", 1))}, []string{"aliases [a]"}},
			{[]event.Write{update(called("a", 0), failure("e"))}, nil},
			{[]event.Write{create(called("a", 2)), remove(called("a", 0))}, nil},
			{[]event.Write{update(called("a", 0), failure("e"))}, nil},
		}},
		{"an alias that does not exist is asked for again", []batch{
			{[]event.Write{update(called("a", 0), failure("e"))}, []string{"aliases [a]"}},
			{[]event.Write{update(called("a", 0), failure("e"))}, []string{"aliases [a]"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(w *world) {
				for i, b := range tt.batches {
					w.apply(b.writes...)
					var lookups []string
					for _, line := range w.take() {
						switch line[:5] {
						case "cores", "state", "alias":
							lookups = append(lookups, line)
						}
					}
					if diff := cmp.Diff(b.want, lookups); diff != "" {
						t.Errorf("look-ups of batch %d (-want +got):\n%s", i, diff)
					}
				}
			})
		})
	}
}

// A row that is not held any more must be looked up, and a repeated create must
// not stand in for it.
func TestRepeatedCreateAfterEviction(t *testing.T) {
	for _, together := range []bool{true, false} {
		name := "in one batch"
		if !together {
			name = "in two batches"
		}
		t.Run(name, func(t *testing.T) {
			runWith(t, func(_ *world, cfg *Config) { cfg.RecentBytesMax = 1 }, func(w *world) {
				w.skip(3)
				w.apply(create(failure("first"), output("first")))
				w.skip(7)
				second := []event.Write{create(failure("second"), output("second")), update(latency(8))}
				if together {
					w.apply(second...)
				} else {
					w.apply(second[0])
					w.apply(second[1])
				}
				want := row(3, updated(8), func(c *event.Core) {
					c.Error, c.Latency, c.HasLatency = "first", 8, true
				})
				if diff := cmp.Diff(want, w.core(1)); diff != "" {
					t.Errorf("core row (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// The same, while the create at 7 would be held if it were trusted.
func TestRepeatedCreateIsNotHeld(t *testing.T) {
	run(t, func(w *world) {
		w.mu.Lock()
		w.cores[testID(1)] = row(3, created(3), func(c *event.Core) { c.Error = "first" })
		w.mu.Unlock()
		w.skip(7)
		w.apply(create(failure("second")))
		w.apply(update(latency(8)))
		want := row(3, updated(8), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "first", 8, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
	})
}

// A look-up that found only the state must not come to stand for the row.
func TestStateIsNotHeld(t *testing.T) {
	runWith(t, func(w *world, _ *Config) {
		w.cores[testID(1)] = row(3, created(3), func(c *event.Core) { c.Error = "first" })
	}, func(w *world) {
		w.skip(7)
		w.apply(update(output("o")))
		w.apply(update(latency(8)))
		want := row(3, updated(8), func(c *event.Core) { c.Error, c.Latency, c.HasLatency = "first", 8, true })
		if diff := cmp.Diff(want, w.core(1)); diff != "" {
			t.Errorf("core row (-want +got):\n%s", diff)
		}
	})
}

func TestAliases(t *testing.T) {
	aliased := func(offset int64, n uint64, version event.Version, changes ...func(*event.Core)) event.Core {
		core := row(offset, version, changes...)
		core.ID, core.Alias = testID(n).AsInternal(), "a"
		return core
	}
	grave := func(n uint64, version event.Version) event.Rows {
		rows := tombstones(version)
		rows.Cores[0].ID = testID(n).AsInternal() // and no alias
		for i := range rows.Contents {
			rows.Contents[i].ID = testID(n).AsInternal()
			rows.Embeddings[i].ID = testID(n).AsInternal()
		}
		return rows
	}
	content := func(n uint64, s string, version event.Version) event.ContentRow {
		return event.ContentRow{ID: testID(n).AsInternal(), Field: event.FieldOutput, Content: text(s), Version: version}
	}
	tests := []struct {
		name    string
		alias   *event.AliasRow // of the table
		core    *event.Core     // of the table
		writes  []event.Write   // from offset 5 on
		want    event.Rows
		refused []string
	}{
		{
			name:   "none, created and updated in one batch",
			writes: []event.Write{create(called("a", 1)), update(called("a", 0), failure("e"))},
			want: event.Rows{
				Aliases: []event.AliasRow{aliasRow("a", 1, created(5))},
				Cores:   []event.Core{aliased(5, 1, updated(6), func(c *event.Core) { c.Error = "e" })},
			},
		},
		{
			name:   "an update before the create is refused",
			writes: []event.Write{update(called("a", 0), output("o")), create(called("a", 1))},
			want: event.Rows{
				Aliases: []event.AliasRow{aliasRow("a", 1, created(6))},
				Cores:   []event.Core{aliased(6, 1, created(6))},
			},
			refused: []string{"0/5 unknown_event"},
		},
		{
			name:  "an update before the create that the table has is refused again",
			alias: &event.AliasRow{Alias: "a", ID: testID(1).AsInternal(), Version: created(6)},
			core: func() *event.Core {
				core := aliased(6, 1, created(6))
				return &core
			}(),
			writes:  []event.Write{update(called("a", 0), output("o"))},
			refused: []string{"0/5 unknown_event"},
		},
		{
			name:   "a delete before the create leaves an alias tombstone, and the create is dead",
			writes: []event.Write{remove(called("a", 0)), create(called("a", 1), output("o")), update(called("a", 0), failure("e"))},
			want: event.Rows{
				Aliases: []event.AliasRow{{Alias: "a", Version: deleted(5), Deleted: true}},
			},
		},
		{
			name:   "a create under an alias tombstone is dead",
			alias:  &event.AliasRow{Alias: "a", Version: deleted(2), Deleted: true},
			writes: []event.Write{create(called("a", 1), output("o")), update(called("a", 0), failure("e"))},
		},
		{
			name:   "a delete of an alias tombstone leaves one again",
			alias:  &event.AliasRow{Alias: "a", Version: deleted(2), Deleted: true},
			writes: []event.Write{remove(called("a", 0))},
			want: event.Rows{
				Aliases: []event.AliasRow{{Alias: "a", Version: deleted(5), Deleted: true}},
			},
		},
		{
			name: "of two creates with different ids the second loses whole, and updates go to the first",
			writes: []event.Write{
				create(called("a", 1), output("first")), create(called("a", 2), output("second"), failure("second")),
				update(called("a", 0), latency(1)),
			},
			want: event.Rows{
				Aliases: []event.AliasRow{aliasRow("a", 1, created(5))},
				Cores: []event.Core{
					aliased(5, 1, updated(7), func(c *event.Core) { c.Latency, c.HasLatency = 1, true }),
				},
				Contents: []event.ContentRow{content(1, "first", created(5))},
			},
		},
		{
			name:   "a create with another id than the table's loses whole",
			alias:  &event.AliasRow{Alias: "a", ID: testID(1).AsInternal(), Version: created(2)},
			writes: []event.Write{create(called("a", 2), output("second"))},
		},
		{
			name:   "a create with the table's id is a replay, and leaves the same rows",
			alias:  &event.AliasRow{Alias: "a", ID: testID(1).AsInternal(), Version: created(5)},
			writes: []event.Write{create(called("a", 1), output("first"))},
			want: event.Rows{
				Cores:    []event.Core{aliased(5, 1, created(5))},
				Contents: []event.ContentRow{content(1, "first", created(5))},
			},
		},
		{
			name:   "a create that got no further than its alias, then an update",
			alias:  &event.AliasRow{Alias: "a", ID: testID(1).AsInternal(), Version: created(5)},
			writes: []event.Write{create(called("a", 1)), update(called("a", 0), failure("e"))},
			want: event.Rows{
				Cores: []event.Core{aliased(5, 1, updated(6), func(c *event.Core) { c.Error = "e" })},
			},
		},
		{
			name:   "a delete of an event leaves its tombstones, and the alias as it is",
			writes: []event.Write{create(called("a", 1), output("o")), remove(called("a", 0)), create(called("a", 2)), create(called("a", 1))},
			want: func() event.Rows {
				rows := grave(1, deleted(6))
				rows.Aliases = []event.AliasRow{aliasRow("a", 1, created(5))}
				return rows
			}(),
		},
		{
			name:   "a delete of an event of the table",
			alias:  &event.AliasRow{Alias: "a", ID: testID(1).AsInternal(), Version: created(2)},
			writes: []event.Write{remove(called("a", 0))},
			want:   grave(1, deleted(5)),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runWith(t, func(w *world, _ *Config) {
				if tt.alias != nil {
					w.aliases["a"] = *tt.alias
				}
				if tt.core != nil {
					w.cores[tt.core.ID] = *tt.core
				}
			}, func(w *world) {
				w.skip(5)
				w.apply(tt.writes...)
				var got event.Rows
				if len(w.inserts) > 0 {
					got = w.rows()
				}
				if diff := cmp.Diff(tt.want, got, sorted); diff != "" {
					t.Errorf("rows (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.refused, w.refusals(), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("refused (-want +got):\n%s", diff)
				}
			})
		})
	}
}
