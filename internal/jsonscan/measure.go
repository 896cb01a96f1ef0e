// Package jsonscan reads, checks and measures JSON text where it lies, without
// making values of it. A [Scanner] is the fast way for text that may be anything;
// the functions expect text that a parser has accepted.
package jsonscan

import (
	"bytes"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Measure returns how deep the arrays and objects of valid JSON nest (0 for a
// scalar) and how many bytes of white space are between its tokens. Other text is
// read as brackets and strings all the same.
func Measure(b []byte) (depth, spaces int) {
	open := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = StringEnd(b, i)
		case '{', '[':
			open++
			depth = max(depth, open)
		case '}', ']':
			open--
		case ' ', '\t', '\n', '\r':
			spaces++
		}
	}
	return depth, spaces
}

// StringEnd returns the index of the quote that closes the string which opens
// at b[i], or len(b) where none does.
func StringEnd(b []byte, i int) int {
	from := i + 1
	for {
		n := bytes.IndexByte(b[from:], '"')
		if n < 0 {
			return len(b)
		}
		end := from + n
		// A quote after an odd number of backslashes is an escaped one.
		escapes := 0
		for end-escapes-1 >= from && b[end-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end
		}
		from = end + 1
	}
}

// Compact returns valid JSON without the white space between its tokens, whose
// number of bytes is given, and everything else as written. It returns b itself
// where there is none.
func Compact(b []byte, spaces int) []byte {
	if spaces == 0 {
		return b
	}
	out := make([]byte, 0, len(b)-spaces)
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := min(StringEnd(b, i), len(b)-1)
			out = append(out, b[i:end+1]...)
			i = end
		case ' ', '\t', '\n', '\r':
		default:
			out = append(out, b[i])
		}
	}
	return out
}

// digitsSafe is less than the digits of a number that is beyond a double.
const digitsSafe = 300

// NumbersFinite reports whether every number of valid JSON fits a double. Only
// one with an exponent, or of very many digits, can be too large for that.
func NumbersFinite(b []byte) bool {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			i = StringEnd(b, i)
		case StartsNumber(c):
			start, exponent := i, false
			for i+1 < len(b) && InNumber(b[i+1]) {
				i++
				exponent = exponent || b[i]|0x20 == 'e'
			}
			if !exponent && i-start < digitsSafe {
				continue
			}
			if _, err := strconv.ParseFloat(string(b[start:i+1]), 64); err != nil {
				return false
			}
		}
	}
	return true
}

// StartsNumber reports whether a number may begin with c.
func StartsNumber(c byte) bool { return c == '-' || c >= '0' && c <= '9' }

// InNumber reports whether c may be in a number.
func InNumber(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c|0x20 == 'e' || c == '-' || c == '+'
}

// Unquote returns the text of a valid JSON string. The text of a string without
// escapes aliases the string.
func Unquote(quoted []byte) []byte {
	text := quoted[1 : len(quoted)-1 : len(quoted)-1]
	if bytes.IndexByte(text, '\\') < 0 {
		return text
	}
	text, err := jsontext.AppendUnquote(make([]byte, 0, len(text)), quoted)
	if err != nil {
		panic("BUG: the string was read from valid JSON: " + err.Error())
	}
	return text
}
