package jsonscan

import (
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// DepthMax is the deepest nesting that a [Scanner] reads.
const DepthMax = 32

// namesMax is the most members of a nested object that a [Scanner] reads: each
// new name is compared with those before it.
const namesMax = 24

// No is the index that a [Scanner] returns for text that it does not read.
const No = -1

// A Scanner reads JSON in one pass over Text, as far as it is plain: that is what
// nearly all callers send. A name with an escape in it, an object with very many
// members, half of a surrogate pair, or deep nesting is not plain.
//
// A Scanner answers only yes or no. All that it reads is valid for jsontext too.
// What it does not read, which broken JSON is a part of, must be read again with
// jsontext, which decides and says what is wrong. Fuzz tests compare the two.
type Scanner struct {
	Text []byte
	// Spaces counts the bytes of white space within arrays and objects so far.
	Spaces int
	// Large is set by a number that may be beyond the range of a double.
	Large bool
	// escaped is set by a string with an escape.
	escaped bool
}

// Value returns the index after the value at Text[i]. The level is that of the
// value itself; arrays and objects may nest up to level [DepthMax].
func (p *Scanner) Value(i, level int) int {
	if i >= len(p.Text) {
		return No
	}
	switch p.Text[i] {
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

func (p *Scanner) literal(i int, want string) int {
	if end := i + len(want); end <= len(p.Text) && string(p.Text[i:end]) == want {
		return end
	}
	return No
}

// Skip returns the index of the first byte from Text[i] on that is not white space.
func (p *Scanner) Skip(i int) int {
	for i < len(p.Text) && p.Text[i] <= ' ' && (p.Text[i] == ' ' || p.Text[i] == '\n' || p.Text[i] == '\t' || p.Text[i] == '\r') {
		i++
	}
	return i
}

// space is Skip within an array or object: it counts what it skips.
func (p *Scanner) space(i int) int {
	end := p.Skip(i)
	p.Spaces += end - i
	return end
}

// Is reports whether Text[i] is c.
func (p *Scanner) Is(i int, c byte) bool { return i < len(p.Text) && p.Text[i] == c }

func (p *Scanner) array(i, level int) int {
	if level > DepthMax {
		return No
	}
	i = p.space(i + 1)
	if p.Is(i, ']') {
		return i + 1
	}
	for {
		if i = p.Value(i, level+1); i == No {
			return No
		}
		i = p.space(i)
		switch {
		case p.Is(i, ']'):
			return i + 1
		case !p.Is(i, ','):
			return No
		}
		i = p.space(i + 1)
	}
}

func (p *Scanner) object(i, level int) int {
	if level > DepthMax {
		return No
	}
	var names [namesMax][2]int32
	i = p.space(i + 1)
	if p.Is(i, '}') {
		return i + 1
	}
	for n := 0; ; n++ {
		end := p.Name(i)
		if end == No || n == namesMax {
			return No
		}
		for _, name := range names[:n] {
			if string(p.Text[name[0]:name[1]]) == string(p.Text[i:end]) {
				return No
			}
		}
		names[n] = [2]int32{int32(i), int32(end)}
		if i = p.space(end); !p.Is(i, ':') {
			return No
		}
		if i = p.Value(p.space(i+1), level+1); i == No {
			return No
		}
		i = p.space(i)
		switch {
		case p.Is(i, '}'):
			return i + 1
		case !p.Is(i, ','):
			return No
		}
		i = p.space(i + 1)
	}
}

// Name returns the index after the string at Text[i], which must have no escapes.
func (p *Scanner) Name(i int) int {
	if !p.Is(i, '"') {
		return No
	}
	before := p.escaped
	p.escaped = false
	end := p.text(i)
	if p.escaped {
		return No
	}
	p.escaped = before
	return end
}

// text returns the index after the string that opens at Text[i].
func (p *Scanner) text(i int) int {
	b := p.Text
	for i++; ; {
		for i+8 <= len(b) {
			if special := specialBytes(binary.LittleEndian.Uint64(b[i:])); special != 0 {
				i += bits.TrailingZeros64(special) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			return No
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c == '\\':
			if i = p.escape(i); i == No {
				return No
			}
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && n == 1 {
				return No
			}
			i += n
		case c < ' ':
			return No
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

// escape returns the index after the escape at Text[i].
func (p *Scanner) escape(i int) int {
	p.escaped = true
	if i+1 >= len(p.Text) {
		return No
	}
	switch p.Text[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		if i+6 > len(p.Text) {
			return No
		}
		r := 0
		for _, c := range p.Text[i+2 : i+6] {
			digit, ok := hexDigit(c)
			if !ok {
				return No
			}
			r = r<<4 | digit
		}
		if r >= 0xd800 && r < 0xe000 {
			return No // a half of a pair; the other may be there
		}
		return i + 6
	}
	return No
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

// number returns the index after the number at Text[i].
func (p *Scanner) number(i int) int {
	b, start := p.Text, i
	if p.Is(i, '-') {
		i++
	}
	if p.Is(i, '0') {
		i++
	} else if i = digitsEnd(b, i); i == No {
		return No
	}
	if p.Is(i, '.') {
		if i = digitsEnd(b, i+1); i == No {
			return No
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		p.Large = true
		if i++; p.Is(i, '+') || p.Is(i, '-') {
			i++
		}
		if i = digitsEnd(b, i); i == No {
			return No
		}
	}
	p.Large = p.Large || i-start >= digitsSafe
	return i
}

// digitsEnd returns the index after the digits at b[i], of which there must be at
// least one.
func digitsEnd(b []byte, i int) int {
	from := i
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	if i == from {
		return No
	}
	return i
}

// Float reads the number at Text[i] and returns the index after it.
//
// Nearly all numbers are read without strconv: a double that differs from the
// number by at most two units in its last place, because it is the quotient of two
// doubles that are right to half a unit each, is rounded once more, to a float32.
// That is wrong only about half-way between two float32, where the number itself
// may be on the other side. Such numbers are left to strconv.
func (p *Scanner) Float(i int) (v float32, end int) {
	b, start := p.Text, i
	negative := p.Is(i, '-')
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
	if p.Is(i, '.') {
		i++
		from := i
		for ; i < len(b) && b[i]-'0' <= 9; i++ {
			mantissa = 10*mantissa + uint64(b[i]-'0')
		}
		exponent = from - i
		digits -= exponent
		if exponent == 0 {
			return 0, No
		}
	}
	// 20 digits, of which the first is 0, or 19 fit into the mantissa.
	leading := p.Is(first, '0')
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

// anyFloat is Float for every number.
func (p *Scanner) anyFloat(i int) (v float32, end int) {
	if end = p.number(i); end == No {
		return 0, No
	}
	d, err := strconv.ParseFloat(string(p.Text[i:end]), 32)
	if err != nil {
		return 0, No
	}
	return float32(d), end
}

const (
	// maxExactPower is the exponent of the largest power of ten that is a double.
	maxExactPower    = 22
	smallestNormal32 = 0x1p-126
)

var exactPowers = [maxExactPower + 1]float64{ //nolint:gochecknoglobals // a constant table
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}
