package event_test

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

func randomPosition(r *rand.Rand) event.Position {
	generation, offset := r.IntN(event.GenerationMax+1), r.Int64N(event.OffsetMax+1)
	switch r.IntN(4) {
	case 0:
		generation = r.IntN(2) * event.GenerationMax
	case 1:
		offset = r.Int64N(3)
	case 2:
		offset = event.OffsetMax - r.Int64N(3)
	}
	return event.MakePosition(generation, offset)
}

func TestVersionOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 100_000 {
		p, q := randomPosition(r), randomPosition(r)
		a, b := event.Class(r.IntN(3)), event.Class(r.IntN(3))
		v, w := event.MakeVersion(a, p), event.MakeVersion(b, q)
		if v.Class() != a || v.Position() != p {
			t.Fatalf("class %d, position %x came back as %d, %x", a, p, v.Class(), v.Position())
		}
		want := cmp.Compare(a, b)
		if want == 0 && a == event.ClassCreate {
			want = cmp.Compare(q, p) // the first create is the highest
		} else if want == 0 {
			want = cmp.Compare(p, q) // the last update or delete is the highest
		}
		if got := cmp.Compare(v, w); got != want {
			t.Fatalf("class %d at %x against class %d at %x: got %d, want %d", a, p, b, q, got, want)
		}
		if got, want := v.Counts(q), a != event.ClassCreate || p == q; got != want {
			t.Fatalf("class %d at %x counts for an event created at %x: %t", a, p, q, got)
		}
	}
}

func TestPositionOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 100_000 {
		g1, o1 := r.IntN(event.GenerationMax+1), r.Int64N(event.OffsetMax+1)
		g2, o2 := g1+r.IntN(2), r.Int64N(event.OffsetMax+1)
		if g2 > event.GenerationMax {
			continue
		}
		want := cmp.Or(cmp.Compare(g1, g2), cmp.Compare(o1, o2))
		if got := cmp.Compare(event.MakePosition(g1, o1), event.MakePosition(g2, o2)); got != want {
			t.Fatalf("%d.%d against %d.%d: got %d, want %d", g1, o1, g2, o2, got, want)
		}
	}
}

func TestMakePositionPanics(t *testing.T) {
	for _, c := range []struct {
		name       string
		generation int
		offset     int64
	}{
		{"generation negative", -1, 0},
		{"generation of 15 bits", event.GenerationMax + 1, 0},
		{"offset negative", 0, -1},
		{"offset of 49 bits", 0, event.OffsetMax + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("did not panic")
				}
			}()
			event.MakePosition(c.generation, c.offset)
		})
	}
}

func TestVersionValues(t *testing.T) {
	at := event.MakePosition(1, 5)
	for _, c := range []struct {
		name  string
		class event.Class
		want  event.Version
	}{
		{"create", event.ClassCreate, 0x3ffe_ffff_ffff_fffa},
		{"update", event.ClassUpdate, 0x4001_0000_0000_0005},
		{"delete", event.ClassDelete, 0x8001_0000_0000_0005},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := event.MakeVersion(c.class, at); got != c.want {
				t.Errorf("got %#x, want %#x", uint64(got), uint64(c.want))
			}
		})
	}
}

func TestReceiptRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 10_000 {
		want := event.Receipt{
			Generation: r.IntN(event.GenerationMax + 1), Partition: r.Int32N(1<<31 - 1), Offset: r.Int64N(event.OffsetMax + 1),
		}
		got, err := event.ParseReceipt(want.String())
		if err != nil || got != want {
			t.Fatalf("%s came back as %v, %v", want, got, err)
		}
	}
}

func TestParseReceiptRefuses(t *testing.T) {
	for _, s := range []string{
		"", "1", "1.2", "1.2.3.4", "1.2.", ".2.3", "-1.2.3", "1.-2.3", "1.2.-3", "+1.2.3", "01.2.3", "1.2.0x3", "1.2.3 ",
		"16384.0.0", "0.2147483648.0", "0.0.281474976710656", "0.0.99999999999999999999", "1,2,3", "a.b.c",
	} {
		t.Run(s, func(t *testing.T) {
			_, err := event.ParseReceipt(s)
			var got *event.Error
			if !errors.As(err, &got) || got.Code != event.CodeInvalidValue || got.Field != "receipt" {
				t.Errorf("got %v", err)
			}
		})
	}
}
