// Package fulltext says what a text search finds: how a text is divided into words,
// when a query matches, and where. It is pure; package clickhouse finds candidates with an index of
// the same words, and package api shows the results.
//
// A word is a run of letters, marks and digits, in lower case. A character of a script
// that is written without spaces between words, such as Chinese, Japanese, Korean or
// Thai, is a word of its own. So a query of several such characters is a phrase, and is
// found anywhere in a text.
package fulltext

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a query.
const (
	QueryBytesMax = 1024
	QueryWordsMax = 64
)

// Errors of [Parse].
var (
	ErrNoWords      = errors.New("has no word that can be searched")
	ErrTooManyWords = errors.New("has more than 64 words")
)

// Query is a parsed query. It matches a text that has all of its phrases.
type Query struct {
	// Phrases has the words of each phrase. A single word is a phrase of one.
	Phrases [][]string
}

// Parse parses a query: words, and phrases in double quotes. A quote without an end
// reaches to the end of the query. A word that is divided in a text, such as don't, is
// a phrase.
func Parse(text string) (Query, error) {
	var q Query
	count := 0
	add := func(text string) {
		var words []string
		for w := range Words(text) {
			words = append(words, w.Text)
		}
		if len(words) > 0 {
			q.Phrases = append(q.Phrases, words)
			count += len(words)
		}
	}
	for i, part := range strings.Split(text, `"`) {
		if i%2 == 1 {
			add(part)
			continue
		}
		for _, word := range strings.Fields(part) {
			add(word)
		}
	}
	switch {
	case count == 0:
		return Query{}, ErrNoWords
	case count > QueryWordsMax:
		return Query{}, ErrTooManyWords
	}
	return q, nil
}

// Words returns the different words of the query.
func (q *Query) Words() []string {
	var words []string
	seen := make(map[string]bool)
	for _, phrase := range q.Phrases {
		for _, w := range phrase {
			if !seen[w] {
				seen[w] = true
				words = append(words, w)
			}
		}
	}
	return words
}

// Word is a word of a text, in lower case, and its place in bytes.
type Word struct {
	Text       string
	Start, End int
}

// Words divides a text into its words.
func Words(text string) func(yield func(Word) bool) {
	return func(yield func(Word) bool) {
		start := -1
		for i, r := range text {
			switch {
			case isUnspaced(r):
				end := i + utf8.RuneLen(r)
				if start >= 0 && !yield(Word{lower(text[start:i]), start, i}) || !yield(Word{text[i:end], i, end}) {
					return
				}
				start = -1
			case isWord(r):
				if start < 0 {
					start = i
				}
			case start >= 0:
				if !yield(Word{lower(text[start:i]), start, i}) {
					return
				}
				start = -1
			}
		}
		if start >= 0 {
			yield(Word{lower(text[start:]), start, len(text)})
		}
	}
}

// isWord reports whether r is part of a word.
func isWord(r rune) bool {
	if r < utf8.RuneSelf {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
	}
	return unicode.In(r, unicode.L, unicode.M, unicode.N)
}

// isUnspaced reports whether r is a character of a script in which words are not, or not
// always, separated by spaces.
func isUnspaced(r rune) bool {
	return r >= 0x0E00 && unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Bopomofo, unicode.Yi,
		unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar, unicode.Tibetan)
}

// lower returns the word in lower case, as ClickHouse's lowerUTF8 does, but with one
// form of the Greek sigma.
func lower(word string) string {
	var b strings.Builder
	b.Grow(len(word))
	for _, r := range word {
		switch r {
		case 'ς':
			r = 'σ'
		case 'İ': // of Turkish
			b.WriteString("i\u0307")
			continue
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// Span is a place in a text, in bytes.
type Span struct{ Start, End int }

// Match returns the places of all phrases of the query in the parts of a text, by part.
// It returns false if a phrase is in none of the parts. A phrase does not reach from one part into
// the next.
func (q *Query) Match(parts []string) ([][]Span, bool) {
	spans := make([][]Span, len(parts))
	found := make([]bool, len(q.Phrases))
	var words []Word
	for i, part := range parts {
		words = words[:0]
		for w := range Words(part) {
			words = append(words, w)
		}
		for p, phrase := range q.Phrases {
			for at := range words {
				if !hasAt(words[at:], phrase) {
					continue
				}
				found[p] = true
				spans[i] = append(spans[i], Span{words[at].Start, words[at+len(phrase)-1].End})
			}
		}
	}
	for _, ok := range found {
		if !ok {
			return nil, false
		}
	}
	return spans, true
}

func hasAt(words []Word, phrase []string) bool {
	if len(words) < len(phrase) {
		return false
	}
	for i, w := range phrase {
		if words[i].Text != w {
			return false
		}
	}
	return true
}
