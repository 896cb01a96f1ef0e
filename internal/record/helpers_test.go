package record_test

import (
	"bytes"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

// now is when the tests' records are appended.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// golden compares got with the file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what the code gives; run go test -update and look at the difference.\ngot:\n%s", path, got)
	}
}

func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// randomWrite returns any valid write.
func randomWrite(r *rand.Rand) event.Write {
	conversation := randomText(r, 1, 40)
	at := now.UnixMicro() - r.Int64N(8e14)
	id := event.MakeID(at, event.ConversationHash(conversation), r.Uint64())
	var w event.Write
	switch r.IntN(4) {
	case 0:
		w.ID = id
	default:
		w.Alias = "alias-" + strings.Repeat("x", r.IntN(100))
	}
	w.Op = event.Op(1 + r.IntN(3))
	switch w.Op {
	case event.OpCreate:
		w.ConversationID = conversation
		if w.Alias != "" {
			w.ID = id.AsInternal()
		} else {
			w.Fresh = r.IntN(2) == 0
		}
		w.Set = event.Fields(0).With(event.FieldEventName) | event.Fields(r.IntN(256))
	case event.OpUpdate:
		w.Set = event.Fields(1 + r.IntN(255))
		w.Null = w.Set & event.Fields(r.IntN(256)) &^ event.Fields(0).With(event.FieldEventName)
	case event.OpDelete:
		return w
	}
	has := (w.Set &^ w.Null).Has
	if has(event.FieldEventName) {
		w.EventName = randomText(r, 1, 20)
	}
	if has(event.FieldMetadata) {
		w.Metadata = []byte([...]string{`{}`, `{"plan":"pro"}`, `{"a":[1,2.50,{"b":null}],"é":"\u00e9"}`}[r.IntN(3)])
	}
	if has(event.FieldError) {
		w.Error = randomText(r, 1, 200)
	}
	if has(event.FieldLatency) {
		w.Latency = [...]float64{0, 1.5, 5e-324, math.MaxFloat64, r.Float64() * 1e4}[r.IntN(5)]
	}
	if has(event.FieldInput) {
		w.Input = randomContent(r)
	}
	if has(event.FieldOutput) {
		w.Output = randomContent(r)
	}
	if has(event.FieldInputEmbeddings) {
		w.InputEmbeddings = randomVector(r)
	}
	if has(event.FieldOutputEmbeddings) {
		w.OutputEmbeddings = randomVector(r)
	}
	return w
}

func randomContent(r *rand.Rand) event.Content {
	if r.IntN(2) == 0 {
		return event.Content{Kind: event.KindString, Data: []byte(randomText(r, 0, 600))}
	}
	return event.Content{Kind: event.KindJSON, Data: []byte([...]string{
		`[]`, `0`, `-1.50e+9`, `true`, `false`, `[{"role":"user","content":"hi there"}]`, `{"b":1,"a":" x "}`,
	}[r.IntN(7)])}
}

func randomVector(r *rand.Rand) event.Vector {
	n := 1 + r.IntN(8)
	if r.IntN(200) == 0 {
		n = event.EmbeddingDimensionsMax
	}
	v := make([]float32, n)
	for i := range v {
		for {
			v[i] = math.Float32frombits(r.Uint32())
			if f := float64(v[i]); !math.IsNaN(f) && !math.IsInf(f, 0) {
				break
			}
		}
	}
	return event.VectorOf(v...)
}

func randomText(r *rand.Rand, lengthMin, lengthMax int) string {
	alphabet := []rune("abc XYZ019\x00\n\"\\{}é漢😀\u2028")
	var b strings.Builder
	for n := lengthMin + r.IntN(lengthMax-lengthMin+1); n > 0; n-- {
		b.WriteRune(alphabet[r.IntN(len(alphabet))])
	}
	return b.String()
}
