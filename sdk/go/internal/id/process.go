package id

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Limits of the times that [Process.Time] gives out.
const (
	// aheadMax is how far they go on by a microsecond each while the system's
	// clock is behind them.
	aheadMax = 5 * time.Second
	// backMax is the largest step back of the system's clock that they do not
	// follow.
	backMax = 10 * time.Second
)

// current is the process that this program is. All clients share it, so that
// their ids differ.
var current = NewProcess(randomCount()) //nolint:gochecknoglobals // the counter belongs to the process

// Current mints for this process.
func Current() *Process { return current }

// A Process mints ids that are unique, and that ascend as they are minted if
// they are of one conversation and time. The shared test vectors say how. Its
// methods may be called concurrently.
type Process struct {
	// count is that of the last id, which has the low 38 bits of it.
	count atomic.Uint64
	// last is the last time given out, in Unix microseconds.
	last atomic.Int64
	// server is set while the system's clock is known to be wrong.
	server atomic.Pointer[serverClock]
}

// serverClock is what the server's clock showed, and the system's then.
type serverClock struct{ server, local time.Time }

// Follow has the time be the server's from now on, or the system's again where
// server is zero. local is the time of this call by the system.
func (p *Process) Follow(server, local time.Time) {
	if server.IsZero() {
		p.server.Store(nil)
		return
	}
	p.server.Store(&serverClock{server, local})
}

// Now is the time, given the system's, which it is unless that is known to be
// wrong. What the system's clock is set to meanwhile does not matter.
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

// randomCount is where a process begins to count, so that two processes do not
// meet. It is below 2^37, so that as many ids come before the count starts again.
func randomCount() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	return binary.LittleEndian.Uint64(b[:]) & (1<<(countBits-1) - 1)
}

// Mint makes the id of an event of the conversation at the time, given in Unix
// microseconds.
func (p *Process) Mint(conversationID string, unixMicros int64) string {
	return Mint(conversationID, unixMicros, p.count.Add(1))
}

// Time is the time of an event that has no timestamp, in Unix microseconds: that
// of [Process.Now] for local, which must be read for this call, but later than the time given out before. It
// follows a clock that is set back by more than 10 s.
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
