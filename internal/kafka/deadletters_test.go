package kafka_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
)

var update = flag.Bool("update", false, "write the golden files")

// The headers are a format that other tools read.
func TestDeadLetterGolden(t *testing.T) {
	t.Parallel()
	r := kafka.NewLetterRecord("sluice.events.dlq", &event.DeadLetter{
		Record: event.Record{Generation: 3, Partition: 7, Offset: 123456789012, Key: []byte("order-17"), Value: []byte("\x08\x02"), Version: 1},
		Reason: event.CodeUnknownEvent, Detail: "names no event that was created before it",
	})
	var got bytes.Buffer
	fmt.Fprintf(&got, "topic %s\nkey %q\nvalue %q\n", r.Topic, r.Key, r.Value)
	for _, h := range r.Headers {
		fmt.Fprintf(&got, "header %s %q\n", h.Key, h.Value)
	}
	file := filepath.Join("testdata", "deadletter.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

func FuzzDeadLetter(f *testing.F) {
	f.Add(1, int32(3), int64(9), []byte("key"), []byte("value"), 1, "unknown_event", "names no event")
	f.Add(16383, int32(1<<30), int64(1)<<48-1, []byte{}, []byte{0xff}, 0, "", "")
	f.Add(0, int32(0), int64(0), []byte(nil), []byte(nil), 12, "x", "detail")
	f.Fuzz(func(t *testing.T, generation int, partition int32, offset int64, key, value []byte, version int, reason, detail string) {
		l := event.DeadLetter{
			Record: event.Record{
				Generation: generation & 0x3fff, Partition: partition & 0x7fffffff, Offset: offset & event.OffsetMax,
				Key: key, Value: value, Version: version & 0xffff,
			},
			Reason: event.Code(reason), Detail: detail,
		}
		got, err := kafka.ParseLetter(kafka.NewLetterRecord("p.dlq", &l))
		if err != nil {
			t.Fatal(err)
		}
		if len(detail) > kafka.DetailBytesMax {
			l.Detail = detail[:len(got.Detail)]
		}
		if diff := cmp.Diff(l, got, cmp.Comparer(bytes.Equal)); diff != "" {
			t.Error(diff)
		}
	})
}

// A long detail is cut between characters.
func TestDeadLetterDetail(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		detail string
		want   int
	}{
		{strings.Repeat("a", kafka.DetailBytesMax), kafka.DetailBytesMax},
		{strings.Repeat("a", kafka.DetailBytesMax+1), kafka.DetailBytesMax},
		{strings.Repeat("é", kafka.DetailBytesMax), kafka.DetailBytesMax},
		{"a" + strings.Repeat("é", kafka.DetailBytesMax), kafka.DetailBytesMax - 1},
		{strings.Repeat("\x80", kafka.DetailBytesMax+1), 0},
	} {
		l, err := kafka.ParseLetter(kafka.NewLetterRecord("p.dlq", &event.DeadLetter{Detail: tt.detail}))
		if err != nil {
			t.Fatal(err)
		}
		if l.Detail != tt.detail[:tt.want] {
			t.Errorf("%.4q…: cut to %d bytes, want %d", tt.detail, len(l.Detail), tt.want)
		}
	}
}

func TestNoDeadLetter(t *testing.T) {
	t.Parallel()
	whole := kafka.NewLetterRecord("p.dlq", &event.DeadLetter{Record: event.Record{Generation: 1, Key: []byte("k")}})
	for i, h := range whole.Headers {
		t.Run("without "+h.Key, func(t *testing.T) {
			t.Parallel()
			r := &kgo.Record{Headers: append(append([]kgo.RecordHeader(nil), whole.Headers[:i]...), whole.Headers[i+1:]...)}
			_, err := kafka.ParseLetter(r)
			if wanted := h.Key != "sluice-topic"; (err != nil) != wanted { // generation and prefix say the same
				t.Errorf("error %v", err)
			}
		})
		t.Run("bad "+h.Key, func(t *testing.T) {
			t.Parallel()
			r := &kgo.Record{Headers: append([]kgo.RecordHeader(nil), whole.Headers...)}
			r.Headers[i].Value = []byte("-1x")
			_, err := kafka.ParseLetter(r)
			switch h.Key {
			case "sluice-generation", "sluice-partition", "sluice-offset":
				if err == nil {
					t.Error("no error")
				}
			}
		})
	}
}
