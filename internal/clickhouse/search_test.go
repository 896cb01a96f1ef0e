package clickhouse_test

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unicode"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
)

// checkSearch compares what searches find with what they match in the model's events.
func checkSearch(t *testing.T, store *clickhouse.Store, f query.Filter, events []*event.Event) {
	for i, text := range []string{
		"refund", "don't you", "world", "wörld", "größe слово", "\"слово слова\"", "οδοσ", "istanbul", "i\u0307stanbul", "kelvin", "世界", "好世", "界世", "タワ", "สดี", "하세", "مرحبا", "नमस्ते",
		"3.14 ab12", "3.25", "14", "foo bar", "example", "quoted", "y", "role", "content", "user true", "new \"back\"", "été", "fine", "ｆｕｌｌ", "nothing",
	} {
		parsed, err := fulltext.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		fields := []query.SearchFields{{Input: true, Output: true, Error: true}, {Input: true}, {Output: true}, {Error: true}}[i%4]
		want := make(map[string]bool)
		for _, e := range events {
			for _, field := range []struct {
				searched bool
				texts    []string
			}{{fields.Input, texts(e.Input)}, {fields.Output, texts(e.Output)}, {fields.Error, []string{e.Error}}} {
				if _, ok := parsed.Match(field.texts); ok && field.searched {
					want[e.ID] = true
				}
			}
		}
		q := query.TextSearch{Filter: f, Text: parsed, Fields: fields, LimitEvents: 1 + i, BytesMax: 1 << 20}
		last := int64(query.MicrosMax)
		got := make(map[string]bool)
		for {
			hits, err := store.SearchText(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range hits.Hits {
				if got[h.Event.ID] || h.Event.Micros > last || len(h.Highlights) == 0 {
					t.Fatalf("%q: %q comes again, out of order, or without highlights", text, h.Event.ID)
				}
				got[h.Event.ID], last = true, h.Event.Micros
			}
			if q.After = hits.Next; q.After == nil {
				break
			}
			if len(hits.Hits) != q.LimitEvents {
				t.Fatalf("%q: a page of %d at limit %d", text, len(hits.Hits), q.LimitEvents)
			}
		}
		for _, e := range events {
			if want[e.ID] != got[e.ID] {
				t.Errorf("%q, fields %+v, event %q: found %v, want %v: %q %q %q", text, fields, e.ID, got[e.ID], want[e.ID], e.Input.Data, e.Output.Data, e.Error)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q: %d events found, want %d", text, len(got), len(want))
		}
	}
}

func texts(c event.Content) []string {
	switch c.Kind {
	case event.KindString:
		return []string{string(c.Data)}
	case event.KindJSON:
		return fulltext.JSONTexts(c.Data)
	default:
		return nil
	}
}

// checkSimilar compares the nearest events with those that the model computes.
func checkSimilar(t *testing.T, store *clickhouse.Store, f query.Filter, events []*event.Event) {
	for i, vector := range [][]float32{{1, 0, 0}, {0.3, -0.7, 0}, {-1, 1, 1e-3}, {1, 2}} {
		q := query.SimilarSearch{Filter: f, Vector: vector, Input: i != 1, Output: i != 2, LimitEvents: 1 + 12*i, BytesMax: 1 << 20}
		type scored struct {
			id    string
			score float64
		}
		var want []scored
		for _, e := range events {
			score := math.Inf(-1)
			for v, searched := range map[*event.Vector]bool{&e.InputEmbeddings: q.Input, &e.OutputEmbeddings: q.Output} {
				if !searched || v.Dimensions() != len(vector) {
					continue
				}
				var dot, a, b float64
				for i, x := range vector {
					dot, a, b = dot+float64(x)*float64(v.At(i)), a+float64(x)*float64(x), b+float64(v.At(i))*float64(v.At(i))
				}
				score = max(score, dot/math.Sqrt(a*b))
			}
			if !math.IsInf(score, -1) {
				want = append(want, scored{e.ID, score})
			}
		}
		slices.SortFunc(want, func(a, b scored) int { return cmp.Compare(b.score, a.score) })
		hits, err := store.SearchSimilar(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if len(hits.Hits) != min(len(want), q.LimitEvents) {
			t.Fatalf("%v: %d events, want %d of %d", vector, len(hits.Hits), q.LimitEvents, len(want))
		}
		for i, h := range hits.Hits {
			at := slices.IndexFunc(want, func(s scored) bool { return s.id == h.Event.ID })
			// Of equal scores any may come first.
			if at < 0 || math.Abs(h.Score-want[i].score) > 1e-5 || math.Abs(h.Score-want[at].score) > 1e-9 {
				t.Fatalf("%v: place %d is %q with score %v, want %v", vector, i, h.Event.ID, h.Score, want[i])
			}
		}
	}
}

// TestIndexHasEveryWord compares the words of the index with those of package fulltext, for a text around
// every letter, mark and digit of Unicode, and the needles with the contents.
func TestIndexHasEveryWord(t *testing.T) {
	store, _, _ := clickhousetest.Migrated(t)
	r := rand.New(rand.NewPCG(1, 9))
	id := event.NewID(clickhousetest.At(t, "2026-01-30T00:00:00Z"), "c")
	all := make(map[event.ID]string)
	var rows event.Rows
	var text []rune
	flush := func() {
		id = event.NewID(id.Micros()+1, "c")
		_, version := clickhousetest.Created(int64(len(all)))
		content := event.Content{Kind: event.KindString, Data: []byte(string(text))}
		if r.IntN(2) == 0 {
			content = event.Content{Kind: event.KindJSON, Data: escapedJSON(r, []any{string(text)})}
		}
		all[id] = string(text)
		rows.Contents = append(rows.Contents, event.ContentRow{ID: id, Field: event.FieldInput, Content: content, Version: version})
		text = text[:0]
	}
	for c := rune(1); c <= unicode.MaxRune; c++ {
		if c >= 0xD800 && c < 0xE000 || c > 0x3FFFF && c < 0xE0000 || !unicode.In(c, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S) {
			continue
		}
		if c >= 0x3400 && c <= 0x9FFF && c%16 != 0 || c >= 0xAC00 && c <= 0xD7A3 && c%16 != 0 || c >= 0x17000 && c%16 != 0 {
			continue // these scripts have thousands of similar characters, so some of them are enough
		}
		text = append(text, 'a', c, 'b', ' ', c, ' ', c, c, 'A', '1', c, ' ', 'B', '\'', c, '\n')
		if len(text) > 2000 {
			flush()
		}
	}
	flush()
	clickhousetest.Insert(t, store, rows)
	for id, text := range all {
		got := make(map[string]bool)
		for _, word := range store.IndexedWords(t, id) {
			got[word] = true
		}
		for word := range fulltext.Words(text) {
			for _, indexed := range fulltext.IndexWords(word.Text) {
				if !got[indexed] {
					t.Errorf("the index lacks %q of the word %q (%U)", indexed, word.Text, []rune(word.Text))
				}
			}
		}
	}
}
