package rowcache

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	conversation = "conversation-1"
	// micros is the timestamp of the events of these tests.
	micros int64 = 1_793_491_200_000_000
)

// testID is the n-th event's id.
func testID(n uint64) event.ID {
	return event.MakeID(micros, event.ConversationHash(conversation), n)
}

func position(offset int64) event.Position { return event.MakePosition(1, offset) }

func created(offset int64) event.Version {
	return event.MakeVersion(event.ClassCreate, position(offset))
}

func updated(offset int64) event.Version {
	return event.MakeVersion(event.ClassUpdate, position(offset))
}

func deleted(offset int64) event.Version {
	return event.MakeVersion(event.ClassDelete, position(offset))
}

func testCore(n uint64, metadata string) event.Core {
	return event.Core{ID: testID(n), ConversationID: conversation, Metadata: metadata, Version: created(int64(n))}
}

// held counts, without a trace, the entries that a partition holds.
func held(r *Cache, partition int32) int {
	p := r.partitions[partition]
	if p == nil {
		return 0
	}
	return len(p.cores) + len(p.aliases)
}

// check holds what must be true of every cache at any time.
func check(t *testing.T, r *Cache) {
	t.Helper()
	keys := 0
	for number, p := range r.partitions {
		for id, at := range p.cores {
			c, i := r.at(at)
			if e := c.entry(i); e.id != id || e.partition != number || e.flags&flagAlias != 0 {
				t.Fatalf("the entry of core row %s is %+v", id, e)
			}
		}
		for hash, at := range p.aliases {
			c, i := r.at(at)
			e := c.entry(i)
			if text, _ := c.text(e.alias); r.texts.hash(string(text)) != hash || e.partition != number || e.flags&flagAlias == 0 {
				t.Fatalf("the entry of an alias is %+v", e)
			}
		}
		if n := len(p.cores) + len(p.aliases); n > p.keysMax {
			t.Fatalf("partition %d has %d keys and counts %d", number, n, p.keysMax)
		}
		keys += p.keysMax
	}
	if keys != r.keys {
		t.Fatalf("%d keys, counted %d", r.keys, keys)
	}
	if n := r.Bytes(); n > r.bytesMax {
		t.Fatalf("%d bytes, the bound is %d", n, r.bytesMax)
	}
}

func TestCacheFindsWhatWasPut(t *testing.T) {
	r := New(1 << 20)
	if _, ok := r.Core(0, testID(1)); ok {
		t.Error("an empty one has a core row")
	}
	if _, ok := r.Alias(0, "a"); ok {
		t.Error("an empty one has an alias")
	}
	r.PutCore(0, testCore(1, `{"n":1}`))
	r.PutCore(0, testCore(1, `{"n":2}`))
	r.PutAlias(0, event.AliasRow{Alias: "a", ID: testID(1), Version: created(1)})
	if core, ok := r.Core(0, testID(1)); !ok || core.Metadata != `{"n":2}` {
		t.Errorf("core: %+v, %t", core, ok)
	}
	if row, ok := r.Alias(0, "a"); !ok || row.ID != testID(1) {
		t.Errorf("alias: %+v, %t", row, ok)
	}
	if _, ok := r.Core(1, testID(1)); ok {
		t.Error("another partition has the core row too")
	}
	if _, ok := r.Alias(1, "a"); ok {
		t.Error("another partition has the alias too")
	}
}

func TestCacheDrop(t *testing.T) {
	r := New(1 << 20)
	for p := range int32(2) {
		r.PutCore(p, testCore(1, ""))
		r.PutAlias(p, event.AliasRow{Alias: "a", Version: created(1)})
	}
	r.Drop(0)
	r.Drop(7)
	if n := held(r, 0); n != 0 {
		t.Errorf("%d entries of a dropped partition", n)
	}
	if n := held(r, 1); n != 2 {
		t.Errorf("%d entries of the partition that stays, want 2", n)
	}
	check(t, r)
}

// Every field comes back, also from a row that was put over another.
func TestCacheCores(t *testing.T) {
	whole := event.Core{
		ID: testID(1), ConversationID: conversation, EventName: "event_a", Metadata: `{"n":1}`, Error: "timeout",
		Latency: 12.5, HasLatency: true, Alias: "a", Created: position(3), Version: updated(4),
	}
	with := func(change func(c *event.Core)) event.Core {
		c := whole
		change(&c)
		return c
	}
	tests := []struct {
		name string
		core event.Core
	}{
		{"whole", whole},
		{"again", whole},
		{"another latency", with(func(c *event.Core) { c.Latency, c.Version = 0, updated(5) })},
		{"no latency", with(func(c *event.Core) { c.Latency, c.HasLatency = 0, false })},
		{"no error", with(func(c *event.Core) { c.Error = "" })},
		{"another error", with(func(c *event.Core) { c.Error = "refused" })},
		{"another name", with(func(c *event.Core) { c.EventName = "event_b" })},
		{"no metadata", with(func(c *event.Core) { c.Metadata = "" })},
		{"other metadata", with(func(c *event.Core) { c.Metadata = `{"n":2}` })},
		{"metadata that begins the same", with(func(c *event.Core) { c.Metadata = `{"n":2}}` })},
		{"no alias", with(func(c *event.Core) { c.Alias = "" })},
		{"texts that are the same", with(func(c *event.Core) {
			c.EventName, c.Metadata, c.Error, c.Alias = conversation, conversation, conversation, conversation
		})},
		{"long texts", with(func(c *event.Core) { c.Metadata, c.Error = strings.Repeat("m", 16<<10), strings.Repeat("e", 16<<10) })},
		{"a tombstone", event.Core{ID: testID(1), Alias: "a", Version: deleted(9), Deleted: true}},
		{"a tombstone without an alias", event.Core{ID: testID(1), Version: deleted(9), Deleted: true}},
	}
	for _, before := range tests {
		r := New(4 << 20)
		r.PutCore(0, testCore(2, `{"n":1}`))
		for _, tt := range tests {
			r.PutCore(0, before.core)
			r.PutCore(0, tt.core)
			r.PutCore(0, testCore(3, `{"n":1}`))
			got, ok := r.Core(0, tt.core.ID)
			if diff := cmp.Diff(tt.core, got); !ok || diff != "" {
				t.Errorf("%s after %s: %t (-want +got):\n%s", tt.name, before.name, ok, diff)
			}
		}
		check(t, r)
	}
}

// An update that brings no new text takes no memory.
func TestCacheOverwrites(t *testing.T) {
	r := New(4 << 20)
	core := testCore(1, `{"n":1}`)
	r.PutCore(0, core)
	room := r.chunks[0].room()
	core.Latency, core.HasLatency = 7, true
	r.PutCore(0, core)
	r.PutCore(0, event.Core{ID: core.ID, Version: deleted(9), Deleted: true})
	if n := room - r.chunks[0].room(); n != 0 {
		t.Errorf("an update and a delete took %d bytes", n)
	}
}

// Entries that are used survive, the others are forgotten in turn.
func TestCacheForgetsTheUnused(t *testing.T) {
	r := New(4000) // two or three entries to a chunk
	r.PutCore(0, testCore(0, ""))
	r.PutCore(0, testCore(1, ""))
	r.PutAlias(0, event.AliasRow{Alias: "used", Version: created(1)})
	r.PutAlias(0, event.AliasRow{Alias: "unused", Version: created(1)})
	const others = 1000 // enough to have chunks numbered from 0 again
	for n := range uint64(others) {
		r.PutCore(0, testCore(1000+n, ""))
		if _, ok := r.Core(0, testID(1)); !ok {
			t.Fatalf("a core row that is used was forgotten after %d others", n+1)
		}
		if _, ok := r.Alias(0, "used"); !ok {
			t.Fatalf("an alias that is used was forgotten after %d others", n+1)
		}
		if _, ok := r.Core(0, testID(1000+n)); !ok {
			t.Fatalf("core row %d was forgotten at once", n)
		}
		check(t, r)
	}
	if _, ok := r.Core(0, testID(0)); ok {
		t.Error("a core row that nobody used is still there")
	}
	if _, ok := r.Alias(0, "unused"); ok {
		t.Error("an alias that nobody used is still there")
	}
	for n := uint64(others - 10); n < others; n++ {
		if _, ok := r.Core(0, testID(1000+n)); !ok {
			t.Errorf("core row %d, one of the latest, is gone", n)
		}
	}
}

// What an earlier assignment of a partition left in the chunks is neither found
// nor, when its chunk is forgotten, taken for what the present one holds.
func TestCacheAssignmentsAreApart(t *testing.T) {
	r := New(4000)
	r.PutCore(0, testCore(1, "of old"))
	r.Drop(0)
	if _, ok := r.Core(0, testID(1)); ok {
		t.Fatal("the core row of an earlier assignment is held")
	}
	r.SetOccupancy(0, event.Occupancy{Empty: true})
	for n := uint64(0); r.first == 0; n++ {
		r.PutCore(1, testCore(1000+n, ""))
		r.PutCore(0, testCore(1, "new"))
	}
	if !r.Absent(0, testID(1)) {
		t.Error("a core row that is held counts as forgotten")
	}
	if core, ok := r.Core(0, testID(1)); !ok || core.Metadata != "new" {
		t.Errorf("core: %+v, %t", core, ok)
	}
}

// Every row that is put is held, or its id does not count as absent.
func TestCacheKnowsWhatItForgot(t *testing.T) {
	const bytesMax = 20_000
	r := New(bytesMax)
	rng := rand.New(rand.NewPCG(3, 4))
	at := func(n uint64) event.ID {
		return event.MakeID(micros+int64(n)*minuteMicros, event.ConversationHash(conversation), n)
	}
	const partitions, events = 3, 600
	put := [partitions]map[uint64]bool{}
	for i := range 30_000 {
		number := rng.IntN(partitions)
		if rng.IntN(5000) == 0 {
			r.Drop(int32(number))
			put[number] = nil
		}
		if put[number] == nil {
			put[number] = make(map[uint64]bool)
			r.SetOccupancy(int32(number), event.Occupancy{Empty: true})
		}
		n := rng.Uint64N(events)
		core := event.Core{ID: at(n), ConversationID: conversation, Metadata: strings.Repeat("x", rng.IntN(300))}
		switch rng.IntN(20) {
		case 0: // fits no chunk
			core.Error = strings.Repeat("e", bytesMax/chunksMax)
		case 1:
			core = event.Core{ID: core.ID, Deleted: true}
		case 2:
			r.PutAlias(int32(number), event.AliasRow{Alias: fmt.Sprint("alias ", n)})
		}
		r.PutCore(int32(number), core)
		put[number][n] = true
		if i%100 != 0 {
			continue
		}
		check(t, r)
		for number := range put {
			for n := range put[number] {
				if _, ok := r.partitions[int32(number)].cores[at(n)]; !ok && r.Absent(int32(number), at(n)) {
					t.Fatalf("step %d: event %d was forgotten and counts as absent", i, n)
				}
			}
		}
	}
}

// The bound holds whatever is put, and as partitions come and go.
func TestCacheBound(t *testing.T) {
	const bytesMax = 100_000
	tests := []struct {
		name string
		put  func(r *Cache, rng *rand.Rand, i int)
	}{
		{"one partition", func(r *Cache, rng *rand.Rand, _ int) {
			r.PutCore(0, testCore(rng.Uint64N(1000), ""))
		}},
		{"rows that grow", func(r *Cache, _ *rand.Rand, i int) {
			r.PutCore(0, testCore(uint64(i%100), strings.Repeat("x", min(i, 4000))))
		}},
		{"aliases", func(r *Cache, rng *rand.Rand, _ int) {
			r.PutAlias(0, event.AliasRow{Alias: fmt.Sprint("alias ", rng.IntN(1000)), Version: created(1)})
		}},
		{"partitions one after the other", func(r *Cache, _ *rand.Rand, i int) {
			r.PutCore(int32(i/1000), testCore(uint64(i), ""))
		}},
		{"partitions come and go", func(r *Cache, rng *rand.Rand, i int) {
			if i%500 == 0 {
				r.Drop(int32(rng.IntN(12)))
			}
			p := int32(rng.IntN(1 + i/1000))
			switch rng.IntN(4) {
			case 0:
				r.Core(p, testID(rng.Uint64N(500)))
			case 1:
				r.PutAlias(p, event.AliasRow{Alias: fmt.Sprint("alias ", rng.IntN(500)), Version: created(1)})
			default:
				r.PutCore(p, testCore(rng.Uint64N(500), strings.Repeat("x", rng.IntN(2000))))
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := New(bytesMax)
			rng := rand.New(rand.NewPCG(1, 2))
			most := 0
			for i := range 12_000 {
				tt.put(r, rng, i)
				if i%10 == 0 {
					check(t, r)
				}
				most = max(most, r.Bytes())
			}
			if most < bytesMax/3 {
				t.Errorf("never more than %d bytes of %d", most, bytesMax)
			}
		})
	}
}

// The bound is of the memory that is really used, and typical events, five of
// which have the same conversation and metadata, take little of it.
func TestCacheMemory(t *testing.T) {
	const bytesMax = 24 << 20
	const entryBytesMax = 160
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	put := func(r *Cache, n int) {
		group := n / 5
		conversation := fmt.Sprintf("sgd-train-%010d-run1-0", group)
		r.PutCore(int32(n*7%12), event.Core{
			ID:             event.MakeID(micros+int64(n), event.ConversationHash(conversation), uint64(n)),
			ConversationID: conversation, EventName: "event_a",
			Metadata: fmt.Sprintf(`{"services":["RentalCars_2","Homes_1"],"plan":"free","corpus":"sgd","split":"train","app":"sluice-bench","user":"user-%d"}`, group),
			Latency:  float64(n), HasLatency: true, Created: position(int64(n)), Version: created(int64(n)),
		})
	}
	start := heap()
	r := New(bytesMax)
	for n := range 120_000 {
		put(r, n)
	}
	if n := r.Bytes() / 120_000; n > entryBytesMax || r.first != 0 {
		t.Errorf("%d bytes to an event, want at most %d, with the first ones held", n, entryBytesMax)
	}
	for n := 120_000; n < 700_000; n++ {
		put(r, n)
	}
	used, said := heap()-start, r.Bytes()
	t.Logf("%d MiB used, %d MiB said, %d MiB allowed, %d rows", used>>20, said>>20, bytesMax>>20, r.keys)
	if used > said*11/10 || said > bytesMax || said < bytesMax*8/10 {
		t.Errorf("%d bytes are used, %d said, %d allowed", used, said, bytesMax)
	}
	runtime.KeepAlive(r)
}
