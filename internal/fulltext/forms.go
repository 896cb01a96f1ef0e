package fulltext

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Needles returns strings of which every content with the word has one, as it is stored:
// in any case, and with the escapes of JSON. If folded is not empty, a content
// that has it, without regard to the case of ASCII letters, needs none of them. They
// rule out most contents without decoding them.
func Needles(word string) (folded string, needles []string) {
	if isASCII(word) {
		// A letter or digit is seldom escaped, but may be.
		needles = []string{`\u004`, `\u005`, `\u006`, `\u007`}
		for digit := range 10 {
			needles = append(needles, fmt.Sprintf(`\u003%d`, digit))
		}
		if strings.Contains(word, "k") {
			needles = append(needles, "\u212A", `\u212a`, `\u212A`) // the sign of Kelvin, whose lower case is k
		}
		return word, needles
	}
	for _, r := range word {
		if r < utf8.RuneSelf {
			continue
		}
		for _, form := range cases(r) {
			needles = append(needles, string(form))
			needles = append(needles, escapes(form)...)
		}
		break // one character rules out enough
	}
	return "", needles
}

// cases returns all characters whose lower case is, or has, the character.
func cases(lower rune) []rune {
	forms := []rune{lower}
	for r := unicode.SimpleFold(lower); r != lower; r = unicode.SimpleFold(r) {
		forms = append(forms, r)
	}
	if lower == '\u0307' {
		forms = append(forms, 'İ')
	}
	return forms
}

// escapes returns all ways to write the character, or its first half, as an escape of
// JSON.
func escapes(r rune) []string {
	if r > 0xFFFF {
		r, _ = utf16.EncodeRune(r)
	}
	forms := []string{`\u`}
	for _, digit := range fmt.Sprintf("%04x", r) {
		var longer []string
		for _, form := range forms {
			longer = append(longer, form+string(digit))
			if upper := unicode.ToUpper(digit); upper != digit {
				longer = append(longer, form+string(upper))
			}
		}
		forms = longer
	}
	return slices.Clip(forms)
}
