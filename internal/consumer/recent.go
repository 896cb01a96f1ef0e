package consumer

import "github.com/sluicehq/sluice/internal/event"

// recent holds the latest core rows and aliases that this consumer wrote or
// read, by partition, so that an update soon after its create reads nothing.
// What it holds of a partition is the truth for as long as nobody else writes
// that partition; drop forgets it when the partition is given up.
//
// Each partition has two generations of entries: a full young one becomes the
// old one, and what the old one held is forgotten unless it was used meanwhile.
type recent struct {
	bytesMax   int
	partitions map[int32]*recentPartition
	// total is what all entries cost, in bytes, estimated.
	total int
}

type recentPartition struct {
	young, old generation
	// firsts is nil until the partition's first batch.
	firsts *firsts
}

// forget empties a generation.
func (p *recentPartition) forget(g *generation) {
	if p.firsts != nil {
		p.firsts.forget(g)
	}
	*g = newGeneration()
}

type generation struct {
	cores   map[event.ID]event.Core
	aliases map[string]event.AliasRow
	bytes   int
}

// coreBytes is what an entry costs beside its strings: the row, its key, and
// its share of a map that is between half and fully loaded.
const coreBytes = 320

// aliasBytes is the same for an alias.
const aliasBytes = 160

func newRecent(bytesMax int) *recent {
	return &recent{bytesMax: bytesMax, partitions: make(map[int32]*recentPartition)}
}

func newGeneration() generation {
	return generation{cores: make(map[event.ID]event.Core), aliases: make(map[string]event.AliasRow)}
}

// drop forgets all of a partition.
func (r *recent) drop(partition int32) {
	if p := r.partitions[partition]; p != nil {
		r.total -= p.young.bytes + p.old.bytes
		delete(r.partitions, partition)
	}
}

// bytes is what all entries cost, in bytes, estimated.
func (r *recent) bytes() int { return r.total }

func (r *recent) partition(partition int32) *recentPartition {
	p := r.partitions[partition]
	if p == nil {
		p = &recentPartition{young: newGeneration(), old: newGeneration()}
		r.partitions[partition] = p
	}
	return p
}

// core returns what is held of the event.
func (r *recent) core(partition int32, id event.ID) (event.Core, bool) {
	p := r.partitions[partition]
	if p == nil {
		return event.Core{}, false
	}
	if core, ok := p.young.cores[id]; ok {
		return core, true
	}
	core, ok := p.old.cores[id]
	if ok {
		r.putCore(partition, core)
	}
	return core, ok
}

func (r *recent) putCore(partition int32, core event.Core) {
	p := r.partition(partition)
	cost := coreCost(&core)
	if held, ok := p.young.cores[core.ID]; ok {
		cost -= coreCost(&held)
	}
	p.young.cores[core.ID] = core
	p.young.bytes += cost
	r.total += cost
	r.age(p)
}

func coreCost(core *event.Core) int {
	return coreBytes + len(core.ConversationID) + len(core.Metadata) + len(core.Error) + len(core.Alias)
}

// alias returns what is held of the alias.
func (r *recent) alias(partition int32, alias string) (event.AliasRow, bool) {
	p := r.partitions[partition]
	if p == nil {
		return event.AliasRow{}, false
	}
	if row, ok := p.young.aliases[alias]; ok {
		return row, true
	}
	row, ok := p.old.aliases[alias]
	if ok {
		r.putAlias(partition, row)
	}
	return row, ok
}

func (r *recent) putAlias(partition int32, row event.AliasRow) {
	p := r.partition(partition)
	if _, ok := p.young.aliases[row.Alias]; !ok {
		p.young.bytes += aliasBytes + len(row.Alias)
		r.total += aliasBytes + len(row.Alias)
	}
	p.young.aliases[row.Alias] = row
	r.age(p)
}

// age starts a new young generation when the present one has its share: half
// of the bound, divided among the partitions held. Partitions that were there
// when there were fewer may hold more than that: while all together are above
// the bound, the one that holds most forgets a generation.
func (r *recent) age(p *recentPartition) {
	if p.young.bytes > r.bytesMax/(2*len(r.partitions)) {
		r.total -= p.old.bytes
		p.forget(&p.old)
		p.old, p.young = p.young, p.old
	}
	for r.total > r.bytesMax {
		most := p
		for _, q := range r.partitions {
			if q.young.bytes+q.old.bytes > most.young.bytes+most.old.bytes {
				most = q
			}
		}
		g := &most.old
		if g.bytes == 0 {
			g = &most.young
		}
		r.total -= g.bytes
		most.forget(g)
	}
}
