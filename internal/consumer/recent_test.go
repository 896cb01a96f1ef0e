package consumer

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func recentCore(n uint64, metadata string) event.Core {
	return event.Core{ID: testID(n), ConversationID: conversation, Metadata: metadata, Version: created(int64(n))}
}

// held counts, without a trace, the entries that a partition holds.
func held(r *recent, partition int32) int {
	p := r.partitions[partition]
	if p == nil {
		return 0
	}
	return len(p.young.cores) + len(p.old.cores) + len(p.young.aliases) + len(p.old.aliases)
}

// counted is what the entries cost, counted afresh.
func counted(r *recent) int {
	n := 0
	for _, p := range r.partitions {
		for _, g := range []generation{p.young, p.old} {
			for _, core := range g.cores {
				n += coreBytes + len(core.ConversationID) + len(core.Metadata) + len(core.Error) + len(core.Alias)
			}
			for alias := range g.aliases {
				n += aliasBytes + len(alias)
			}
		}
	}
	return n
}

func TestRecentFindsWhatWasPut(t *testing.T) {
	r := newRecent(1 << 20)
	if _, ok := r.core(0, testID(1)); ok {
		t.Error("an empty one has a core row")
	}
	if _, ok := r.alias(0, "a"); ok {
		t.Error("an empty one has an alias")
	}
	r.putCore(0, recentCore(1, `{"n":1}`))
	r.putCore(0, recentCore(1, `{"n":2}`))
	r.putAlias(0, event.AliasRow{Alias: "a", ID: testID(1), Version: created(1)})
	if core, ok := r.core(0, testID(1)); !ok || core.Metadata != `{"n":2}` {
		t.Errorf("core: %+v, %t", core, ok)
	}
	if row, ok := r.alias(0, "a"); !ok || row.ID != testID(1) {
		t.Errorf("alias: %+v, %t", row, ok)
	}
	if _, ok := r.core(1, testID(1)); ok {
		t.Error("another partition has the core row too")
	}
	if _, ok := r.alias(1, "a"); ok {
		t.Error("another partition has the alias too")
	}
}

func TestRecentDrop(t *testing.T) {
	r := newRecent(1 << 20)
	for p := range int32(2) {
		r.putCore(p, recentCore(1, ""))
		r.putAlias(p, event.AliasRow{Alias: "a", Version: created(1)})
	}
	r.drop(0)
	r.drop(7)
	if n := held(r, 0); n != 0 {
		t.Errorf("%d entries of a dropped partition", n)
	}
	if n := held(r, 1); n != 2 {
		t.Errorf("%d entries of the partition that stays, want 2", n)
	}
	if r.bytes() != counted(r) {
		t.Errorf("%d bytes, counted %d", r.bytes(), counted(r))
	}
}

// Entries that are used survive, the others are forgotten within two generations.
func TestRecentGenerations(t *testing.T) {
	const entry = coreBytes + len(conversation)
	r := newRecent(20 * entry) // ten to a generation
	r.putCore(0, recentCore(0, ""))
	r.putCore(0, recentCore(1, ""))
	r.putAlias(0, event.AliasRow{Alias: "used", Version: created(1)})
	r.putAlias(0, event.AliasRow{Alias: "unused", Version: created(1)})
	for n := range uint64(100) {
		r.putCore(0, recentCore(1000+n, ""))
		if _, ok := r.core(0, testID(1)); !ok {
			t.Fatalf("a core row that is used was forgotten after %d others", n+1)
		}
		if _, ok := r.alias(0, "used"); !ok {
			t.Fatalf("an alias that is used was forgotten after %d others", n+1)
		}
		if _, ok := r.core(0, testID(1000+n)); !ok {
			t.Fatalf("core row %d was forgotten at once", n)
		}
	}
	if _, ok := r.core(0, testID(0)); ok {
		t.Error("a core row that nobody used is still there")
	}
	if _, ok := r.alias(0, "unused"); ok {
		t.Error("an alias that nobody used is still there")
	}
	for n := uint64(96); n < 100; n++ {
		if _, ok := r.core(0, testID(1000+n)); !ok {
			t.Errorf("core row %d, one of the latest, is gone", n)
		}
	}
}

// The newer row of an event must win over the one in the old generation.
func TestRecentNewestFirst(t *testing.T) {
	const entry = coreBytes + len(conversation)
	r := newRecent(20 * entry)
	r.putCore(0, recentCore(1, "1"))
	for n := range uint64(10) { // pushes event 1 into the old generation
		r.putCore(0, recentCore(100+n, ""))
	}
	if _, ok := r.partitions[0].old.cores[testID(1)]; !ok {
		t.Fatal("the test's premise is wrong: event 1 is not in the old generation")
	}
	r.putCore(0, recentCore(1, "2"))
	if core, _ := r.core(0, testID(1)); core.Metadata != "2" {
		t.Errorf("got the older row: %+v", core)
	}
}

// The bound holds whatever is put, and as partitions come and go.
func TestRecentBound(t *testing.T) {
	const bytesMax = 100_000
	const entryMax = coreBytes + len(conversation) + 4000
	tests := []struct {
		name string
		put  func(r *recent, rng *rand.Rand, i int)
	}{
		{"one partition", func(r *recent, rng *rand.Rand, _ int) {
			r.putCore(0, recentCore(rng.Uint64N(1000), ""))
		}},
		{"rows that grow", func(r *recent, _ *rand.Rand, i int) {
			r.putCore(0, recentCore(uint64(i%100), strings.Repeat("x", min(i, 4000))))
		}},
		{"aliases", func(r *recent, rng *rand.Rand, _ int) {
			r.putAlias(0, event.AliasRow{Alias: fmt.Sprint("alias ", rng.IntN(1000)), Version: created(1)})
		}},
		{"partitions one after the other", func(r *recent, _ *rand.Rand, i int) {
			r.putCore(int32(i/1000), recentCore(uint64(i), ""))
		}},
		{"partitions come and go", func(r *recent, rng *rand.Rand, i int) {
			if i%500 == 0 {
				r.drop(int32(rng.IntN(12)))
			}
			p := int32(rng.IntN(1 + i/1000))
			switch rng.IntN(4) {
			case 0:
				r.core(p, testID(rng.Uint64N(500)))
			case 1:
				r.putAlias(p, event.AliasRow{Alias: fmt.Sprint("alias ", rng.IntN(500)), Version: created(1)})
			default:
				r.putCore(p, recentCore(rng.Uint64N(500), strings.Repeat("x", rng.IntN(2000))))
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecent(bytesMax)
			rng := rand.New(rand.NewPCG(1, 2))
			most := 0
			for i := range 12_000 {
				tt.put(r, rng, i)
				n := r.bytes()
				if limit := bytesMax + entryMax*len(r.partitions); n > limit {
					t.Fatalf("%d bytes after %d steps, the bound is %d", n, i, limit)
				}
				if i%100 == 0 && n != counted(r) {
					t.Fatalf("%d bytes after %d steps, counted %d", n, i, counted(r))
				}
				most = max(most, n)
			}
			if most < bytesMax/3 {
				t.Errorf("never more than %d bytes of %d", most, bytesMax)
			}
		})
	}
}
