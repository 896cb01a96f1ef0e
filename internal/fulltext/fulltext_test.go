package fulltext_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/fulltext"
)

func TestParse(t *testing.T) {
	for text, want := range map[string][][]string{
		"Refund":                {{"refund"}},
		"  a\tb\n ":             {{"a"}, {"b"}},
		`say "not yet" NOW`:     {{"say"}, {"not", "yet"}, {"now"}},
		`an "open phrase`:       {{"an"}, {"open", "phrase"}},
		"don't":                 {{"don", "t"}},
		"你好 wörld":              {{"你", "好"}, {"wörld"}},
		"ΟΔΟΣ οδός":             {{"οδοσ"}, {"οδόσ"}},
		"İstanbul":              {{"i\u0307stanbul"}},
		`"" "—" x`:              {{"x"}},
		"a@b.example foo_bar 1": {{"a", "b", "example"}, {"foo", "bar"}, {"1"}},
	} {
		q, err := fulltext.Parse(text)
		if diff := cmp.Diff(want, q.Phrases); diff != "" || err != nil {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
	for text, want := range map[string]error{
		"": fulltext.ErrNoWords, ` "?!" — `: fulltext.ErrNoWords, strings.Repeat("a ", fulltext.QueryWordsMax+1): fulltext.ErrTooManyWords,
	} {
		if _, err := fulltext.Parse(text); err != want { //nolint:errorlint // returned as it is
			t.Errorf("%.20q: %v, want %v", text, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		query string
		parts []string
		want  []string // what was found, in order; nil if the query does not match
	}{
		{"refund", []string{"A REFUND, refunded"}, []string{"REFUND"}},
		{`"a refund"`, []string{"a", "refund"}, nil},
		{"a refund", []string{"a", "refund"}, []string{"a", "refund"}},
		{"世界", []string{"你好世界"}, []string{"世界"}},
		{"好界", []string{"你好世界"}, nil},
		{"don't", []string{"I don’t"}, []string{"don’t"}},
		{"rld", []string{"wörld"}, nil},
		{"x", nil, nil},
	} {
		q, err := fulltext.Parse(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if spans, ok := q.Match(tt.parts); ok {
			for i, part := range tt.parts {
				for _, s := range spans[i] {
					got = append(got, part[s.Start:s.End])
				}
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q in %q: %q, want %q", tt.query, tt.parts, got, tt.want)
		}
	}
}

func TestJSONTexts(t *testing.T) {
	got := fulltext.JSONTexts([]byte(`[{"role":"user","content":"\u4f60\"好\""},3.25,true,null,{"a":{"b":["c",{}]}}]`))
	if diff := cmp.Diff([]string{"user", "你\"好\"", "3.25", "c"}, got); diff != "" {
		t.Error(diff)
	}
	if got := fulltext.JSONTexts([]byte(`["a",`)); !slices.Equal(got, []string{"a"}) {
		t.Errorf("of broken JSON: %q", got)
	}
}

// TestSnippets shows the places of long texts within bounds, and cuts no character.
func TestSnippets(t *testing.T) {
	q, err := fulltext.Parse("needle")
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{strings.Repeat("世", 1000) + " needle " + strings.Repeat("é", 1000), strings.Repeat("needle ", 1000), "nothing"}
	spans, _ := q.Match(parts)
	snippets := fulltext.Snippets(parts, spans)
	if len(snippets) != 3 {
		t.Fatalf("%d snippets", len(snippets))
	}
	for _, s := range snippets {
		if len(s.Text) > 600 || strings.ContainsRune(s.Text, '\uFFFD') || len(s.Spans) == 0 || len(s.Spans) > 20 {
			t.Errorf("%d bytes, %d spans: %q", len(s.Text), len(s.Spans), s.Text)
		}
		for _, span := range s.Spans {
			if s.Text[span.Start:span.End] != "needle" {
				t.Errorf("found %q", s.Text[span.Start:span.End])
			}
		}
	}
}

// FuzzWords holds that the words lie in the text, in order, and are found in it.
func FuzzWords(f *testing.F) {
	for _, seed := range []string{"Refund don't", "你好 x世a界", "\xff\xfe a", "e\u0301 İ ΟΔΟΣ"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		end := 0
		for w := range fulltext.Words(text) {
			if w.Start < end || w.End <= w.Start || w.End > len(text) {
				t.Fatalf("word at %d to %d after %d", w.Start, w.End, end)
			}
			end = w.End
			q := fulltext.Query{Phrases: [][]string{{w.Text}}}
			if _, ok := q.Match([]string{text}); !ok {
				t.Fatalf("%q is not found in %q", w.Text, text)
			}
		}
	})
}
