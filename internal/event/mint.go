package event

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// processIDs mints the ids of this process. There is one, because an id must
// be unique within the process, whatever part of it mints.
var processIDs = newMinter(randomCount()) //nolint:gochecknoglobals // the counter belongs to the process

// minter mints ids with low bits that count up: ids of one time and
// conversation ascend as they are minted, and no two are alike. Its methods may
// be called concurrently.
type minter struct {
	// count is that of the last id. Ids have its low 38 bits, so that after
	// 2^38 ids the counter starts again at 0; nothing else ever resets it.
	count atomic.Uint64
}

// newMinter returns a minter whose first id has the count first.
func newMinter(first uint64) *minter {
	m := new(minter)
	m.count.Store(first - 1)
	return m
}

// randomCount is where a process begins to count: at a cryptographically random
// number, so that two processes that mint at the same time for the same
// conversation do not meet. The top one of the 38 bits is clear, so that a
// process mints 2^37 ids, 137 billion, before its counter starts again at 0.
func randomCount() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return binary.LittleEndian.Uint64(b[:]) & (1<<(countBits-1) - 1)
}

func (m *minter) mint(micros int64, conversationID string) ID {
	return MakeID(micros, ConversationHash(conversationID), m.count.Add(1))
}

// How far the times of a [Clock] may be ahead of the system's clock.
const (
	// ClockAheadMax is how far a [Clock] goes on by a microsecond for each time
	// it gives out. A process that receives more than a million writes a second
	// reaches it.
	ClockAheadMax = 5 * time.Second
	// ClockBackMax is the largest step back of the system's clock that a [Clock]
	// does not follow.
	ClockBackMax = 10 * time.Second
)

// A Clock gives out the times at which writes are received: the system's time
// in whole microseconds, but each at least a microsecond after the one before,
// so that events without a timestamp sort in the order in which they came. The
// zero value is ready for use, and its method may be called concurrently.
//
// Where the system's clock stands still or was set back, the times go on by a
// microsecond each until they are [ClockAheadMax] ahead of it. Then they stand
// still until it has caught up, and the counts of the ids alone tell the order
// of a conversation's events. A step back of more than [ClockBackMax] is
// followed at once: true times are worth more than the order across such a step.
type Clock struct{ last atomic.Int64 }

// Next returns the time for a write received at now, which must be read from
// the system's clock for this call.
func (c *Clock) Next(now time.Time) time.Time {
	micros := now.UnixMicro()
	for {
		last := c.last.Load()
		next := micros
		switch ahead := last - micros; {
		case ahead < 0 || ahead > ClockBackMax.Microseconds():
		case ahead < ClockAheadMax.Microseconds():
			next = last + 1
		default:
			next = last
		}
		if c.last.CompareAndSwap(last, next) {
			return time.UnixMicro(next)
		}
	}
}
