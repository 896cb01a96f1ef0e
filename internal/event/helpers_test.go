package event_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

var update = flag.Bool("update", false, "write golden files and vectors instead of comparing with them")

// now is when the tests' requests are received.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// golden compares got with the file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
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

// indented is the JSON of v as the vector files have it.
func indented(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
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
