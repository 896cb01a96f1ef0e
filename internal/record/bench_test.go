package record_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// benchRecords calls f with the records of real events: text, a list of messages,
// and text with two embeddings of 384 dimensions.
func benchRecords(b *testing.B, f func(b *testing.B, w *event.Write, r *record.Record)) {
	parser := &body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	for _, c := range []struct {
		name, path string
		line       int
	}{
		{"text", "text.ndjson", 0},
		{"messages", "text.ndjson", 2},
		{"base64", "embedded.ndjson", 0},
	} {
		bodies, err := os.ReadFile("../api/body/testdata/" + c.path)
		if err != nil {
			b.Fatal(err)
		}
		w, err := parser.ParseCreate(bytes.Split(bodies, []byte("\n"))[c.line], now)
		if err != nil {
			b.Fatal(err)
		}
		r := record.Record{
			Key: []byte(w.Ref().String()), Value: record.AppendWrite(nil, &w),
			Version: record.FormatVersion, AppendTime: now,
		}
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(r.Value)))
			b.ReportAllocs()
			f(b, &w, &r)
		})
	}
}

func BenchmarkAppendWrite(b *testing.B) {
	benchRecords(b, func(b *testing.B, w *event.Write, _ *record.Record) {
		var buf []byte
		for b.Loop() {
			buf = record.AppendWrite(buf[:0], w)
		}
	})
}

func BenchmarkDecodeWrite(b *testing.B) {
	benchRecords(b, func(b *testing.B, _ *event.Write, r *record.Record) {
		var w event.Write
		for b.Loop() {
			if err := record.DecodeWrite(&w, r.Value); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	benchRecords(b, func(b *testing.B, _ *event.Write, r *record.Record) {
		for b.Loop() {
			if _, err := record.Read(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
