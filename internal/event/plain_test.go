package event_test

import (
	"bytes"
	"encoding/base64"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
)

// What real clients send is read the quick way; if it were not, nothing else
// would tell.
func TestPlainTakesRealBodies(t *testing.T) {
	for _, name := range []string{"testdata/text.ndjson", "testdata/embedded.ndjson"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, body := range bytes.Split(bytes.TrimSpace(text), []byte{'\n'}) {
			if _, ok := event.ReadPlain(body); !ok {
				t.Errorf("%s: line %d is not plain", name, i+1)
			}
		}
	}
	body := []byte(` { "conversation_id" : "c\u00e9\n1", "conversation_metadata":{ "a":[1, -2.5e3, true,null,false],"b":{}, "c":[]},` +
		"\"event_name\":\"event_a\",\"input\":[{\"role\":\"user\",\"content\":\"日本語 \\\"x\\\" \\\\\"},{\"role\":\"\"}],\r\n\t" +
		`"output_embeddings":[ 0, -0.0,1e-3 , 12.25 ] } `)
	m, ok := event.ReadPlain(body)
	if !ok {
		t.Fatal("not plain")
	}
	checkPlain(t, body, m)
}

// checkPlain compares what the quick way took with the thorough one.
func checkPlain(t *testing.T, body []byte, m event.Members) {
	t.Helper()
	want, err := event.ReadAny(body)
	if err != nil {
		t.Fatalf("%q is taken for plain: %v", body, err)
	}
	raw, spaces := m.Raw()
	wantRaw, wantSpaces := want.Raw()
	if diff := cmp.Diff(wantRaw, raw); diff != "" {
		t.Fatalf("%q (-want +got):\n%s", body, diff)
	}
	if diff := cmp.Diff(wantSpaces, spaces); diff != "" {
		t.Fatalf("%q: spaces (-want +got):\n%s", body, diff)
	}
	if m.Finite() && !event.NumbersFinite(m.Metadata()) {
		t.Fatalf("%q: the metadata is taken for finite", body)
	}
	read, again, err := m.Vectors()
	if err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	for i := range read {
		if !bytes.Equal(read[i], again[i]) {
			t.Fatalf("%q: embedding %v, want %v", body, read[i], again[i])
		}
	}
}

func TestPlainLeavesOut(t *testing.T) {
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
		if event.PlainValue([]byte(value)) {
			t.Errorf("%q is taken for plain", value)
		}
	}
	for _, value := range []string{nest(31), `{` + many.String()[1:len(many.String())-7] + `}`, `"\u0041\/"`, `-0`, `0.5e-7`, `1E400`, "\"\x7fé\u2028\""} {
		if !event.PlainValue([]byte(value)) {
			t.Errorf("%q is not taken for plain", value)
		}
		if !jsontext.Value(value).IsValid() {
			t.Errorf("%q is not valid", value)
		}
	}
	for _, body := range []string{
		``, `[]`, `{"op":"delete"`, `{"id":"a"} x`, `{"id":"a"}{}`, `{"id":"a","id":"b"}`, `{"x":1}`, `{"id" "a"}`, `{"\u0069d":"a"}`,
		`{"input_embeddings":[]}`, `{"input_embeddings":["1"]}`, `{"input_embeddings":[1,]}`, `{"input_embeddings":[1`, `{"input_embeddings":[1 2]}`,
		`{"input_embeddings":[1e39]}`, `{"input_embeddings":[` + strings.Repeat("1,", 4096) + `1]}`,
	} {
		if _, ok := event.ReadPlain([]byte(body)); ok {
			t.Errorf("%.60q is taken for plain", body)
		}
	}
}

// Numbers are rounded as strconv rounds them, near the midpoints of two
// float32 most of all.
func TestPlainFloats(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	check := func(text string) {
		t.Helper()
		want, err := strconv.ParseFloat(text, 32)
		got, ok := event.PlainFloat([]byte(text))
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

func FuzzPlain(f *testing.F) {
	for _, c := range parseCases() {
		if len(c.body) < 4<<10 {
			f.Add([]byte(c.body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if event.PlainValue(body) && !jsontext.Value(body).IsValid() {
			t.Fatalf("%q is taken for plain", body)
		}
		if m, ok := event.ReadPlain(body); ok {
			checkPlain(t, body, m)
		}
		if v, ok := event.PlainFloat(body); ok {
			want, err := strconv.ParseFloat(string(body), 32)
			if err != nil || math.Float32bits(v) != math.Float32bits(float32(want)) {
				t.Fatalf("%q: %v, want %v, %v", body, v, want, err)
			}
		}
	})
}

func checkBase64(t *testing.T, text []byte) {
	t.Helper()
	want, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if bytes.ContainsAny(text, "\r\n") {
		err = base64.CorruptInputError(0)
	}
	got, ok := event.DecodeBase64(text)
	if ok != (err == nil) {
		t.Fatalf("%q: taken is %t, error %v", text, ok, err)
	}
	if ok && !bytes.Equal(got, want) {
		t.Fatalf("%q: %x, want %x", text, got, want)
	}
}

// A wrong byte is found wherever it is, and whatever the length.
func TestBase64(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for n := range 200 {
		raw := make([]byte, n)
		for i := range raw {
			raw[i] = byte(rng.Uint32())
		}
		text := base64.StdEncoding.AppendEncode(nil, raw)
		checkBase64(t, text)
		for i := range text {
			for _, c := range []byte("=A/+-_ \n\r\x00\x80\xff") {
				broken := bytes.Clone(text)
				broken[i] = c
				checkBase64(t, broken)
			}
			checkBase64(t, text[:i])
		}
	}
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("AAAA"))
	f.Add(bytes.Repeat([]byte("abc+/d=="), 9))
	f.Fuzz(checkBase64)
}
