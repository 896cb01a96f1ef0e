package api

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// smallestBytes is the capacity of the smallest buffers: enough for an
	// event of a few paragraphs.
	smallestBytes = 8 << 10
	// classes is the number of buffer sizes that are kept, each twice the one
	// before: 8 KiB to 32 MiB.
	classes = 13
)

// budget bounds the bytes that requests hold at once.
type budget struct {
	used atomic.Int64
	max  int64
}

// take reserves n bytes, or reports false.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.max {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// buffer is memory from a [buffers].
type buffer struct {
	b     []byte
	class int // of the pool it goes back to; classes where it goes to none
}

// buffers hands out memory whose sum the budget bounds.
type buffers struct {
	budget budget
	pools  [classes]sync.Pool
}

// get returns an empty buffer of at least n bytes capacity, or nil when the
// budget is used up.
func (p *buffers) get(n int) *buffer {
	class := 0
	if n > smallestBytes {
		class = bits.Len(uint(n-1)) - bits.Len(uint(smallestBytes-1))
	}
	size := n
	if class < classes {
		size = smallestBytes << class
	} else {
		class = classes
	}
	if !p.budget.take(int64(size)) {
		return nil
	}
	if class < classes {
		if buf, ok := p.pools[class].Get().(*buffer); ok {
			return buf
		}
	}
	return &buffer{b: make([]byte, 0, size), class: class}
}

// put takes a buffer back, which must not be used afterwards. nil is fine.
func (p *buffers) put(buf *buffer) {
	if buf == nil {
		return
	}
	p.budget.give(int64(cap(buf.b)))
	if buf.class < classes {
		buf.b = buf.b[:0]
		p.pools[buf.class].Put(buf)
	}
}

// grow returns a buffer of at least n bytes capacity with the contents of buf,
// which goes back; or nil when the budget is used up, and buf stays.
func (p *buffers) grow(buf *buffer, n int) *buffer {
	larger := p.get(n)
	if larger == nil {
		return nil
	}
	larger.b = append(larger.b, buf.b...)
	p.put(buf)
	return larger
}
