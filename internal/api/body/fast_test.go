package body_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// What real clients send is read the quick way; if it were not, nothing else
// would tell.
func TestFastTakesRealBodies(t *testing.T) {
	for _, name := range []string{"testdata/text.ndjson", "testdata/embedded.ndjson"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range bytes.Split(bytes.TrimSpace(text), []byte{'\n'}) {
			if _, ok := body.ReadFast(line); !ok {
				t.Errorf("%s: line %d is not taken by the fast way", name, i+1)
			}
		}
	}
	text := []byte(` { "conversation_id" : "c\u00e9\n1", "conversation_metadata":{ "a":[1, -2.5e3, true,null,false],"b":{}, "c":[]},` +
		"\"event_name\":\"event_a\",\"input\":[{\"role\":\"user\",\"content\":\"日本語 \\\"x\\\" \\\\\"},{\"role\":\"\"}],\r\n\t" +
		`"output_embeddings":[ 0, -0.0,1e-3 , 12.25 ] } `)
	m, ok := body.ReadFast(text)
	if !ok {
		t.Fatal("not taken")
	}
	checkFast(t, text, m)
}

// checkFast compares what the quick way took with the thorough one.
func checkFast(t *testing.T, text []byte, m body.Members) {
	t.Helper()
	want, err := body.ReadStrict(text)
	if err != nil {
		t.Fatalf("%q is taken by the fast way: %v", text, err)
	}
	raw, spaces := m.Raw()
	wantRaw, wantSpaces := want.Raw()
	if diff := cmp.Diff(wantRaw, raw); diff != "" {
		t.Fatalf("%q (-want +got):\n%s", text, diff)
	}
	if diff := cmp.Diff(wantSpaces, spaces); diff != "" {
		t.Fatalf("%q: spaces (-want +got):\n%s", text, diff)
	}
	if m.Finite() && !jsonscan.NumbersFinite(m.Metadata()) {
		t.Fatalf("%q: the metadata is taken for finite", text)
	}
	read, again, err := m.Vectors()
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	for i := range read {
		if !bytes.Equal(read[i], again[i]) {
			t.Fatalf("%q: embedding %v, want %v", text, read[i], again[i])
		}
	}
}

func TestFastLeavesOut(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `{"op":"delete"`, `{"id":"a"} x`, `{"id":"a"}{}`, `{"id":"a","id":"b"}`, `{"x":1}`, `{"id" "a"}`, `{"\u0069d":"a"}`,
		`{"input_embeddings":[]}`, `{"input_embeddings":["1"]}`, `{"input_embeddings":[1,]}`, `{"input_embeddings":[1`, `{"input_embeddings":[1 2]}`,
		`{"input_embeddings":[1e39]}`, `{"input_embeddings":[` + strings.Repeat("1,", 4096) + `1]}`,
	} {
		if _, ok := body.ReadFast([]byte(text)); ok {
			t.Errorf("%.60q is taken by the fast way", text)
		}
	}
}

func FuzzFast(f *testing.F) {
	for _, c := range parseCases() {
		if len(c.body) < 4<<10 {
			f.Add([]byte(c.body))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if m, ok := body.ReadFast(text); ok {
			checkFast(t, text, m)
		}
	})
}
