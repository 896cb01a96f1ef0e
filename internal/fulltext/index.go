package fulltext

import (
	"unicode"
	"unicode/utf8"
)

// IndexWords returns the words that the index of contents has of every text with this
// word: the column words of the table event_contents.
func IndexWords(word string) []string {
	if isASCII(word) || isAlphabetic(word) || utf8.RuneCountInString(word) == 1 {
		return []string{word}
	}
	// The index has each character that is not ASCII, and each run of the others.
	var words []string
	start := 0
	for i, r := range word {
		if r < utf8.RuneSelf {
			continue
		}
		if i > start {
			words = append(words, word[start:i])
		}
		start = i + utf8.RuneLen(r)
		words = append(words, word[i:start])
	}
	if start < len(word) {
		words = append(words, word[start:])
	}
	return words
}

func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isAlphabetic reports whether the word is in one of the alphabets of which the index
// has whole words.
func isAlphabetic(word string) bool {
	for _, r := range word {
		if !unicode.In(r, unicode.Greek, unicode.Cyrillic, unicode.Armenian, unicode.Hebrew, unicode.Arabic,
			unicode.Devanagari, unicode.Bengali, unicode.Tamil, unicode.Telugu, unicode.Georgian) {
			return false
		}
	}
	return true
}
