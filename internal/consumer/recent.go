package consumer

import (
	"maps"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
)

const (
	// recentChunks is how many chunks the recent rows' memory is divided into:
	// it is forgotten by the chunk, and texts are shared within one.
	recentChunks = 16
	// recentChunkBytesMax keeps the number of an entry within 24 bits.
	recentChunkBytesMax = entryBytes << 24
	// keyBytes is a key's share of the maps, when they have just grown.
	keyBytes = 48
)

// recent holds the latest core rows and aliases that this consumer wrote or
// read, by partition, so that an update soon after its create reads nothing.
// What it holds of a partition is the truth for as long as nobody else writes
// that partition; drop forgets it when the partition is given up.
//
// Rows lie in chunks of memory that have no pointers, so that the garbage
// collector has nothing to do with them. A row goes to the newest chunk; where
// there is no room for another chunk, the oldest is forgotten. A row that is
// used when its turn comes near is moved to the newest.
type recent struct {
	bytesMax   int
	chunkBytes int
	partitions map[int32]*recentPartition
	// chunks are in the order of their age, the oldest first, whose number is
	// first. The last one is being filled.
	chunks []*chunk
	first  uint8
	texts  interner
	// keys is the sum of the partitions' keysMax.
	keys int
	// scratch is for the texts of a row that is read.
	scratch []byte
}

// place is where an entry is: its chunk's number (8 bits, which start again
// from 0 after 255) and its own in the chunk (24).
type place uint32

type recentPartition struct {
	cores map[event.ID]place
	// aliases are by hash.
	aliases map[uint64]place
	// keysMax is the most keys that the maps had since they were made.
	keysMax int
	// refusalsRead: the refused creates of the partition are in Consumer.refused.
	refusalsRead bool
	// firsts is nil until the database has said which minutes have rows.
	firsts *firsts
}

func newRecent(bytesMax int) *recent {
	return &recent{
		bytesMax: bytesMax, chunkBytes: min(bytesMax/recentChunks, recentChunkBytesMax),
		partitions: make(map[int32]*recentPartition), texts: newInterner(),
	}
}

// bytes is the memory of all that is held.
func (r *recent) bytes() int { return len(r.chunks)*r.chunkBytes + r.keys*keyBytes }

func (r *recent) partition(partition int32) *recentPartition {
	p := r.partitions[partition]
	if p == nil {
		p = &recentPartition{cores: make(map[event.ID]place), aliases: make(map[uint64]place)}
		r.partitions[partition] = p
	}
	return p
}

// drop forgets all of a partition. Its entries keep their memory until their
// chunks are forgotten.
func (r *recent) drop(partition int32) {
	if fault.Planted(fault.StaleCore) {
		return
	}
	if p := r.partitions[partition]; p != nil {
		r.keys -= p.keysMax
		delete(r.partitions, partition)
	}
}

// core returns what is held of the event.
func (r *recent) core(partition int32, id event.ID) (event.Core, bool) {
	p := r.partitions[partition]
	if p == nil {
		return event.Core{}, false
	}
	at, ok := p.cores[id]
	if !ok {
		return event.Core{}, false
	}
	c, i := r.at(at)
	core := r.readCore(c, i)
	if r.old(at) {
		r.putCore(partition, core)
	}
	return core, true
}

// readCore makes one string of all texts of the row.
func (r *recent) readCore(c *chunk, i int) event.Core {
	e := c.entry(i)
	conversation, metadata := c.conversation(e.conversation)
	all := append(r.scratch[:0], conversation...)
	all = append(all, metadata...)
	ends := [4]int{len(conversation), len(all)}
	for j, ref := range [...]uint32{e.name, e.failure} {
		text, _ := c.text(ref)
		all = append(all, text...)
		ends[2+j] = len(all)
	}
	alias, _ := c.text(e.alias)
	all = append(all, alias...)
	r.scratch = all
	texts := string(all)
	return event.Core{
		ID:             e.id,
		ConversationID: texts[:ends[0]],
		Metadata:       texts[ends[0]:ends[1]],
		EventName:      texts[ends[1]:ends[2]],
		Error:          texts[ends[2]:ends[3]],
		Alias:          texts[ends[3]:],
		Latency:        e.latency,
		HasLatency:     e.flags&flagLatency != 0,
		Created:        e.created,
		Version:        e.version,
		Deleted:        e.flags&flagDeleted != 0,
	}
}

func (r *recent) putCore(partition int32, core event.Core) {
	p := r.partition(partition)
	if at, ok := p.cores[core.ID]; ok && !r.old(at) && r.overwrite(at, &core) {
		return
	}
	c := r.fit(entryBytes + coreTextBytes(&core))
	if c == nil {
		delete(p.cores, core.ID)
		p.forget(core.ID)
		return
	}
	e := coreEntry(&core, partition)
	e.conversation = r.texts.conversation(c, core.ConversationID, core.Metadata)
	e.name = r.texts.text(c, core.EventName)
	e.failure = r.texts.text(c, core.Error)
	e.alias = r.texts.text(c, core.Alias)
	p.cores[core.ID] = r.append(c, &e)
	r.grown(p)
}

// coreEntry is the row without its texts.
func coreEntry(core *event.Core, partition int32) entry {
	e := entry{
		id: core.ID, created: core.Created, version: core.Version, latency: core.Latency, partition: partition,
	}
	if core.HasLatency {
		e.flags |= flagLatency
	}
	if core.Deleted {
		e.flags |= flagDeleted
	}
	return e
}

func coreTextBytes(core *event.Core) int {
	return textBytes(core.ConversationID) + textBytes(core.Metadata) +
		textBytes(core.EventName) + textBytes(core.Error) + textBytes(core.Alias)
}

// overwrite puts the row over the one that is held of the event, unless it has
// texts that the other one has not.
func (r *recent) overwrite(at place, core *event.Core) bool {
	c, i := r.at(at)
	held := c.entry(i)
	e := coreEntry(core, held.partition)
	if core.ConversationID != "" || core.Metadata != "" {
		if !c.isConversation(held.conversation, core.ConversationID, core.Metadata) {
			return false
		}
		e.conversation = held.conversation
	}
	for _, t := range [...]struct {
		ref  *uint32
		held uint32
		text string
	}{
		{&e.name, held.name, core.EventName}, {&e.failure, held.failure, core.Error}, {&e.alias, held.alias, core.Alias},
	} {
		if t.text == "" {
			continue
		}
		if text, _ := c.text(t.held); string(text) != t.text {
			return false
		}
		*t.ref = t.held
	}
	c.set(i, &e)
	return true
}

// alias returns what is held of the alias.
func (r *recent) alias(partition int32, alias string) (event.AliasRow, bool) {
	p := r.partitions[partition]
	if p == nil {
		return event.AliasRow{}, false
	}
	at, ok := p.aliases[r.texts.hash(alias)]
	if !ok {
		return event.AliasRow{}, false
	}
	c, i := r.at(at)
	e := c.entry(i)
	if text, _ := c.text(e.alias); string(text) != alias {
		return event.AliasRow{}, false
	}
	row := event.AliasRow{Alias: alias, ID: e.id, Version: e.version, Deleted: e.flags&flagDeleted != 0, Refused: e.flags&flagRefused != 0}
	if r.old(at) {
		r.putAlias(partition, row)
	}
	return row, true
}

func (r *recent) putAlias(partition int32, row event.AliasRow) {
	p := r.partition(partition)
	hash := r.texts.hash(row.Alias)
	delete(p.aliases, hash)
	c := r.fit(entryBytes + textBytes(row.Alias))
	if c == nil {
		return
	}
	e := entry{id: row.ID, version: row.Version, partition: partition, flags: flagAlias}
	if row.Deleted {
		e.flags |= flagDeleted
	}
	if row.Refused {
		e.flags |= flagRefused
	}
	e.alias = r.texts.text(c, row.Alias)
	p.aliases[hash] = r.append(c, &e)
	r.grown(p)
}

func (r *recent) at(at place) (c *chunk, i int) {
	return r.chunks[uint8(at>>24)-r.first], int(at & (1<<24 - 1))
}

// newest is the number of the newest chunk.
func (r *recent) newest() uint8 { return r.first + uint8(len(r.chunks)-1) }

// old reports whether the entry may be forgotten soon: the maps leave room for
// more than half of the chunks.
func (r *recent) old(at place) bool { return r.newest()-uint8(at>>24) >= recentChunks/2 }

// append adds the entry to the chunk, which is the newest.
func (r *recent) append(c *chunk, e *entry) place {
	i := c.entries
	c.entries++
	c.set(i, e)
	return place(r.newest())<<24 | place(i)
}

// fit returns the newest chunk, after making sure that it has room for so many
// bytes; nil where no chunk could have.
func (r *recent) fit(bytes int) *chunk {
	if bytes > r.chunkBytes {
		return nil
	}
	if n := len(r.chunks); n > 0 && r.chunks[n-1].room() >= bytes {
		return r.chunks[n-1]
	}
	var buf []byte
	for len(r.chunks) > 0 && r.bytes()+r.chunkBytes > r.bytesMax {
		buf = r.forgetOldest()
	}
	if buf == nil {
		buf = make([]byte, r.chunkBytes)
	}
	c := newChunk(buf)
	r.chunks = append(r.chunks, c)
	r.texts.reset()
	return c
}

// grown holds the bound after a key was added to the partition.
func (r *recent) grown(p *recentPartition) {
	if keys := len(p.cores) + len(p.aliases); keys > p.keysMax {
		r.keys += keys - p.keysMax
		p.keysMax = keys
	}
	for len(r.chunks) > 0 && r.bytes() > r.bytesMax {
		r.forgetOldest()
	}
}

// forgetOldest forgets the entries of the oldest chunk, and returns its memory.
func (r *recent) forgetOldest() []byte {
	c := r.chunks[0]
	for i := range c.entries {
		e := c.entry(i)
		if p := r.partitions[e.partition]; p != nil {
			r.forget(p, c, &e, place(r.first)<<24|place(i))
		}
	}
	r.chunks = append(r.chunks[:0], r.chunks[1:]...)
	r.first++
	for _, p := range r.partitions {
		r.keys -= p.trim()
	}
	return c.buf
}

// forget forgets the entry, unless it was not the latest of its key or is of an
// earlier assignment of the partition.
func (r *recent) forget(p *recentPartition, c *chunk, e *entry, at place) {
	if e.flags&flagAlias != 0 {
		text, _ := c.text(e.alias)
		if hash := r.texts.hash(string(text)); p.aliases[hash] == at {
			delete(p.aliases, hash)
		}
		return
	}
	if held, ok := p.cores[e.id]; ok && held == at {
		delete(p.cores, e.id)
		p.forget(e.id)
	}
}

func (p *recentPartition) forget(id event.ID) {
	if p.firsts != nil {
		p.firsts.forget(id)
	}
}

// trim makes the maps anew where they are nearly empty, because a map never
// shrinks. It returns by how much keysMax went down.
func (p *recentPartition) trim() int {
	keys := len(p.cores) + len(p.aliases)
	if keys > p.keysMax/4 {
		return 0
	}
	freed := p.keysMax - keys
	p.cores, p.aliases, p.keysMax = trimmed(p.cores), trimmed(p.aliases), keys
	return freed
}

func trimmed[K comparable](m map[K]place) map[K]place {
	n := make(map[K]place, len(m))
	maps.Copy(n, m)
	return n
}
