package body

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// readFast is read for a body that is plain, see [jsonscan.Scanner], and right. It
// reports whether the body is both; where it is not, m is to be cleared.
func (m *members) readFast(body []byte, isItem bool) bool {
	p := scanner{jsonscan.Scanner{Text: body}}
	i := p.Skip(0)
	if !p.Is(i, '{') {
		return false
	}
	for i = p.Skip(i + 1); ; i = p.Skip(i + 1) {
		end := p.Name(i)
		if end == jsonscan.No {
			return false
		}
		at, known := memberOf(body[i:end])
		if !known || m.raw[at] != nil || at == memberOp && !isItem {
			return false
		}
		if i = p.Skip(end); !p.Is(i, ':') {
			return false
		}
		i = p.Skip(i + 1)
		p.Spaces, p.Large = 0, false
		if at >= memberInputEmbeddings && p.Is(i, '[') {
			m.vectors[at-memberInputEmbeddings], end = p.vector(i)
		} else {
			end = p.Value(i, 2)
		}
		if end == jsonscan.No {
			return false
		}
		m.raw[at], m.spaces[at] = body[i:end], p.Spaces
		if at == memberMetadata {
			m.finite = !p.Large
		}
		i = p.Skip(end)
		if p.Is(i, '}') {
			return p.Skip(i+1) == len(body)
		}
		if !p.Is(i, ',') {
			return false
		}
	}
}

// scanner is a [jsonscan.Scanner] that reads embeddings too.
type scanner struct{ jsonscan.Scanner }

// vector reads the array of numbers that opens at Text[i], and returns the index
// after it. An empty array is not plain.
func (p *scanner) vector(i int) (event.Vector, int) {
	var buf [event.EmbeddingBytesMax]byte
	i = p.Skip(i + 1)
	for n := 0; n < len(buf); n += event.DimensionBytes {
		v, end := p.Float(i)
		if end == jsonscan.No {
			return nil, jsonscan.No
		}
		binary.LittleEndian.PutUint32(buf[n:], math.Float32bits(v))
		i = p.Skip(end)
		switch {
		case p.Is(i, ']'):
			return slices.Clone(buf[:n+event.DimensionBytes]), i + 1
		case !p.Is(i, ','):
			return nil, jsonscan.No
		}
		i = p.Skip(i + 1)
	}
	return nil, jsonscan.No
}
