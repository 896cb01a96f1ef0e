package mcp

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// readValue reads a document of one value, and a space after it, which ends a number.
func readValue(document string, w window) (value, error) {
	s := newScanner(strings.NewReader(document + " "))
	v, err := s.value(w)
	if err == nil {
		if _, next := s.next(); !errors.Is(next, io.ErrUnexpectedEOF) {
			err = errAnswer
		}
	}
	return v, err
}

const all = 1 << 30

func TestValueIsTheSame(t *testing.T) {
	for _, document := range []string{
		`null`, `true`, `-1.5e+300`, `18446744073709551615`, `""`, `"a"`, `[]`, `{}`, `[[[]]]`, ` [ 1 , 2 ] `,
		`"\"\\\/\b\f\n\r\t\u0000\u001f\u007f é 漢 😀 \ud83d\ude00 \u202e"`,
		"\"\U000e0041\U000e0042\ufeff\u200b\u200d\ufe0f\u2028\"",
		`{"a b":{"\"c\"":["}", "]", "\\", "\\\"", {"x":[]}]},"d":"{[\"","e": -0.0}`,
	} {
		v, err := readValue(document, window{most: all})
		if err != nil {
			t.Errorf("%s: %v", document, err)
			continue
		}
		var want, got any
		if err := json.Unmarshal([]byte(document), &want); err != nil {
			t.Fatal(err)
		}
		out := v.appendJSON(nil)
		if err := json.Unmarshal(out, &got); err != nil {
			t.Errorf("%s became %s: %v", document, out, err)
		}
		if diff := cmp.Diff(want, got); diff != "" || v.cut() || v.jsonWidth() != utf8.RuneCount(out) {
			t.Errorf("%s became %s, width %d, cut %v (-want +got):\n%s", document, out, v.jsonWidth(), v.cut(), diff)
		}
	}
}

// Characters that are not seen are written as escapes, and the joiners that some scripts and
// emoji need are not.
func TestUnseenCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"a\U000e0041b": `a\udb40\udc41b`, // a tag, in which words can be hidden
		"\U000e0101":   `\udb40\udd01`,   // a variation selector beyond the usual ones
		"\u202eabc":    `\u202eabc`,      // turns the direction of writing around
		"\x1b[31m":     `\u001b[31m`,
		"\u200b\ufeff": `\u200b\ufeff`,
		"👩\u200d💻 ❤\ufe0f می\u200cخواهم": "👩\u200d💻 ❤\ufe0f می\u200cخواهم",
		"a\u00a0b": "a\u00a0b",
	} {
		var out []byte
		for _, r := range text {
			out, _ = appendChar(out, r)
		}
		if string(out) != want {
			t.Errorf("%q became %s, want %s", text, out, want)
		}
	}
}

func TestBrokenAnswers(t *testing.T) {
	for _, document := range []string{"", `"a`, `"\x"`, `"\u12g4"`, `"\u12`, `[1`, `{"a":1`, `<html>`, `{"a"}`, `nope`, `[1,2`, `"\`} {
		s := newScanner(strings.NewReader(document))
		err := s.object(func(string) error { return s.skip() })
		if v, valueErr := readValue(document, window{most: all}); err == nil && valueErr == nil {
			t.Errorf("%q is read as %s", document, v.appendJSON(nil))
		}
	}
	s := newScanner(strings.NewReader(`{"` + strings.Repeat("a", nameCharsMax+1) + `":1}`))
	if err := s.object(func(string) error { return s.skip() }); !errors.Is(err, errAnswer) {
		t.Errorf("a name beyond the bound: %v", err)
	}
	s = newScanner(strings.NewReader(`"abcd"`))
	if text, err := s.text(3); !errors.Is(err, errAnswer) {
		t.Errorf("a text beyond the bound is %q, %v", text, err)
	}
}

// FuzzValue holds windows of a text to the text, whether it is a string or JSON.
func FuzzValue(f *testing.F) {
	f.Add("plain text", 5, false)
	f.Add("\x00\x1b\"\\\n\u202e😀\U000e0041 漢字", 7, false)
	f.Add(strings.Repeat("ab\"", 100), 33, true)
	f.Fuzz(func(t *testing.T, text string, most int, isJSON bool) {
		text = strings.ToValidUTF8(text[:min(len(text), 2000)], "\ufffd")
		most = 14 + max(most, -most)%500
		if most < 14 {
			return // the least integer has no opposite
		}
		var document []byte
		var err error
		if isJSON {
			document, err = json.Marshal(map[string]any{"k": []string{text}})
		} else {
			document, err = json.Marshal(text)
		}
		if err != nil {
			t.Fatal(err)
		}
		whole, err := readValue(string(document), window{most: all, asText: true})
		if err != nil {
			t.Fatal(err)
		}
		want := plain(whole.body)
		if isJSON {
			var got map[string][]string
			if err := json.Unmarshal([]byte(want), &got); err != nil || got["k"][0] != text {
				t.Fatalf("%s became %s: %v", document, want, err)
			}
		} else if want != text {
			t.Fatalf("%q became %q", text, want)
		}
		for _, r := range string(whole.body) {
			if unicode.Is(unicode.Cc, r) || r == '\u202e' || r == '\ufeff' {
				t.Fatalf("%q has %U", whole.body, r)
			}
		}
		// The windows follow each other without a gap.
		var parts strings.Builder
		for skip := 0; ; {
			v, err := readValue(string(document), window{skip: skip, most: most, asText: true})
			if err != nil {
				t.Fatal(err)
			}
			if v.width > most || v.width != utf8.RuneCount(v.body) || v.all != whole.all || v.skipped != min(skip, v.all) {
				t.Fatalf("window of %d after %d: width %d, %d of %d, skipped %d: %s", most, skip, v.width, v.shown, v.all, v.skipped, v.body)
			}
			parts.WriteString(plain(v.body))
			if !v.cut() {
				break
			}
			if v.shown == 0 {
				t.Fatalf("a window of %d after %d has nothing", most, skip)
			}
			skip += v.shown
		}
		if parts.String() != want {
			t.Fatalf("the windows are %q, want %q", parts.String(), want)
		}
		// What is read short, and what is cut later, are the same.
		short, err := readValue(string(document), window{most: most})
		if err != nil {
			t.Fatal(err)
		}
		trimmed, err := readValue(string(document), window{most: all})
		if err != nil {
			t.Fatal(err)
		}
		trimmed.trim(most)
		short.trim(most)
		for _, v := range []value{short, trimmed} {
			out := v.appendJSON(nil)
			if !json.Valid(out) || utf8.RuneCount(out) > most || utf8.RuneCount(out) != v.jsonWidth() || v.all != whole.all {
				t.Fatalf("cut to %d: %s, width %d", most, out, v.jsonWidth())
			}
			if v.isText && !strings.HasPrefix(want, plain(v.body)) {
				t.Fatalf("%q is no beginning of %q", plain(v.body), want)
			}
		}
		if diff := cmp.Diff(string(short.appendJSON(nil)), string(trimmed.appendJSON(nil))); diff != "" {
			t.Fatalf("read short and cut later (-short +later):\n%s", diff)
		}
	})
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		lengths []int
		most    int
		want    []int
	}{
		{[]int{10, 20}, 100, []int{10, 20}},
		{[]int{10, 200}, 100, []int{10, 86}}, // with the quotation marks
		{[]int{200, 10, 200}, 100, []int{42, 10, 42}},
		{[]int{50, 50, 50}, 30, []int{8, 8, 8}},
		{[]int{50}, -5, []int{0}},
		{nil, 10, nil},
	} {
		var values []*value
		var got []int
		for _, n := range tt.lengths {
			v := value{isText: true}
			for range n {
				v.add('x', &window{most: all})
			}
			values = append(values, &v)
		}
		fit(values, tt.most)
		for _, v := range values {
			got = append(got, v.shown)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v to %d (-want +got):\n%s", tt.lengths, tt.most, diff)
		}
	}
}
