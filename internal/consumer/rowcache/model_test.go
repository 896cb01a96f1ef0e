package rowcache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

// model is the cache's specification: maps that forget nothing, and the database
// that the rows of the cache are in.
type model struct {
	cores   [modelPartitions]map[event.ID]event.Core
	aliases [modelPartitions]map[string]event.AliasRow
	// asked are the partitions of which the occupancy was given.
	asked [modelPartitions]bool
	// stored are the ids that have a row in the database, whoever wrote it.
	stored map[event.ID]struct{}
}

const (
	modelPartitions = 3
	modelEvents     = 400
	modelBytesMax   = 24_000
)

func (m *model) drop(p int32) {
	m.cores[p], m.aliases[p] = make(map[event.ID]event.Core), make(map[string]event.AliasRow)
	m.asked[p] = false
}

// occupancy is what the database would say of the window.
func (m *model) occupancy(sinceMicros, untilMicros int64) event.Occupancy {
	o := event.Occupancy{Empty: len(m.stored) == 0, SinceMicros: sinceMicros, UntilMicros: untilMicros}
	for id := range m.stored {
		at := id.Micros()
		if o.FirstMicros == 0 || at < o.FirstMicros {
			o.FirstMicros = at
		}
		o.LastMicros = max(o.LastMicros, at)
		if at >= sinceMicros && (untilMicros == 0 || at < untilMicros) {
			o.Minutes = append(o.Minutes, at/minuteMicros)
		}
	}
	slices.Sort(o.Minutes)
	o.Minutes = slices.Compact(o.Minutes)
	return o
}

// TestCacheAgainstModel makes random calls and compares each answer with the
// model's. The cache may have forgotten what the model has, and never the other
// way round.
func TestCacheAgainstModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			c, m := New(modelBytesMax), &model{stored: make(map[event.ID]struct{})}
			for p := range int32(modelPartitions) {
				m.drop(p)
			}
			// An event is of one partition, as its key says. Each two share a minute.
			eventOf := func() (p int32, id event.ID) {
				n := rng.Uint64N(modelEvents)
				return int32(n % modelPartitions), event.MakeID(micros+int64(n/2)*minuteMicros+int64(n), event.ConversationHash(conversation), n)
			}
			var held, absent, forgotten int
			for step := range 20_000 {
				p, id := eventOf()
				alias := fmt.Sprint("alias ", p, " ", rng.IntN(60))
				switch rng.IntN(12) {
				case 0, 1, 2, 3:
					core := event.Core{
						ID: id, ConversationID: conversation, EventName: "event_a", Metadata: strings.Repeat("m", rng.IntN(300)),
						Created: position(int64(step)), Version: updated(int64(step)),
					}
					switch rng.IntN(40) {
					case 0: // fits no chunk
						core.Error = strings.Repeat("e", modelBytesMax/chunksMax)
					case 1, 2:
						core = event.Core{ID: id, Version: deleted(int64(step)), Deleted: true}
					}
					c.PutCore(p, core)
					m.cores[p][id] = core
					m.stored[id] = struct{}{}
				case 4:
					row := event.AliasRow{Alias: alias, ID: id, Version: created(int64(step)), Deleted: rng.IntN(4) == 0, Refused: rng.IntN(4) == 0}
					c.PutAlias(p, row)
					m.aliases[p][alias] = row
				case 5:
					if rng.IntN(100) == 0 {
						c.Drop(p)
						m.drop(p)
						// The next owner writes on, unseen.
						for range 20 {
							if other, id := eventOf(); other == p {
								m.stored[id] = struct{}{}
							}
						}
					}
				case 6:
					if rng.IntN(100) == 0 || !m.asked[p] {
						since := micros + rng.Int64N(modelEvents/2)*minuteMicros + rng.Int64N(minuteMicros)
						until := int64(0)
						if rng.IntN(2) == 0 {
							until = since + rng.Int64N(60)*minuteMicros + rng.Int64N(minuteMicros)
						}
						c.SetOccupancy(p, m.occupancy(since, until))
						m.asked[p] = true
					}
				case 7:
					row, ok := c.Alias(p, alias)
					if want, put := m.aliases[p][alias]; ok && (!put || row != want) {
						t.Fatalf("step %d: alias %q is %+v, want %+v, put: %t", step, alias, row, want, put)
					}
				default:
					core, ok := c.Core(p, id)
					want, put := m.cores[p][id]
					if ok && !put {
						t.Fatalf("step %d: a core row of %s, which was never put since the last drop", step, id)
					}
					if diff := cmp.Diff(want, core); ok && diff != "" {
						t.Fatalf("step %d: core row of %s (-want +got):\n%s", step, id, diff)
					}
					isAbsent := c.Absent(p, id)
					if _, stored := m.stored[id]; isAbsent && !ok && stored {
						t.Fatalf("step %d: %s counts as absent, and has a row that is not held", step, id)
					}
					if isAbsent && !m.asked[p] {
						t.Fatalf("step %d: %s counts as absent before the occupancy is known", step, id)
					}
					switch {
					case ok:
						held++
					case isAbsent:
						absent++
					case put:
						forgotten++
					}
				}
				if n := c.Bytes(); n > modelBytesMax {
					t.Fatalf("step %d: %d bytes, the bound is %d", step, n, modelBytesMax)
				}
			}
			check(t, c)
			if held == 0 || absent == 0 || forgotten == 0 {
				t.Errorf("%d rows were found held, %d ids absent, %d rows forgotten: the test shows too little", held, absent, forgotten)
			}
		})
	}
}
