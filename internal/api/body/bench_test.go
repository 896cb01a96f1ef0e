package body_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

// benchBodies are bodies of real events: text, and with two embeddings of 384
// dimensions in either form.
func benchBodies(b *testing.B) []struct {
	name string
	body []byte
} {
	b.Helper()
	read := func(path string) []byte {
		text, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		return bytes.TrimSpace(text)
	}
	texts := bytes.Split(read("testdata/text.ndjson"), []byte("\n"))
	embedded := read("testdata/embedded.ndjson")
	w, err := newParser().ParseCreate(embedded, now)
	if err != nil {
		b.Fatal(err)
	}
	array := func(vector event.Vector) string {
		numbers := make([]string, vector.Dimensions())
		for i := range numbers {
			numbers[i] = strconv.FormatFloat(float64(vector.At(i)), 'g', -1, 32)
		}
		return "[" + strings.Join(numbers, ",") + "]"
	}
	numbers := with(`"timestamp":1792800060039,"input":"Help me find a rental car.","input_embeddings":` + array(w.InputEmbeddings) +
		`,"output_embeddings":` + array(w.OutputEmbeddings))
	return []struct {
		name string
		body []byte
	}{
		{"text", texts[0]},
		{"messages", texts[2]},
		{"base64", embedded},
		{"numbers", []byte(numbers)},
	}
}

func BenchmarkParseCreate(b *testing.B) {
	parser := newParser()
	for _, c := range benchBodies(b) {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parser.ParseCreate(c.body, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEventAppendJSON(b *testing.B) {
	parser := newParser()
	for _, c := range benchBodies(b)[:3] {
		w, err := parser.ParseCreate(c.body, now)
		if err != nil {
			b.Fatal(err)
		}
		e := event.Event{
			ID: w.ID.String(), ConversationID: w.ConversationID, EventName: w.EventName, Micros: w.ID.Micros(),
			Metadata: string(w.Metadata), Latency: &w.Latency, Input: w.Input, Output: w.Output,
			InputEmbeddings: w.InputEmbeddings, OutputEmbeddings: w.OutputEmbeddings,
		}
		b.Run(c.name, func(b *testing.B) {
			var buf []byte
			b.SetBytes(int64(len(e.AppendJSON(nil, true))))
			b.ReportAllocs()
			for b.Loop() {
				buf = e.AppendJSON(buf[:0], true)
			}
		})
	}
}

// TestBenchBodies keeps the benchmark's bodies what they claim to be.
func TestBenchBodies(t *testing.T) {
	for _, path := range []string{"testdata/text.ndjson", "testdata/embedded.ndjson"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range bytes.Split(bytes.TrimSpace(text), []byte("\n")) {
			t.Run(fmt.Sprintf("%s:%d", path, i+1), func(t *testing.T) {
				w, err := newParser().ParseItem(line, now)
				if err != nil {
					t.Fatal(err)
				}
				checkWrite(t, w)
				if n := w.InputEmbeddings.Dimensions(); strings.Contains(path, "embedded") && n != 384 {
					t.Errorf("%d dimensions", n)
				}
			})
		}
	}
}
