package mcp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// readBytes is how much of an answer is read at once.
	readBytes = 16 << 10
	// nameCharsMax bounds the name of a member of an answer. The longest ones are
	// measures of a member of the metadata.
	nameCharsMax = 20_000
)

// errAnswer says that what was read is no JSON, or not that of Sluice.
var errAnswer = errors.New("the answer is not the JSON that Sluice sends")

// scanner reads the JSON of an answer while it arrives, and keeps the beginning of
// each value. So an answer of any size is read in memory of the size that is shown.
// It reads what the API sends, and accepts some JSON that is malformed.
type scanner struct{ in *bufio.Reader }

func newScanner(r io.Reader) *scanner { return &scanner{bufio.NewReaderSize(r, readBytes)} }

// broken is the error of an answer that ends too early, or of the connection.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the answer: %w", err)
}

// next returns the next byte that is no space.
func (s *scanner) next() (byte, error) {
	for {
		c, err := s.in.ReadByte()
		if err != nil {
			return 0, broken(err)
		}
		if !isSpace(rune(c)) {
			return c, nil
		}
	}
}

func isSpace(r rune) bool { return r == ' ' || r == '\n' || r == '\r' || r == '\t' }

// peek is next, and leaves the byte to be read.
func (s *scanner) peek() (byte, error) {
	c, err := s.next()
	if err == nil {
		err = s.in.UnreadByte()
	}
	return c, err
}

func (s *scanner) expect(want byte) error {
	c, err := s.next()
	if err == nil && c != want {
		return errAnswer
	}
	return err
}

// object reads an object. member must read the value of each member.
func (s *scanner) object(member func(name string) error) error {
	return s.each('{', '}', func() error {
		name, err := s.value(window{most: nameCharsMax})
		if err != nil {
			return err
		}
		if !name.isText || name.cut() {
			return errAnswer
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		return member(plain(name.body))
	})
}

// list reads a list. element must read each element.
func (s *scanner) list(element func() error) error { return s.each('[', ']', element) }

func (s *scanner) each(begin, end byte, read func() error) error {
	if err := s.expect(begin); err != nil {
		return err
	}
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c == end {
		return s.expect(end)
	}
	for {
		if err := read(); err != nil {
			return err
		}
		switch c, err := s.next(); {
		case err != nil:
			return err
		case c == end:
			return nil
		case c != ',':
			return errAnswer
		}
	}
}

// skip reads a value and keeps nothing of it.
func (s *scanner) skip() error {
	_, err := s.value(window{})
	return err
}

// text reads a value that must be a string of at most most characters, or null,
// which is an empty text.
func (s *scanner) text(most int) (string, error) {
	v, err := s.value(window{most: most})
	switch {
	case err != nil:
		return "", err
	case v.isNull():
		return "", nil
	case !v.isText || v.cut():
		return "", errAnswer
	}
	return plain(v.body), nil
}

// window is the part of a text that is kept.
type window struct {
	// skip is how many characters are left out at the beginning, most the characters
	// that the rest may take as JSON.
	skip, most int
	// asText says that a value that is no string becomes the text of its JSON. It is
	// necessary where skip is not 0.
	asText bool
}

// value reads a value.
func (s *scanner) value(w window) (value, error) {
	c, err := s.peek()
	if err != nil {
		return value{}, err
	}
	if c == '"' {
		_, _ = s.in.ReadByte() // it was peeked at
		v := value{isText: true}
		err := s.string(func(r rune) { v.add(r, &w) })
		return v, err
	}
	v := value{isText: w.asText}
	// keep takes a character of the JSON.
	keep := func(r rune) { v.addRaw(r, &w) }
	if w.asText {
		keep = func(r rune) { v.add(r, &w) }
	}
	if err := s.raw(c, keep); err != nil {
		return value{}, err
	}
	if !w.asText && v.shown < v.all {
		v.quote(w.most)
	}
	return v, nil
}

// string reads a string after its first quotation mark, and gives each of its characters to
// keep.
func (s *scanner) string(keep func(r rune)) error {
	for {
		r, err := s.char()
		if err != nil {
			return err
		}
		if r == endOfString {
			return nil
		}
		keep(r)
	}
}

// endOfString stands for the quotation mark at the end of a string.
const endOfString rune = -1

// char reads a character of a string, and undoes its escape.
func (s *scanner) char() (rune, error) {
	r, _, err := s.in.ReadRune()
	if err != nil {
		return 0, broken(err)
	}
	switch r {
	case '"':
		return endOfString, nil
	case '\\':
	default:
		return r, nil
	}
	c, err := s.in.ReadByte()
	if err != nil {
		return 0, broken(err)
	}
	switch c {
	case 'n':
		return '\n', nil
	case 't':
		return '\t', nil
	case 'r':
		return '\r', nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case '"', '\\', '/':
		return rune(c), nil
	case 'u':
	default:
		return 0, errAnswer
	}
	first, err := s.hex()
	if err != nil || !utf16.IsSurrogate(first) {
		return first, err
	}
	if next, _ := s.in.Peek(2); string(next) != `\u` { // an error comes back with the next read
		return utf8.RuneError, nil
	}
	_, _ = s.in.Discard(2) // they were peeked at
	second, err := s.hex()
	return utf16.DecodeRune(first, second), err
}

func (s *scanner) hex() (rune, error) {
	var r rune
	for range 4 {
		c, err := s.in.ReadByte()
		if err != nil {
			return 0, broken(err)
		}
		digit := strings.IndexByte("0123456789abcdef", c|0x20)
		if digit < 0 || c < '0' {
			return 0, errAnswer
		}
		r = r<<4 | rune(digit)
	}
	return r, nil
}

// raw reads a value that is no string, and gives each character of its JSON to keep, without
// the spaces between values. first is its first byte, which is not read yet.
func (s *scanner) raw(first byte, keep func(r rune)) error {
	if first != '{' && first != '[' {
		for {
			c, err := s.in.ReadByte()
			if err != nil {
				return broken(err)
			}
			if c == ',' || c == '}' || c == ']' || isSpace(rune(c)) {
				return s.in.UnreadByte()
			}
			if !strings.ContainsRune("+-.0123456789Eaeflnrstu", rune(c)) {
				return errAnswer
			}
			keep(rune(c))
		}
	}
	var unit []byte
	for depth := 0; ; {
		c, err := s.in.ReadByte()
		if err != nil {
			return broken(err)
		}
		if isSpace(rune(c)) {
			continue
		}
		keep(rune(c))
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return nil
			}
		case '"':
			err := s.string(func(r rune) {
				unit, _ = appendChar(unit[:0], r)
				for _, r := range string(unit) {
					keep(r)
				}
			})
			if err != nil {
				return err
			}
			keep('"')
		}
	}
}
