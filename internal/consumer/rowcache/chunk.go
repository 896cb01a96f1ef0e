package rowcache

import (
	"encoding/binary"
	"hash/maphash"
	"math"

	"github.com/sluicehq/sluice/internal/event"
)

// entryBytes is the size of an encoded entry.
const entryBytes = 64

// entry is a core row or an alias row as a chunk has it: its fields of fixed size,
// and references to its texts in the chunk. The reference 0 is an empty text.
type entry struct {
	id        event.ID
	created   event.Position
	version   event.Version
	latency   float64
	partition int32
	// conversation is the reference of the conversation id, which the metadata follows.
	conversation, name, failure, alias uint32
	flags                              uint8
}

const (
	flagLatency uint8 = 1 << iota
	flagDeleted
	// flagAlias marks an alias row.
	flagAlias
	flagRefused
)

// chunk is a piece of memory that entries fill from the front and texts from
// the back. It has no pointers, and needs nothing outside of it to be read.
type chunk struct {
	buf []byte
	// entries is the number of entries, texts where the latest text begins.
	entries, texts int
}

func newChunk(buf []byte) *chunk { return &chunk{buf: buf, texts: len(buf)} }

// room is how many bytes are left.
func (c *chunk) room() int { return c.texts - c.entries*entryBytes }

func (c *chunk) set(i int, e *entry) {
	b := c.buf[i*entryBytes:][:entryBytes]
	copy(b, e.id[:])
	binary.LittleEndian.PutUint64(b[16:], uint64(e.created))
	binary.LittleEndian.PutUint64(b[24:], uint64(e.version))
	binary.LittleEndian.PutUint64(b[32:], math.Float64bits(e.latency))
	binary.LittleEndian.PutUint32(b[40:], uint32(e.partition))
	binary.LittleEndian.PutUint32(b[44:], e.conversation)
	binary.LittleEndian.PutUint32(b[48:], e.name)
	binary.LittleEndian.PutUint32(b[52:], e.failure)
	binary.LittleEndian.PutUint32(b[56:], e.alias)
	b[60] = e.flags
}

func (c *chunk) entry(i int) entry {
	b := c.buf[i*entryBytes:][:entryBytes]
	return entry{
		id:           event.ID(b[:16]),
		created:      event.Position(binary.LittleEndian.Uint64(b[16:])),
		version:      event.Version(binary.LittleEndian.Uint64(b[24:])),
		latency:      math.Float64frombits(binary.LittleEndian.Uint64(b[32:])),
		partition:    int32(binary.LittleEndian.Uint32(b[40:])),
		conversation: binary.LittleEndian.Uint32(b[44:]),
		name:         binary.LittleEndian.Uint32(b[48:]),
		failure:      binary.LittleEndian.Uint32(b[52:]),
		alias:        binary.LittleEndian.Uint32(b[56:]),
		flags:        b[60],
	}
}

// text returns the text at ref and the reference of the text after it.
func (c *chunk) text(ref uint32) (text []byte, after uint32) {
	if ref == 0 {
		return nil, 0
	}
	n, size := binary.Uvarint(c.buf[ref:])
	end := ref + uint32(size) + uint32(n)
	return c.buf[ref+uint32(size) : end], end
}

// conversation returns the conversation id at ref and the metadata after it.
func (c *chunk) conversation(ref uint32) (id, metadata []byte) {
	id, after := c.text(ref)
	metadata, _ = c.text(after)
	return id, metadata
}

// isConversation reports whether the conversation id and metadata at ref are these.
func (c *chunk) isConversation(ref uint32, id, metadata string) bool {
	heldID, heldMetadata := c.conversation(ref)
	return string(heldID) == id && string(heldMetadata) == metadata
}

// textBytes is the most bytes that a text takes in a chunk.
func textBytes(s string) int { return binary.MaxVarintLen32 + len(s) }

// add puts the texts, in their order, in front of the texts that the chunk has, and
// returns the reference of the first. There must be room.
func (c *chunk) add(texts ...string) uint32 {
	for i := len(texts) - 1; i >= 0; i-- {
		var size [binary.MaxVarintLen32]byte
		n := binary.PutUvarint(size[:], uint64(len(texts[i])))
		c.texts -= n + len(texts[i])
		copy(c.buf[c.texts:], size[:n])
		copy(c.buf[c.texts+n:], texts[i])
	}
	return uint32(c.texts)
}

// interner finds texts that the newest chunk has already. It saves memory, because
// the events of a conversation come together and mostly have the same metadata.
type interner struct {
	seed maphash.Seed
	refs map[uint64]uint32
}

func newInterner() interner {
	return interner{seed: maphash.MakeSeed(), refs: make(map[uint64]uint32)}
}

func (in *interner) hash(s string) uint64 { return maphash.String(in.seed, s) }

// reset forgets all texts, because another chunk is the newest.
func (in *interner) reset() { clear(in.refs) }

// text returns the reference of s in the chunk, to which s is added if need be.
func (in *interner) text(c *chunk, s string) uint32 {
	if s == "" {
		return 0
	}
	hash := in.hash(s)
	if ref, ok := in.refs[hash]; ok {
		if text, _ := c.text(ref); string(text) == s {
			return ref
		}
	}
	ref := c.add(s)
	in.refs[hash] = ref
	return ref
}

// conversation returns the reference in the chunk of a conversation id that the
// metadata follows.
func (in *interner) conversation(c *chunk, id, metadata string) uint32 {
	if id == "" && metadata == "" {
		return 0
	}
	// The complement keeps it apart from a text of the same bytes.
	hash := ^in.hash(id)
	if ref, ok := in.refs[hash]; ok && c.isConversation(ref, id, metadata) {
		return ref
	}
	ref := c.add(id, metadata)
	in.refs[hash] = ref
	return ref
}
