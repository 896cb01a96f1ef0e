package consumer

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

func TestBatchAdd(t *testing.T) {
	good := recordOf(create(failure("e"), input("in")), 3, 41)
	tests := []struct {
		name   string
		change func(rec *record.Record)
		reason event.Code // none where the record is good
	}{
		{name: "good", change: func(*record.Record) {}},
		{"no Protobuf", func(rec *record.Record) { rec.Value = []byte{0xff, 0xff} }, event.CodeBadRecord},
		{"empty", func(rec *record.Record) { rec.Value = nil }, event.CodeBadRecord},
		{"cut short", func(rec *record.Record) { rec.Value = rec.Value[:len(rec.Value)-1] }, event.CodeBadRecord},
		{"key of another event", func(rec *record.Record) { rec.Key = []byte(testID(2).String()) }, event.CodeBadRecord},
		{"no version", func(rec *record.Record) { rec.Version = 0 }, event.CodeBadRecord},
		{"a later version", func(rec *record.Record) { rec.Version = record.FormatVersion + 1 }, event.CodeUnsupportedVersion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := good
			tt.change(&rec)
			b, now := newBatch(), time.UnixMicro(micros)
			b.add(&rec, now)
			// A record that cannot be read is passed all the same.
			if diff := cmp.Diff(map[int32]int64{3: 42}, b.next); diff != "" {
				t.Errorf("next (-want +got):\n%s", diff)
			}
			if !b.oldest.Equal(now) {
				t.Errorf("oldest is %v", b.oldest)
			}
			if want := recordBytes + len(rec.Key) + len(rec.Value); b.bytes != want {
				t.Errorf("%d bytes, want %d", b.bytes, want)
			}
			if tt.reason == "" {
				if len(b.items) != 1 || len(b.poison) != 0 {
					t.Fatalf("%d items, %d dead letters", len(b.items), len(b.poison))
				}
				if diff := cmp.Diff(create(failure("e"), input("in")), b.items[0].write); diff != "" {
					t.Errorf("write (-want +got):\n%s", diff)
				}
				return
			}
			if len(b.items) != 0 || len(b.poison) != 1 {
				t.Fatalf("%d items, %d dead letters", len(b.items), len(b.poison))
			}
			l := b.poison[0]
			if l.Reason != tt.reason || l.Detail == "" {
				t.Errorf("reason %q, detail %q, want %q", l.Reason, l.Detail, tt.reason)
			}
			if diff := cmp.Diff(rec, l.Record); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

// A batch of the log that cannot be read is one dead letter for all its offsets.
func TestBatchAddUnreadable(t *testing.T) {
	b, now := newBatch(), time.UnixMicro(micros)
	b.addUnreadable(&record.Unreadable{Generation: 1, Partition: 3, First: 7, Last: 9, Detail: "why", Data: []byte("raw")}, now)
	b.pass(3, 12, now)
	if diff := cmp.Diff(map[int32]int64{3: 12}, b.next); diff != "" {
		t.Errorf("next (-want +got):\n%s", diff)
	}
	want := []record.DeadLetter{{
		Record: record.Record{Generation: 1, Partition: 3, Offset: 7, Value: []byte("raw"), AppendTime: now},
		Reason: event.CodeUnreadableBatch, Detail: "why", LastOffset: 9,
	}}
	if diff := cmp.Diff(want, b.poison); diff != "" || b.len() != 1 || b.bytes != recordBytes+3 {
		t.Errorf("dead letters, %d bytes (-want +got):\n%s", b.bytes, diff)
	}
	b.drop(3)
	if !b.empty() || b.len() != 0 || b.bytes != 0 {
		t.Errorf("not empty: %d records, %d bytes", b.len(), b.bytes)
	}
}

func TestBatchDrop(t *testing.T) {
	b, now := newBatch(), time.UnixMicro(micros)
	bytes := 0
	for offset := range int64(4) {
		for p := range int32(3) {
			rec := recordOf(create(id(uint64(p)), input(strings.Repeat("x", int(offset)))), p, offset)
			if offset == 2 {
				rec.Value = []byte("poison")
			}
			b.add(&rec, now)
			if p != 1 {
				bytes += recordBytes + len(rec.Key) + len(rec.Value)
			}
		}
	}
	b.drop(1)
	b.drop(9)
	if diff := cmp.Diff(map[int32]int64{0: 4, 2: 4}, b.next); diff != "" {
		t.Errorf("next (-want +got):\n%s", diff)
	}
	type place struct {
		Partition int32
		Offset    int64
	}
	var got []place
	for _, it := range b.items {
		got = append(got, place{it.record.Partition, it.record.Offset})
	}
	for _, l := range b.poison {
		got = append(got, place{l.Record.Partition, l.Record.Offset})
	}
	want := []place{{0, 0}, {2, 0}, {0, 1}, {2, 1}, {0, 3}, {2, 3}, {0, 2}, {2, 2}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if b.bytes != bytes {
		t.Errorf("%d bytes, want %d", b.bytes, bytes)
	}
	b.drop(0)
	b.drop(2)
	if !b.empty() || b.len() != 0 || b.bytes != 0 {
		t.Errorf("not empty: %d records, %d bytes", b.len(), b.bytes)
	}
}

// An emptied batch must not keep the payloads of the records it had.
func TestBatchResetLetsPayloadsGo(t *testing.T) {
	b := newBatch()
	for offset := range int64(5) {
		rec := recordOf(create(), 0, offset)
		if offset >= 2 {
			rec.Version = 0
		}
		b.add(&rec, time.UnixMicro(micros))
	}
	b.reset()
	if !b.empty() || b.len() != 0 || b.bytes != 0 {
		t.Errorf("not empty: %d records, %d bytes", b.len(), b.bytes)
	}
	for _, it := range b.items[:cap(b.items)] {
		if it.record != nil || it.write.ConversationID != "" {
			t.Error("an item is kept")
		}
	}
	for _, l := range b.poison[:cap(b.poison)] {
		if l.Record.Value != nil {
			t.Error("a dead letter is kept")
		}
	}
}
