// Package eventtest makes random values of events for tests.
package eventtest

import (
	"math"
	"math/rand/v2"
	"strings"

	"github.com/sluicehq/sluice/internal/event"
)

// Vector returns a vector of any finite float32 values, mostly short, and now and
// then of the most dimensions.
func Vector(r *rand.Rand) event.Vector {
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

// Text returns a text of so many characters, some of which need escaping in JSON
// or several bytes in UTF-8.
func Text(r *rand.Rand, lengthMin, lengthMax int) string {
	alphabet := []rune("abc XYZ019\x00\n\"\\{}é漢😀\u2028")
	var b strings.Builder
	for n := lengthMin + r.IntN(lengthMax-lengthMin+1); n > 0; n-- {
		b.WriteRune(alphabet[r.IntN(len(alphabet))])
	}
	return b.String()
}
