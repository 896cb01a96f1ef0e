// Package rowcache keeps recent rows in memory, and knows ids that have none, so
// that the consumer seldom has to look anything up.
package rowcache

import (
	"maps"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// chunksMax is how many chunks the memory is divided into. Rows are forgotten by
	// the chunk, and the rows of a chunk share equal texts.
	chunksMax = 16
	// chunkBytesMax bounds a chunk so that the number of an entry has 24 bits.
	chunkBytesMax = entryBytes << 24
	// keyBytes is what a key takes of the maps when they have just grown.
	keyBytes = 48
)

// A Cache holds recent core rows and alias rows of the partitions that this
// consumer has, and knows of ids that have no row, so that most writes need no
// look-up in the database. It takes the rows that the consumer wrote or read, by
// partition. The caller promises that nobody else writes a partition from its
// first row in the cache until [Cache.Drop].
//
// The cache promises:
//   - A row that it returns is the last one that was put of its key since the
//     last Drop of the partition.
//   - [Cache.Absent] never says that an id is absent which may have a row that the
//     cache does not hold.
//   - It takes at most the memory that it was made with. Beyond that, rows that
//     were neither put nor asked for lately are forgotten.
//
// A Cache must not be used concurrently.
//
// Rows lie in chunks of memory that have no pointers, so that they cost the garbage
// collector nothing. A row goes to the newest chunk. Where there is no room for
// another chunk, the oldest is forgotten with all its rows. A row that is asked for
// when it is among the older half moves to the newest chunk.
type Cache struct {
	bytesMax   int
	chunkBytes int
	partitions map[int32]*partitionRows
	// chunks are in the order of their age. The oldest has the number first, and the
	// last one is being filled.
	chunks []*chunk
	first  uint8
	texts  interner
	// keys is the sum of the partitions' keysMax.
	keys int
	// scratch is for the texts of a row that is read.
	scratch []byte
}

// place is where an entry is: the number of its chunk (8 bits; after 255 comes 0)
// and its own number within the chunk (24 bits).
type place uint32

// partitionRows finds the entries of one partition, and the ids without a row.
type partitionRows struct {
	cores map[event.ID]place
	// aliases has the hashes of the aliases as keys.
	aliases map[uint64]place
	// keysMax is the most keys that the maps had since they were made.
	keysMax int
	// absent is nil until SetOccupancy is called.
	absent *absent
}

// New returns an empty cache that takes at most bytesMax bytes.
func New(bytesMax int) *Cache {
	return &Cache{
		bytesMax: bytesMax, chunkBytes: min(bytesMax/chunksMax, chunkBytesMax),
		partitions: make(map[int32]*partitionRows), texts: newInterner(),
	}
}

// Bytes is the memory that the cache takes, estimated.
func (r *Cache) Bytes() int { return len(r.chunks)*r.chunkBytes + r.keys*keyBytes }

func (r *Cache) rowsOf(partition int32) *partitionRows {
	p := r.partitions[partition]
	if p == nil {
		p = &partitionRows{cores: make(map[event.ID]place), aliases: make(map[uint64]place)}
		r.partitions[partition] = p
	}
	return p
}

// Drop forgets all that the cache knows of a partition. The memory of its entries
// is free only when their chunks are forgotten.
func (r *Cache) Drop(partition int32) {
	if p := r.partitions[partition]; p != nil {
		r.keys -= p.keysMax
		delete(r.partitions, partition)
	}
}

// Core returns the core row of the event, if the cache holds it.
func (r *Cache) Core(partition int32, id event.ID) (event.Core, bool) {
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
		r.PutCore(partition, core)
	}
	return core, true
}

// readCore reads a core row, whose texts share one string.
func (r *Cache) readCore(c *chunk, i int) event.Core {
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

// PutCore puts the latest core row of an event, which the database has.
func (r *Cache) PutCore(partition int32, core event.Core) {
	p := r.rowsOf(partition)
	if at, ok := p.cores[core.ID]; ok && !r.old(at) && r.overwrite(at, &core) {
		return
	}
	c := r.fit(entryBytes + coreTextBytes(&core))
	if c == nil {
		delete(p.cores, core.ID)
		p.absent.forgotten(core.ID)
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

// overwrite replaces the entry of the event's core row where it is, unless the new
// row has texts that the old one does not have.
func (r *Cache) overwrite(at place, core *event.Core) bool {
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

// SetOccupancy says which minutes have rows in the database, of this partition or
// any other. It must be called when no write of the partition is under way: what
// the database has then, and what is put from then on, must be all rows.
func (r *Cache) SetOccupancy(partition int32, o event.Occupancy) {
	r.rowsOf(partition).absent = newAbsent(o)
}

// Absent reports whether the database certainly has no core row of the event that
// this cache does not hold. Call it after [Cache.Core] found nothing. False means
// that it is not known, as it is of every id before [Cache.SetOccupancy]. A wrong
// true would have an update of an existing event refused.
func (r *Cache) Absent(partition int32, id event.ID) bool {
	p := r.partitions[partition]
	return p != nil && p.absent.contains(id)
}

// Alias returns the row of the alias, if the cache holds it.
func (r *Cache) Alias(partition int32, alias string) (event.AliasRow, bool) {
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
		r.PutAlias(partition, row)
	}
	return row, true
}

// PutAlias puts the latest row of an alias, which the database has.
func (r *Cache) PutAlias(partition int32, row event.AliasRow) {
	p := r.rowsOf(partition)
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

func (r *Cache) at(at place) (c *chunk, i int) {
	return r.chunks[uint8(at>>24)-r.first], int(at & (1<<24 - 1))
}

// newest is the number of the newest chunk.
func (r *Cache) newest() uint8 { return r.first + uint8(len(r.chunks)-1) }

// old reports whether the entry may be forgotten soon. It is not while its chunk
// is among the newest half: the maps leave room for more chunks than that.
func (r *Cache) old(at place) bool { return r.newest()-uint8(at>>24) >= chunksMax/2 }

// append adds the entry to the chunk, which is the newest.
func (r *Cache) append(c *chunk, e *entry) place {
	i := c.entries
	c.entries++
	c.set(i, e)
	return place(r.newest())<<24 | place(i)
}

// fit returns the newest chunk, which has room for so many bytes or is made for
// them; nil where they fit into no chunk.
func (r *Cache) fit(bytes int) *chunk {
	if bytes > r.chunkBytes {
		return nil
	}
	if n := len(r.chunks); n > 0 && r.chunks[n-1].room() >= bytes {
		return r.chunks[n-1]
	}
	var buf []byte
	for len(r.chunks) > 0 && r.Bytes()+r.chunkBytes > r.bytesMax {
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

// grown counts a key that was added to the partition, and keeps to the bound.
func (r *Cache) grown(p *partitionRows) {
	if keys := len(p.cores) + len(p.aliases); keys > p.keysMax {
		r.keys += keys - p.keysMax
		p.keysMax = keys
	}
	for len(r.chunks) > 0 && r.Bytes() > r.bytesMax {
		r.forgetOldest()
	}
}

// forgetOldest forgets the entries of the oldest chunk, and returns its memory.
func (r *Cache) forgetOldest() []byte {
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

// forget removes the entry from the maps, unless they have a later entry of its key
// or the entry is from before the last Drop of its partition.
func (r *Cache) forget(p *partitionRows, c *chunk, e *entry, at place) {
	if e.flags&flagAlias != 0 {
		text, _ := c.text(e.alias)
		if hash := r.texts.hash(string(text)); p.aliases[hash] == at {
			delete(p.aliases, hash)
		}
		return
	}
	if held, ok := p.cores[e.id]; ok && held == at {
		delete(p.cores, e.id)
		p.absent.forgotten(e.id)
	}
}

// trim makes the maps anew where they are nearly empty, because a map never
// shrinks. It returns by how much keysMax went down.
func (p *partitionRows) trim() int {
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
