package event_test

import (
	"math"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func TestVector(t *testing.T) {
	values := []float32{0, 1, -2.5, math.MaxFloat32, math.SmallestNonzeroFloat32}
	v := event.VectorOf(values...)
	if v.Dimensions() != len(values) {
		t.Fatalf("%d dimensions", v.Dimensions())
	}
	for i, want := range values {
		if got := v.At(i); got != want {
			t.Errorf("dimension %d is %g, want %g", i, got, want)
		}
	}
}

// NaN and infinities are found at every place, whatever is beside them.
func TestVectorIsFinite(t *testing.T) {
	id := event.NewID(now.UnixMicro(), "c")
	for n := 1; n < 12; n++ {
		for _, filler := range []float32{0, -math.MaxFloat32, math.MaxFloat32} {
			values := make([]float32, n)
			for i := range values {
				values[i] = filler
			}
			w := event.Write{Op: event.OpUpdate, ID: id, Set: 1 << event.FieldInputEmbeddings, InputEmbeddings: event.VectorOf(values...)}
			if err := w.Validate(now); err != nil {
				t.Errorf("%v: %v", values, err)
			}
			for i := range values {
				for _, bits := range []uint32{0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x7fc0_0000, 0xffff_ffff} {
					values[i] = math.Float32frombits(bits)
					w.InputEmbeddings = event.VectorOf(values...)
					if err := w.Validate(now); err == nil {
						t.Errorf("%v is taken for finite", values)
					}
					values[i] = filler
				}
			}
			w.InputEmbeddings = w.InputEmbeddings[:len(w.InputEmbeddings)-1]
			if err := w.Validate(now); err == nil {
				t.Error("a part of a float32 is taken")
			}
		}
	}
}
