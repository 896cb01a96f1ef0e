package event

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	offsetBits     = 48
	generationBits = 14
	positionMask   = 1<<(offsetBits+generationBits) - 1

	// GenerationMax is the highest generation of a topic.
	GenerationMax = 1<<generationBits - 1
	// OffsetMax is the highest offset that a version can carry.
	OffsetMax = 1<<offsetBits - 1
)

// Position is a place in the log of one event: generation (14 bits) above
// offset (48 bits). All writes of an event share a partition within a
// generation, so that positions order them.
type Position uint64

// MakePosition puts a position together. It panics where either part is out of
// range, which no broker can bring about in the lifetime of a topic.
func MakePosition(generation int, offset int64) Position {
	if generation < 0 || generation > GenerationMax || offset < 0 || offset > OffsetMax {
		panic(fmt.Sprintf("BUG: position out of range: generation %d, offset %d", generation, offset))
	}
	return Position(uint64(generation)<<offsetBits | uint64(offset))
}

// Generation is that of the position's topic.
func (p Position) Generation() int { return int(p >> offsetBits) }

// Offset is the position's offset in its partition.
func (p Position) Offset() int64 { return int64(p & OffsetMax) }

// Class is the kind of write that a version came from. A higher class always
// outranks a lower one.
type Class uint8

// The classes, in rising rank.
const (
	ClassCreate Class = iota
	ClassUpdate
	ClassDelete
)

// Version orders the rows of one key, the highest being the truth: class
// (2 bits) above the position (62 bits). A create carries the complement of its
// position, so that the first create of an id has the highest version.
type Version uint64

// MakeVersion is the version of a row written by a write of the class at the position.
func MakeVersion(class Class, at Position) Version {
	if class == ClassCreate {
		at = ^at & positionMask
	}
	return Version(uint64(class)<<(offsetBits+generationBits) | uint64(at))
}

// Class is the kind of write that the version came from.
func (v Version) Class() Class { return Class(v >> (offsetBits + generationBits)) }

// Position is the place of that write in the log.
func (v Version) Position() Position {
	at := Position(v) & positionMask
	if v.Class() == ClassCreate {
		at = ^at & positionMask
	}
	return at
}

// Receipt names a write's place in the log. Callers treat its text as opaque.
type Receipt struct {
	Generation int
	Partition  int32
	Offset     int64
}

// String is the receipt's text, which [ParseReceipt] reads.
func (r Receipt) String() string { return string(r.AppendText(nil)) }

// AppendText appends the receipt's text to b.
func (r Receipt) AppendText(b []byte) []byte {
	b = strconv.AppendInt(b, int64(r.Generation), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	b = append(b, '.')
	return strconv.AppendInt(b, r.Offset, 10)
}

// ParseReceipt reads a receipt's text. The error is an [*Error] that names the
// field "receipt".
func ParseReceipt(s string) (Receipt, error) {
	bad := Errorf(CodeInvalidValue, "receipt", "is not a receipt of this server")
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Receipt{}, bad
	}
	var n [3]int64
	for i, limit := range [...]int64{GenerationMax, 1<<31 - 1, OffsetMax} {
		v, err := strconv.ParseInt(parts[i], 10, 64)
		if err != nil || v < 0 || v > limit || strconv.FormatInt(v, 10) != parts[i] {
			return Receipt{}, bad
		}
		n[i] = v
	}
	return Receipt{Generation: int(n[0]), Partition: int32(n[1]), Offset: n[2]}, nil
}

// Ack is the log's answer to one write: its receipt, or the error that says why
// there is none. Err wraps [ErrUnavailable] or [ErrWritesStopped], or is an [*Error].
type Ack struct {
	Receipt Receipt
	Err     error
}
