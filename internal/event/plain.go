package event

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"unicode/utf8"
)

// plainNamesMax is the most members of a nested object that is plain: each new
// name is compared with those before it.
const plainNamesMax = 24

// no is the index that stands for: not plain.
const no = -1

// plain reads JSON that is plain, in one pass over b. Plain is what nearly all
// callers send: no name with an escape in it, no object with very many members,
// no half of a surrogate pair, no deep nesting.
//
// It only ever answers yes or no: what it takes, [jsontext] takes too, and what
// it does not take, broken JSON first of all, is read again by jsontext, which
// decides and says what is wrong. A fuzz test holds the first half of that.
type plain struct {
	b []byte
	// spaces are the bytes of white space within arrays and objects so far.
	spaces int
	// large is set by a number that may be beyond the range of a double.
	large bool
	// escaped is set by a string with an escape.
	escaped bool
}

// value returns the index behind the value at b[i]. Its arrays and objects may
// nest up to level DepthMax, level being that of the value itself.
func (p *plain) value(i, level int) int {
	if i >= len(p.b) {
		return no
	}
	switch p.b[i] {
	case '"':
		return p.text(i)
	case '{':
		return p.object(i, level)
	case '[':
		return p.array(i, level)
	case 't':
		return p.literal(i, "true")
	case 'f':
		return p.literal(i, "false")
	case 'n':
		return p.literal(i, "null")
	default:
		return p.number(i)
	}
}

func (p *plain) literal(i int, want string) int {
	if end := i + len(want); end <= len(p.b) && string(p.b[i:end]) == want {
		return end
	}
	return no
}

// skip returns the index of the first byte from b[i] on that is no white space.
func (p *plain) skip(i int) int {
	for i < len(p.b) && p.b[i] <= ' ' && (p.b[i] == ' ' || p.b[i] == '\n' || p.b[i] == '\t' || p.b[i] == '\r') {
		i++
	}
	return i
}

// space is skip within an array or object.
func (p *plain) space(i int) int {
	end := p.skip(i)
	p.spaces += end - i
	return end
}

// is reports whether c is at b[i].
func (p *plain) is(i int, c byte) bool { return i < len(p.b) && p.b[i] == c }

func (p *plain) array(i, level int) int {
	if level > DepthMax {
		return no
	}
	i = p.space(i + 1)
	if p.is(i, ']') {
		return i + 1
	}
	for {
		if i = p.value(i, level+1); i == no {
			return no
		}
		i = p.space(i)
		switch {
		case p.is(i, ']'):
			return i + 1
		case !p.is(i, ','):
			return no
		}
		i = p.space(i + 1)
	}
}

func (p *plain) object(i, level int) int {
	if level > DepthMax {
		return no
	}
	var names [plainNamesMax][2]int32
	i = p.space(i + 1)
	if p.is(i, '}') {
		return i + 1
	}
	for n := 0; ; n++ {
		end := p.name(i)
		if end == no || n == plainNamesMax {
			return no
		}
		for _, name := range names[:n] {
			if string(p.b[name[0]:name[1]]) == string(p.b[i:end]) {
				return no
			}
		}
		names[n] = [2]int32{int32(i), int32(end)}
		if i = p.space(end); !p.is(i, ':') {
			return no
		}
		if i = p.value(p.space(i+1), level+1); i == no {
			return no
		}
		i = p.space(i)
		switch {
		case p.is(i, '}'):
			return i + 1
		case !p.is(i, ','):
			return no
		}
		i = p.space(i + 1)
	}
}

// name is text for one that must have no escapes.
func (p *plain) name(i int) int {
	if !p.is(i, '"') {
		return no
	}
	before := p.escaped
	p.escaped = false
	end := p.text(i)
	if p.escaped {
		return no
	}
	p.escaped = before
	return end
}

// text returns the index behind the string that opens at b[i].
func (p *plain) text(i int) int {
	b := p.b
	for i++; ; {
		for i+8 <= len(b) {
			if special := specialBytes(binary.LittleEndian.Uint64(b[i:])); special != 0 {
				i += bits.TrailingZeros64(special) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			return no
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c == '\\':
			if i = p.escape(i); i == no {
				return no
			}
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && n == 1 {
				return no
			}
			i += n
		case c < ' ':
			return no
		default:
			i++
		}
	}
}

// specialBytes has the highest bit of each byte of v set that is a quote, a
// backslash, a control character or not ASCII, and none below the first of
// them. (Subtracting borrows from the bytes above such a one, so that more bits
// may be set there.)
func specialBytes(v uint64) uint64 {
	const ones, highs = math.MaxUint64 / 255, math.MaxUint64 / 255 << 7
	quote, backslash := v^ones*'"', v^ones*'\\'
	return ((quote-ones)&^quote | (backslash-ones)&^backslash | (v-ones*' ')&^v | v) & highs
}

// escape returns the index behind the escape at b[i].
func (p *plain) escape(i int) int {
	p.escaped = true
	if i+1 >= len(p.b) {
		return no
	}
	switch p.b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if i+6 > len(p.b) {
			return no
		}
		r := 0
		for _, c := range p.b[i+2 : i+6] {
			digit, ok := hexDigit(c)
			if !ok {
				return no
			}
			r = r<<4 | digit
		}
		if r >= 0xd800 && r < 0xe000 {
			return no // a half of a pair; the other may be there
		}
		return i + 6
	}
	return no
}

func hexDigit(c byte) (digit int, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0'), true
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10, true
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10, true
	}
	return 0, false
}

// number returns the index behind the number at b[i].
func (p *plain) number(i int) int {
	b, start := p.b, i
	if p.is(i, '-') {
		i++
	}
	if p.is(i, '0') {
		i++
	} else if i = digitsEnd(b, i); i == no {
		return no
	}
	if p.is(i, '.') {
		if i = digitsEnd(b, i+1); i == no {
			return no
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		p.large = true
		if i++; p.is(i, '+') || p.is(i, '-') {
			i++
		}
		if i = digitsEnd(b, i); i == no {
			return no
		}
	}
	p.large = p.large || i-start >= digitsSafe
	return i
}

// digitsEnd returns the index behind the digits at b[i], of which there must
// be one.
func digitsEnd(b []byte, i int) int {
	from := i
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	if i == from {
		return no
	}
	return i
}

// float reads the number at b[i] and returns the index behind it.
//
// Nearly all go the quick way: a double that is the number but for an error of
// two units in its last place, because it is the quotient or product of two
// doubles that are right to half a unit each. To round it once more, to a
// float32, is right unless it lies about half-way between two of them: then the
// number itself may be on the other side.
func (p *plain) float(i int) (v float32, end int) {
	b, start := p.b, i
	negative := p.is(i, '-')
	if negative {
		i++
	}
	var mantissa uint64
	first := i
	for ; i < len(b) && b[i]-'0' <= 9; i++ {
		mantissa = 10*mantissa + uint64(b[i]-'0')
	}
	whole, exponent := i-first, 0
	digits := whole
	if p.is(i, '.') {
		i++
		from := i
		for ; i < len(b) && b[i]-'0' <= 9; i++ {
			mantissa = 10*mantissa + uint64(b[i]-'0')
		}
		exponent = from - i
		digits -= exponent
		if exponent == 0 {
			return 0, no
		}
	}
	// 20 digits, of which the first is 0, or 19 fit into the mantissa.
	leading := p.is(first, '0')
	if whole == 0 || leading && (whole > 1 || digits > 20) || !leading && digits > 19 ||
		exponent < -maxExactPower || i < len(b) && b[i]|0x20 == 'e' {
		return p.anyFloat(start)
	}
	d := float64(mantissa) / exactPowers[-exponent]
	const half, margin = 1 << 28, 4
	if low := int(math.Float64bits(d) & (2*half - 1)); low >= half-margin && low <= half+margin || d < smallestNormal32 && mantissa != 0 {
		return p.anyFloat(start)
	}
	if negative {
		d = -d
	}
	return float32(d), i
}

// anyFloat is float for every number.
func (p *plain) anyFloat(i int) (v float32, end int) {
	if end = p.number(i); end == no {
		return 0, no
	}
	d, err := strconv.ParseFloat(string(p.b[i:end]), 32)
	if err != nil {
		return 0, no
	}
	return float32(d), end
}

const (
	// maxExactPower is of the largest power of ten that is a double.
	maxExactPower    = 22
	smallestNormal32 = 0x1p-126
)

var exactPowers = [maxExactPower + 1]float64{ //nolint:gochecknoglobals // a constant table
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}

// vector reads the array of numbers that opens at b[i], and returns the index
// behind it. An empty one is not plain.
func (p *plain) vector(i int) (Vector, int) {
	var buf [EmbeddingBytesMax]byte
	i = p.skip(i + 1)
	for n := 0; n < len(buf); n += DimensionBytes {
		v, end := p.float(i)
		if end == no {
			return nil, no
		}
		binary.LittleEndian.PutUint32(buf[n:], math.Float32bits(v))
		i = p.skip(end)
		switch {
		case p.is(i, ']'):
			return slices.Clone(buf[:n+DimensionBytes]), i + 1
		case !p.is(i, ','):
			return nil, no
		}
		i = p.skip(i + 1)
	}
	return nil, no
}
