package event

import (
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Limits of a minted id's time, and so of an event's timestamp.
const (
	// TimestampMin is the earliest timestamp, 2000-01-01T00:00:00Z, in Unix microseconds.
	TimestampMin int64 = 946_684_800_000_000
	// TimestampAhead is how far after its receipt an event's timestamp may lie.
	TimestampAhead = 24 * time.Hour
	// AliasBytesMax is the longest id of a caller's own, in bytes.
	AliasBytesMax = 128

	// countBits is how many low bits of an id its process counts in.
	countBits = 38
	hashBits  = 24
	// internalBit marks, in the 12 microsecond bits (0-999 needs 10 of them),
	// the id behind an alias. No public id has it, so that only the alias can
	// ever name its event.
	internalBit = 0x400
)

// ID is a minted id: a UUIDv8 (RFC 9562 §5.8) that locates its own row. From
// the most significant bit: 48 bits Unix milliseconds of the event's
// timestamp, version 8, 12 bits microseconds within that millisecond (0-999),
// the variant, 24 bits [ConversationHash], 38 bits of a counter that begins at
// a random number in each process.
type ID [16]byte

// ConversationHash is the part of a conversation's id that its events' ids and
// sort keys carry: the top 24 bits of XXH64 with seed 0.
func ConversationHash(conversationID string) uint32 {
	return uint32(xxhash.Sum64String(conversationID) >> (64 - hashBits))
}

// NewID mints the id of an event of the conversation at the time, given in
// Unix microseconds. It may be called concurrently.
//
// No two ids of one process are alike, and of one conversation and time each is
// above those minted before it. See [Clock] for times that grow too.
func NewID(micros int64, conversationID string) ID {
	return processIDs.mint(micros, conversationID)
}

// MakeID puts an id together: the time in Unix microseconds, the low 24 bits
// of hash and the low 38 bits of count. The shared test vectors pin its bytes.
func MakeID(micros int64, hash uint32, count uint64) ID {
	ms, us := micros/1000, micros%1000
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|8<<12|uint64(us))
	binary.BigEndian.PutUint64(id[8:], 2<<62|uint64(hash&(1<<hashBits-1))<<countBits|count&(1<<countBits-1))
	return id
}

// AsInternal returns the id with the mark of ids that stand behind an alias.
func (id ID) AsInternal() ID {
	id[6] |= internalBit >> 8
	return id
}

// IsInternal reports whether the id stands behind an alias. Such an id is
// never shown and never accepted from a caller.
func (id ID) IsInternal() bool { return id[6]&(internalBit>>8) != 0 }

// IsZero reports whether the id is the zero value, which is no id.
func (id ID) IsZero() bool { return id == ID{} }

// Micros is the event's timestamp in Unix microseconds.
func (id ID) Micros() int64 {
	hi := binary.BigEndian.Uint64(id[:8])
	return int64(hi>>16)*1000 + int64(hi&(internalBit-1))
}

// Time is the event's timestamp, in UTC.
func (id ID) Time() time.Time { return time.UnixMicro(id.Micros()).UTC() }

// ConversationHash is the hash that the id carries.
func (id ID) ConversationHash() uint32 {
	return uint32(binary.BigEndian.Uint64(id[8:]) >> countBits & (1<<hashBits - 1))
}

// String is the canonical text: lower-case hexadecimal in groups of 8-4-4-4-12.
func (id ID) String() string {
	var b [36]byte
	return string(id.AppendText(b[:0]))
}

// AppendText appends the canonical text of the id to b.
func (id ID) AppendText(b []byte) []byte {
	for i, part := range [...][2]int{{0, 4}, {4, 6}, {6, 8}, {8, 10}, {10, 16}} {
		if i > 0 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[part[0]:part[1]])
	}
	return b
}

// valid reports whether the bytes are a UUIDv8 whose parts are in range;
// whether the time is too far ahead depends on when it is asked, and is the
// caller's to check.
func (id ID) valid() bool {
	hi := binary.BigEndian.Uint64(id[:8])
	return hi>>12&0xf == 8 && id[8]>>6 == 2 && hi&(internalBit-1) < 1000 && hi&0x800 == 0 &&
		id.Micros() >= TimestampMin
}

// Ref is how a caller names an event: by its minted id, or by an alias. One of
// the two is set.
type Ref struct {
	ID    ID
	Alias string
}

// String is the id as the caller knows it.
func (r Ref) String() string {
	if r.Alias != "" {
		return r.Alias
	}
	return r.ID.String()
}

// ParseRef reads an id given by a caller. A UUIDv8 is a minted id, and must be
// canonical and in range (to [TimestampAhead] after now); anything else is an
// alias of 1 to [AliasBytesMax] printable ASCII bytes. The error is an
// [*Error] that names the field "id".
func ParseRef(s string, now time.Time) (Ref, error) {
	if isUUIDv8(s) {
		id, err := parseCanonical(s)
		if err != nil {
			return Ref{}, err
		}
		if id.IsInternal() || !id.valid() {
			return Ref{}, Errorf(CodeInvalidValue, "id", "is a UUIDv8 that Sluice did not mint: its microseconds are above 999 or its time is before the year 2000")
		}
		if id.Micros() > now.Add(TimestampAhead).UnixMicro() {
			return Ref{}, Errorf(CodeInvalidValue, "id", "carries a time that is more than 24 h ahead")
		}
		return Ref{ID: id}, nil
	}
	if err := checkAlias(s); err != nil {
		return Ref{}, err
	}
	return Ref{Alias: s}, nil
}

func checkAlias(s string) error {
	if s == "" {
		return Errorf(CodeRequired, "id", "must not be empty")
	}
	if len(s) > AliasBytesMax {
		return Errorf(CodeTooLarge, "id", "is longer than %d bytes", AliasBytesMax)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return Errorf(CodeInvalidValue, "id", "has a byte at position %d that is not printable ASCII", i)
		}
	}
	return nil
}

// isUUIDv8 reports whether s is a UUIDv8 in the hyphenated form, in any case.
func isUUIDv8(s string) bool {
	if len(s) != 36 || s[14] != '8' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	switch s[19] {
	case '8', '9', 'a', 'b', 'A', 'B':
		return true
	}
	return false
}

func parseCanonical(s string) (ID, error) {
	var id ID
	var digits [32]byte
	n := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '-':
		case c >= 'A' && c <= 'F':
			return ID{}, Errorf(CodeInvalidValue, "id", "is a UUIDv8 with upper-case digits; write it in lower case")
		default:
			digits[n] = c
			n++
		}
	}
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return ID{}, Errorf(CodeInvalidValue, "id", "is not hexadecimal")
	}
	return id, nil
}
