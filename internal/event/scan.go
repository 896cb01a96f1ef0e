package event

import (
	"bytes"
	"strconv"
)

// scanJSON measures JSON that a parser has accepted: how deep its arrays and
// objects nest (0 for a scalar) and how many bytes of white space lie between
// its tokens. On other bytes it measures what a reader of brackets and strings
// would see, and still ends.
func scanJSON(b []byte) (depth, spaces int) {
	open := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = stringEnd(b, i)
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

// stringEnd returns the index of the quote that closes the string which opens
// at b[i], or len(b) where none does.
func stringEnd(b []byte, i int) int {
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

// compactJSON returns valid JSON without the given number of bytes of white
// space between its tokens, everything else as written. It returns b itself
// where there is none.
func compactJSON(b []byte, spaces int) []byte {
	if spaces == 0 {
		return b
	}
	out := make([]byte, 0, len(b)-spaces)
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := min(stringEnd(b, i), len(b)-1)
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

// numbersFinite reports whether every number of valid JSON fits a double. Only
// one with an exponent, or of very many digits, can be too large for that.
func numbersFinite(b []byte) bool {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			i = stringEnd(b, i)
		case isNumber(c):
			start, exponent := i, false
			for i+1 < len(b) && inNumber(b[i+1]) {
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
