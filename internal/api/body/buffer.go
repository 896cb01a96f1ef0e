package body

import (
	"math/bits"
	"sync"
)

const (
	// smallestBytes is the capacity of the smallest buffers: enough for an
	// event of a few paragraphs.
	smallestBytes = 8 << 10
	// classes is the number of buffer sizes that are kept, each twice the one
	// before: 8 KiB to 8 MiB. Larger ones are made as large as they need to be.
	classes = 11
)

// Buffer is memory that a body was read into, or inflated into. It belongs to a
// [Reader], which takes it back.
type Buffer struct {
	b []byte
	// class is the number of the pool that the buffer goes back to; classes for that of
	// large ones.
	class int
}

// buffers hands out memory whose sum a share of the budget bounds.
type buffers struct {
	share *Share
	pools [classes]sync.Pool
	// large has buffers that are larger than those of the last class. Without it,
	// a few compressed bodies after each other make garbage of 16 MiB each.
	large sync.Pool
}

// get returns an empty buffer of at least n bytes capacity, or nil when the
// budget is used up.
func (p *buffers) get(n int) *Buffer {
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
	if class == classes {
		if buf, ok := p.large.Get().(*Buffer); ok && cap(buf.b) >= n {
			if !p.share.Take(int64(cap(buf.b))) {
				p.large.Put(buf)
				return nil
			}
			return buf
		}
	}
	if !p.share.Take(int64(size)) {
		return nil
	}
	if class < classes {
		if buf, ok := p.pools[class].Get().(*Buffer); ok {
			return buf
		}
	}
	return &Buffer{b: make([]byte, 0, size), class: class}
}

// put takes a buffer back, which must not be used afterwards. nil is fine.
func (p *buffers) put(buf *Buffer) {
	if buf == nil {
		return
	}
	p.share.Give(int64(cap(buf.b)))
	buf.b = buf.b[:0]
	if buf.class < classes {
		p.pools[buf.class].Put(buf)
	} else {
		p.large.Put(buf)
	}
}

// grow returns a buffer of at least n bytes capacity with the contents of buf,
// which is put back; nil when the budget is used up, and then buf stays as it is.
func (p *buffers) grow(buf *Buffer, n int) *Buffer {
	larger := p.get(n)
	if larger == nil {
		return nil
	}
	larger.b = append(larger.b, buf.b...)
	p.put(buf)
	return larger
}
