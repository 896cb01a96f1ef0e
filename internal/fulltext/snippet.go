package fulltext

import (
	"slices"
	"unicode/utf8"
)

// Snippet is a piece of a text, and the places in it, in bytes, of what was found.
type Snippet struct {
	Text  string
	Spans []Span
}

// Bounds of snippets.
const (
	snippetsMax = 3
	// snippetAround is how many bytes are shown before and after a place.
	snippetAround = 80
	snippetSpans  = 20
)

// Snippets returns the pieces around the first places that [Query.Match] found.
func Snippets(parts []string, spans [][]Span) []Snippet {
	var snippets []Snippet
	for i, part := range parts {
		found := slices.Clone(spans[i])
		slices.SortFunc(found, func(a, b Span) int { return a.Start - b.Start })
		for len(found) > 0 && len(snippets) < snippetsMax {
			from := cutBefore(part, found[0].Start-snippetAround)
			to := cutAfter(part, min(found[0].End, found[0].Start+4*snippetAround)+snippetAround)
			var s Snippet
			n := 0
			for ; n < len(found) && (n == 0 || found[n].End <= to); n++ {
				span := Span{found[n].Start - from, min(found[n].End, to) - from}
				if last := len(s.Spans) - 1; last >= 0 && span.Start <= s.Spans[last].End {
					s.Spans[last].End = max(s.Spans[last].End, span.End)
				} else if len(s.Spans) < snippetSpans {
					s.Spans = append(s.Spans, span)
				}
			}
			s.Text = part[from:to]
			snippets, found = append(snippets, s), found[n:]
		}
	}
	return snippets
}

// cutBefore returns the last place, at most at, where a character begins.
func cutBefore(text string, at int) int {
	at = max(at, 0)
	for at > 0 && !utf8.RuneStart(text[at]) {
		at--
	}
	return at
}

// cutAfter returns the first place, at least at, where a character begins or the text ends.
func cutAfter(text string, at int) int {
	at = min(at, len(text))
	for at < len(text) && !utf8.RuneStart(text[at]) {
		at++
	}
	return at
}
