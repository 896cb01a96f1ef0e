package kafka_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/golden"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// The headers are a format that other tools read.
func TestDeadLetterGolden(t *testing.T) {
	t.Parallel()
	r := kafka.NewLetterRecord("sluice.events.dlq", &record.DeadLetter{
		Record: record.Record{Generation: 3, Partition: 7, Offset: 123456789012, Key: []byte("order-17"), Value: []byte("\x08\x02"), Version: 1},
		Reason: event.CodeUnknownEvent, Detail: "names no event that was created before it",
	})
	var got bytes.Buffer
	fmt.Fprintf(&got, "topic %s\nkey %q\nvalue %q\n", r.Topic, r.Key, r.Value)
	for _, h := range r.Headers {
		fmt.Fprintf(&got, "header %s %q\n", h.Key, h.Value)
	}
	golden.Compare(t, "testdata/deadletter.golden", got.Bytes())
}

func FuzzDeadLetter(f *testing.F) {
	f.Add(1, int32(3), int64(9), []byte("key"), []byte("value"), 1, "unknown_event", "names no event")
	f.Add(16383, int32(1<<30), int64(1)<<48-1, []byte{}, []byte{0xff}, 0, "", "")
	f.Add(0, int32(0), int64(0), []byte(nil), []byte(nil), 12, "x", "detail")
	f.Fuzz(func(t *testing.T, generation int, partition int32, offset int64, key, value []byte, version int, reason, detail string) {
		l := record.DeadLetter{
			Record: record.Record{
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
		l, err := kafka.ParseLetter(kafka.NewLetterRecord("p.dlq", &record.DeadLetter{Detail: tt.detail}))
		if err != nil {
			t.Fatal(err)
		}
		if l.Detail != tt.detail[:tt.want] {
			t.Errorf("%.4q…: cut to %d bytes, want %d", tt.detail, len(l.Detail), tt.want)
		}
	}
}

// A record that is longer than any letter may be has one all the same.
func TestDeadLetterTooLong(t *testing.T) {
	t.Parallel()
	cfg := embeddedBackend(t).topics(t)
	d := newDeadLetters(t, cfg)
	short, long := []byte("key"), make([]byte, kafka.TopicBytesMax)
	letters := []record.DeadLetter{
		{Record: record.Record{Generation: 1, Key: short, Value: long[:len(long)-len(short)]}, Detail: "fits"},
		{Record: record.Record{Generation: 1, Key: short, Value: long}, Detail: strings.Repeat("d", kafka.DetailBytesMax)},
		{Record: record.Record{Generation: 1, Key: long, Value: short}, Detail: "two parts"},
	}
	if err := d.Send(t.Context(), letters); err != nil {
		t.Fatal(err)
	}
	stored, err := d.List(t.Context(), 0, 10)
	if err != nil || len(stored) != len(letters) {
		t.Fatalf("%d letters, error %v", len(stored), err)
	}
	for i, want := range []struct {
		key, value int
		detail     string
	}{
		{len(short), len(long) - len(short), "fits"},
		{len(short), 0, fmt.Sprintf("; its value, %d bytes, is left out", len(long))},
		{0, 0, fmt.Sprintf("two parts; its key and value, %d and %d bytes, are left out", len(long), len(short))},
	} {
		l := stored[i].Letter
		if len(l.Record.Key) != want.key || len(l.Record.Value) != want.value || !strings.HasSuffix(l.Detail, want.detail) || len(l.Detail) > kafka.DetailBytesMax {
			t.Errorf("letter %d has %d and %d bytes, and says %q; want %+v", i, len(l.Record.Key), len(l.Record.Value), l.Detail, want)
		}
	}
}

// However many there are, they are sent at once, also to a broker that is slow.
func TestDeadLettersMany(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	d := newDeadLetters(t, b.topics(t))
	letters := make([]record.DeadLetter, 60_000) // the client's own limit is 50,000
	for i := range letters {
		letters[i].Record = record.Record{Generation: 1, Offset: int64(i)}
	}
	thaw := b.freeze(t)
	time.AfterFunc(time.Second, thaw)
	if err := d.Send(t.Context(), letters); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := d.Read(t.Context(), 0, func(kafka.StoredLetter) error {
		n++
		return nil
	})
	if err != nil || n != len(letters) {
		t.Errorf("%d letters, error %v; want %d", n, err, len(letters))
	}
}

// A replay writes nothing where an event's writes would come to lie in two
// partitions.
func TestReplayPartitions(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	cfg := b.topics(t)
	writes := kafkatest.Updates(0, 8, 8)
	var letters []record.DeadLetter
	for i, r := range kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), writes) {
		letters = append(letters, record.DeadLetter{Record: record.Record{
			Generation: 1, Partition: r.Partition, Offset: r.Offset, Version: record.FormatVersion,
			Key: []byte(writes[i].Ref().String()), Value: record.AppendWrite(nil, &writes[i]),
		}})
	}
	before := cfg.Partitions
	if _, err := b.admin(t).CreatePartitions(t.Context(), 3, cfg.EventsTopic()); err != nil {
		t.Fatal(err)
	}
	cfg.Partitions += 3
	for i, a := range kafkatest.NewProducer(t, cfg).Replay(t.Context(), letters) {
		if !errors.Is(a.Err, kafka.ErrTopicMismatch) {
			t.Errorf("letter %d: receipt %s, error %v; want %v", i, a.Receipt, a.Err, kafka.ErrTopicMismatch)
		}
	}
	ends, err := b.admin(t).ListEndOffsets(t.Context(), cfg.EventsTopic())
	if err != nil {
		t.Fatal(err)
	}
	records := int64(0)
	ends.Each(func(o kadm.ListedOffset) { records += o.Offset })
	if records != int64(len(writes)) {
		t.Errorf("%d records in the log, want %d", records, len(writes))
	}
	cfg.Partitions = before
	for i, a := range kafkatest.NewProducer(t, cfg).Replay(t.Context(), letters) {
		if a.Err != nil || a.Receipt.Partition != letters[i].Record.Partition {
			t.Errorf("letter %d: receipt %s, error %v", i, a.Receipt, a.Err)
		}
	}
}

func TestNoDeadLetter(t *testing.T) {
	t.Parallel()
	whole := kafka.NewLetterRecord("p.dlq", &record.DeadLetter{Record: record.Record{Generation: 1, Key: []byte("k")}})
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
