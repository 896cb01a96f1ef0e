package mcp

import (
	"encoding/json"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// value is a JSON value of an answer, or the beginning of one.
type value struct {
	// body is the value as JSON, without the quotation marks where isText is true.
	body   []byte
	isText bool
	// shown is how many characters of the value body has, all how many the value has.
	// The characters of a value that is no string are those of its JSON.
	shown, all int
	// width is how many characters body takes.
	width int
	// full says that body has no room for more.
	full bool
	// skipped is how many characters were left out at the beginning.
	skipped int
}

func (v *value) cut() bool    { return v.skipped+v.shown < v.all }
func (v *value) isNull() bool { return !v.isText && (len(v.body) == 0 || string(v.body) == "null") }

// jsonWidth is how many characters the value takes as JSON.
func (v *value) jsonWidth() int {
	if v.isText {
		return v.width + 2
	}
	return v.width
}

// appendJSON appends the value as JSON.
func (v *value) appendJSON(b []byte) []byte {
	if !v.isText {
		return append(b, v.body...)
	}
	return append(append(append(b, '"'), v.body...), '"')
}

// add adds a character of a text.
func (v *value) add(r rune, w *window) {
	v.all++
	if v.all <= w.skip {
		v.skipped++
		return
	}
	if v.full {
		return
	}
	at := len(v.body)
	body, width := appendChar(v.body, r)
	if v.width+width > w.most {
		v.body, v.full = body[:at], true
		return
	}
	v.body = body
	v.width += width
	v.shown++
}

// addRaw adds a character of JSON.
func (v *value) addRaw(r rune, w *window) {
	v.all++
	if v.full = v.full || v.width == w.most; v.full {
		return
	}
	v.body = utf8.AppendRune(v.body, r)
	v.width++
	v.shown++
}

// quote makes a text of a value that is no string and is not whole, of at most most
// characters.
func (v *value) quote(most int) {
	quoted := value{isText: true, all: v.all}
	w := window{most: most}
	for _, r := range string(v.body) {
		quoted.add(r, &w)
	}
	quoted.all = v.all
	*v = quoted
}

// trim leaves at most the first most characters of the value's JSON.
func (v *value) trim(most int) {
	if v.jsonWidth() <= most {
		return
	}
	most = max(0, most-2) // without the quotation marks
	if !v.isText {
		v.quote(most)
		return
	}
	end, width, shown := 0, 0, 0
	for end < len(v.body) {
		n, w := unit(v.body[end:])
		if width+w > most {
			break
		}
		end, width, shown = end+n, width+w, shown+1
	}
	v.body, v.width, v.shown, v.full = slices.Clip(v.body[:end]), width, shown, true
}

// unit returns how many bytes and characters the first character of a text takes in the
// JSON that appendChar made.
func unit(body []byte) (bytes, width int) {
	if body[0] != '\\' {
		_, n := utf8.DecodeRune(body)
		return n, 1
	}
	switch {
	case body[1] != 'u':
		return 2, 2
	case len(body) >= 12 && body[6] == '\\' && body[7] == 'u' && utf16.IsSurrogate(hexRune(body[2:6])):
		return 12, 12
	}
	return 6, 6
}

// hexRune reads four digits that appendChar wrote.
func hexRune(digits []byte) rune {
	var r rune
	for _, c := range digits {
		r <<= 4
		if c <= '9' {
			r |= rune(c - '0')
		} else {
			r |= rune(c - 'a' + 10)
		}
	}
	return r
}

// appendChar appends a character of a text as JSON, and returns how many characters that
// took. Characters that a reader would not see are escaped, so that a text cannot
// hide words from the people who read along, or from the model.
func appendChar(b []byte, r rune) ([]byte, int) {
	const hex = "0123456789abcdef"
	escape := func(r rune) {
		b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	switch {
	case r == '"' || r == '\\':
		return append(b, '\\', byte(r)), 2
	case r == '\n':
		return append(b, '\\', 'n'), 2
	case r == '\t':
		return append(b, '\\', 't'), 2
	case r == '\r':
		return append(b, '\\', 'r'), 2
	case isSeen(r):
		return utf8.AppendRune(b, r), 1
	case r > 0xffff:
		high, low := utf16.EncodeRune(r)
		escape(high)
		escape(low)
		return b, 12
	}
	escape(r)
	return b, 6
}

// isSeen reports whether a character is seen, or belongs to how one is written: the joiners
// of Persian, of the scripts of India and of emoji.
func isSeen(r rune) bool {
	const zeroWidthNonJoiner, zeroWidthJoiner = '\u200c', '\u200d'
	if r < utf8.RuneSelf {
		return r >= ' ' && r < 0x7f
	}
	if unicode.Is(unicode.Variation_Selector, r) {
		return r <= 0xffff // those beyond are the ones in which words are hidden
	}
	return unicode.IsPrint(r) || unicode.Is(unicode.Zs, r) || r == zeroWidthNonJoiner || r == zeroWidthJoiner
}

// plain is the text of what appendChar wrote.
func plain(body []byte) string {
	var text string
	_ = json.Unmarshal(slices.Concat([]byte{'"'}, body, []byte{'"'}), &text) // it was made here
	return text
}

// fit cuts the longest of the values so that all of them together take at most most
// characters as JSON. All that are cut take the same.
func fit(values []*value, most int) {
	level := levelOf(values, most)
	for _, v := range values {
		v.trim(level)
	}
}

// levelOf is how many characters each of the values may take, so that all of them together
// take at most most.
func levelOf(values []*value, most int) int {
	widths := make([]int, len(values))
	for i, v := range values {
		widths[i] = v.jsonWidth()
	}
	slices.Sort(widths)
	level := max(0, most)
	for i, width := range widths {
		if level = max(0, most) / (len(widths) - i); width > level {
			return level
		}
		most -= width
	}
	return max(level, 0, most)
}
