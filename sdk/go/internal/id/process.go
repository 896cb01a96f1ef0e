package id

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Bounds of [Process.Time].
const (
	// aheadMax is how far the times may run ahead of the system's clock, a
	// microsecond for each call.
	aheadMax = 5 * time.Second
	// backMax is the largest backward step of the system's clock that the times do
	// not follow.
	backMax = 10 * time.Second
)

// current is the state of this process. All clients share it, so that their ids
// are unique.
var current = NewProcess(randomCount()) //nolint:gochecknoglobals // the counter belongs to the process

// Current returns the state of this process.
func Current() *Process { return current }

// A Process mints the ids of a process. Ids are unique, and the ids of one
// conversation and time ascend in the order in which they are minted.
// sdk/spec/vectors/README.md has the algorithm. The methods may be called
// concurrently.
type Process struct {
	// count is the count of the last id, which has the low 38 bits.
	count atomic.Uint64
	// last is the last time that Time returned, in Unix microseconds.
	last atomic.Int64
	// server is set while the system's clock is known to be wrong.
	server atomic.Pointer[serverClock]
}

// serverClock is the server's time, and the system's time at the same moment.
type serverClock struct{ server, local time.Time }

// Follow sets the time to the server's from now on. If server is zero, it returns
// to the system's clock. local is the system's time of the call.
func (p *Process) Follow(server, local time.Time) {
	if server.IsZero() {
		p.server.Store(nil)
		return
	}
	p.server.Store(&serverClock{server, local})
}

// Now returns the time: local, which is the system's time of the call, or the
// server's time while the system's clock is wrong. The server's time is advanced
// by the monotonic clock, so that setting the system's clock does not change it.
func (p *Process) Now(local time.Time) time.Time {
	if c := p.server.Load(); c != nil {
		return c.server.Add(local.Sub(c.local))
	}
	return local
}

// NewProcess returns a process whose first id has the count first.
func NewProcess(first uint64) *Process {
	p := new(Process)
	p.count.Store(first - 1)
	return p
}

// randomCount returns the random number at which a process begins to count, so
// that two processes do not mint the same ids. It is below 2^37, so that at least
// 2^37 ids come before the 38-bit count wraps around.
func randomCount() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // its documentation says that it never fails
	return binary.LittleEndian.Uint64(b[:]) & (1<<(countBits-1) - 1)
}

// Mint mints the id of an event of the conversation at the given time, in Unix
// microseconds.
func (p *Process) Mint(conversationID string, unixMicros int64) string {
	return Mint(conversationID, unixMicros, p.count.Add(1))
}

// Time returns the time for an event without a timestamp, in Unix microseconds. It
// is the time of [Process.Now], but later than any time returned before, so that
// events sort in the order in which they were tracked. If the clock is set back by
// more than 10 s, it follows the clock. local is the system's time of the call.
func (p *Process) Time(local time.Time) int64 {
	micros := p.Now(local).UnixMicro()
	for {
		last := p.last.Load()
		next := micros
		switch ahead := last - micros; {
		case ahead < 0 || ahead > backMax.Microseconds():
		case ahead < aheadMax.Microseconds():
			next = last + 1
		default:
			next = last
		}
		if p.last.CompareAndSwap(last, next) {
			return next
		}
	}
}
