package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/event/eventtest"
)

func TestEventAppendJSON(t *testing.T) {
	latency := 451.061
	full := event.Event{
		ID: "order-\"1\"", ConversationID: "漢\x00", EventName: "event_a", Micros: 1_767_323_045_678_901,
		Metadata: `{"plan":"pro"}`, Error: "timeout\n", Latency: &latency,
		Input:           event.Content{Kind: event.KindString, Data: []byte(`say "hi" </script>`)},
		Output:          event.Content{Kind: event.KindJSON, Data: []byte(`[{"n":1.0}]`)},
		InputEmbeddings: event.VectorOf(0.1, float32(math.Copysign(0, -1)), 1e-45, math.MaxFloat32, 16777216),
	}
	for _, c := range []struct {
		name       string
		event      event.Event
		embeddings bool
		want       string
	}{
		{
			"empty",
			event.Event{ID: "a", ConversationID: "c", EventName: "event_a", Micros: 946_684_800_000_000},
			false,
			`{"id":"a","conversation_id":"c","conversation_metadata":null,"event_name":"event_a","timestamp":"2000-01-01T00:00:00Z",` +
				`"error":null,"latency":null,"input":null,"output":null}`,
		},
		{
			"empty with embeddings",
			event.Event{ID: "a", ConversationID: "c", EventName: "event_a", Micros: 946_684_800_500_000},
			true,
			`{"id":"a","conversation_id":"c","conversation_metadata":null,"event_name":"event_a","timestamp":"2000-01-01T00:00:00.5Z",` +
				`"error":null,"latency":null,"input":null,"output":null,"input_embeddings":null,"output_embeddings":null}`,
		},
		{
			"full", full, true,
			`{"id":"order-\"1\"","conversation_id":"漢\u0000","conversation_metadata":{"plan":"pro"},"event_name":"event_a",` +
				`"timestamp":"2026-01-02T03:04:05.678901Z","error":"timeout\n","latency":451.061,"input":"say \"hi\" </script>",` +
				`"output":[{"n":1.0}],"input_embeddings":[0.1,-0,1e-45,3.4028235e+38,16777216],"output_embeddings":null}`,
		},
		{
			"full without embeddings", full, false,
			`{"id":"order-\"1\"","conversation_id":"漢\u0000","conversation_metadata":{"plan":"pro"},"event_name":"event_a",` +
				`"timestamp":"2026-01-02T03:04:05.678901Z","error":"timeout\n","latency":451.061,"input":"say \"hi\" </script>",` +
				`"output":[{"n":1.0}]}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.event.AppendJSON([]byte("x"), c.embeddings)
			if string(got) != "x"+c.want {
				t.Errorf("got  x%s\nwant x%s", got[1:], c.want)
			}
			if !jsontext.Value(got[1:]).IsValid() {
				t.Error("is not valid JSON")
			}
		})
	}
}

// Events that are long in any of their fields come out the same by the piece,
// and no piece is much longer than it may be.
func TestEventSpillJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	text := func(alphabet string) string {
		runes := []rune(alphabet)
		var b []byte
		for len(b) < 100_000 {
			for range r.IntN(3000) {
				b = utf8.AppendRune(b, runes[r.IntN(len(runes))])
			}
			b = append(b, "x"[:r.IntN(2)]...)
		}
		return string(b)
	}
	invalid := make([]byte, 50_000)
	for i := range invalid {
		invalid[i] = byte(r.Uint32())
	}
	vector := make([]float32, event.EmbeddingDimensionsMax)
	for i := range vector {
		vector[i] = -math.MaxFloat32 / float32(i+1)
	}
	long := event.Event{
		ID: "a", ConversationID: "c", EventName: "e",
		Metadata: `{"k":"` + strings.Repeat("v", 100_000) + `"}`, Error: text("a\x00\"\\ü漢😀"),
		Input:           event.Content{Kind: event.KindString, Data: []byte(text("漢字😀"))},
		Output:          event.Content{Kind: event.KindJSON, Data: []byte(`["` + strings.Repeat("v", 100_000) + `"]`)},
		InputEmbeddings: event.VectorOf(vector...), OutputEmbeddings: event.VectorOf(vector...),
	}
	broken := event.Event{Input: event.Content{Kind: event.KindString, Data: invalid}, Output: event.Content{Kind: event.KindString, Data: bytes.Repeat([]byte{0x80}, 30_000)}}
	for _, e := range []event.Event{long, broken, {}} {
		var got []byte
		rest, err := e.SpillJSON([]byte("x"), true, func(b []byte) ([]byte, error) {
			if most := event.JSONPieceBytes + 32<<10; len(b) < event.JSONPieceBytes || len(b) > most {
				t.Errorf("a piece of %d bytes", len(b))
			}
			got = append(got, b...)
			return b[:0], nil
		})
		got = append(got, rest...)
		if want := e.AppendJSON([]byte("x"), true); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes by the piece and %d at once, error %v", len(got), len(want), err)
		}
		if e.ID != "" && !jsontext.Value(got[1:]).IsValid() {
			t.Error("is not valid JSON")
		}
		// What quotes the whole text at once is the standard library.
		if want, _ := jsontext.AppendQuote(nil, e.Error); e.Error != "" && !bytes.Contains(got, want) {
			t.Error("the error is not the text")
		}
		if want, _ := jsontext.AppendQuote(nil, e.Input.Data); len(e.Input.Data) > 0 && !bytes.Contains(got, want) {
			t.Error("the input is not the text")
		}
	}
	gone, calls := errors.New("gone"), 0
	if _, err := long.SpillJSON(nil, true, func(b []byte) ([]byte, error) { calls++; return b, gone }); !errors.Is(err, gone) || calls != 1 {
		t.Errorf("error %v after %d calls", err, calls)
	}
}

// TestEventJSONKeepsFloats checks that every float survives its text bit for bit.
func TestEventJSONKeepsFloats(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for range 2_000 {
		latency := math.Float64frombits(r.Uint64() &^ (1 << 63))
		if math.IsNaN(latency) || math.IsInf(latency, 0) {
			continue
		}
		e := event.Event{Latency: &latency, InputEmbeddings: eventtest.Vector(r)}
		var got struct {
			Latency float64   `json:"latency"`
			Vector  []float32 `json:"input_embeddings"`
		}
		if err := json.Unmarshal(e.AppendJSON(nil, true), &got); err != nil {
			t.Fatal(err)
		}
		if got.Latency != latency {
			t.Fatalf("latency %g came back as %g", latency, got.Latency)
		}
		if !bytes.Equal(event.VectorOf(got.Vector...), e.InputEmbeddings) {
			t.Fatalf("%v came back as %v", e.InputEmbeddings, got.Vector)
		}
	}
}
