package jsonscan_test

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/jsonscan"
)

// isPlain reports whether the value is plain, compact JSON.
func isPlain(b []byte) bool {
	s := jsonscan.Scanner{Text: b}
	return s.Value(0, 2) == len(b) && s.Spaces == 0
}

// plainFloat reads a number, and reports whether that is all there is.
func plainFloat(b []byte) (float32, bool) {
	s := jsonscan.Scanner{Text: b}
	v, end := s.Float(0)
	return v, end == len(b)
}

func TestScannerLeavesOut(t *testing.T) {
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	var many strings.Builder
	for i := range 25 {
		many.WriteString(`,"` + strconv.Itoa(i) + `":0`)
	}
	for _, value := range []string{
		``, ` `, `"`, `"a`, `"\`, `"\u12`, `"\u12g4"`, `"\x41"`, `"\ud83d\ude00"`, `"\ud83d"`, "\"\n\"", "\"\x1f\"", "\"abcdefgh\x01\"",
		"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"abcdefg\xc0\xaf\"",
		`[`, `[1`, `[1,`, `[1,]`, `[,1]`, `[1 2]`, `]`, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{a:1}`, `{"a" 1}`, `{1:1}`,
		`{"a":1,"a":2}`, `{"b":{"a":1,"c":2,"a":2}}`, `{"\u0061":1}`, `{` + many.String()[1:] + `}`, nest(32), ` 1`, `[1 ]`, `1,`,
		`01`, `-`, `+1`, `.5`, `1.`, `1.e1`, `1e`, `1e+`, `--1`, `0x1`, `1_0`, `NaN`, `Infinity`, `nul`, `truE`, `nulll`, `falsey`,
	} {
		if isPlain([]byte(value)) {
			t.Errorf("%q is taken for plain", value)
		}
	}
	for _, value := range []string{nest(31), `{` + many.String()[1:len(many.String())-7] + `}`, `"\u0041\/"`, `-0`, `0.5e-7`, `1E400`, "\"\x7fé\u2028\""} {
		if !isPlain([]byte(value)) {
			t.Errorf("%q is not taken for plain", value)
		}
		if !jsontext.Value(value).IsValid() {
			t.Errorf("%q is not valid", value)
		}
	}
}

// Numbers are rounded as strconv rounds them, near the midpoints of two
// float32 most of all.
func TestScannerFloats(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	check := func(text string) {
		t.Helper()
		want, err := strconv.ParseFloat(text, 32)
		got, ok := plainFloat([]byte(text))
		if ok != (err == nil) {
			t.Fatalf("%s: taken is %t, error %v", text, ok, err)
		}
		if ok && math.Float32bits(got) != math.Float32bits(float32(want)) {
			t.Fatalf("%s: %x, want %x", text, math.Float32bits(got), math.Float32bits(float32(want)))
		}
	}
	for _, text := range []string{
		"0", "-0", "0.0", "-0.000", "1", "-1", "0.1", "1e0", "1E+2", "1e-46", "3.4028235e38", "3.4028236e38", "1e39", "1e99999",
		"0.00000000000000000000012345678901", "1234567890123456789", "12345678901234567890", "123456789012345678.25",
		"0.1234567890123456789", "0.12345678901234567890", "9.999999999999999999", "16777217", "16777217.0000000001", "16777216.9999999999",
	} {
		check(text)
	}
	for range 200_000 {
		v := math.Float32frombits(rng.Uint32())
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			continue
		}
		v = float32(math.Ldexp(float64(v), -rng.IntN(20)))
		next := math.Nextafter32(v, math.MaxFloat32)
		half := (float64(v) + float64(next)) / 2
		for _, d := range []float64{float64(v), half, math.Nextafter(half, 9), math.Nextafter(half, -9)} {
			check(strconv.FormatFloat(d, "fgeG"[rng.IntN(4)], -1, 64))
			check(strconv.FormatFloat(d, 'f', rng.IntN(22), 64))
		}
		check(strconv.FormatFloat(rng.NormFloat64()/16, 'f', rng.IntN(22), 64))
		check(strconv.FormatFloat(float64(float32(rng.NormFloat64()/16)), 'g', -1, 64))
	}
}

func FuzzScanner(f *testing.F) {
	for _, text := range []string{
		`{"a":[1, -2.5e3, true,null,false],"b":{}, "c":[]}`, `"日本語 \"x\" \\"`, `[{"role":"user","content":"\u00e9\n"}]`, `-0.25`, `1E400`, `{"a":1,"a":2}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if isPlain(text) && !jsontext.Value(text).IsValid() {
			t.Fatalf("%q is taken for plain", text)
		}
		if v, ok := plainFloat(text); ok {
			want, err := strconv.ParseFloat(string(text), 32)
			if err != nil || math.Float32bits(v) != math.Float32bits(float32(want)) {
				t.Fatalf("%q: %v, want %v, %v", text, v, want, err)
			}
		}
	})
}
