package consumer

import (
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	conversation = "conversation-1"
	// micros is the timestamp of every event of these tests.
	micros int64 = 1_793_491_200_000_000
)

// testID is the n-th event's id.
func testID(n uint64) event.ID {
	return event.MakeID(micros, event.ConversationHash(conversation), n)
}

// option changes a write.
type option func(*event.Write)

func create(options ...option) event.Write {
	w := event.Write{Op: event.OpCreate, ID: testID(1), ConversationID: conversation}
	named("event_a")(&w)
	return with(w, options)
}

func update(options ...option) event.Write {
	return with(event.Write{Op: event.OpUpdate, ID: testID(1)}, options)
}

func remove(options ...option) event.Write {
	return with(event.Write{Op: event.OpDelete, ID: testID(1)}, options)
}

func with(w event.Write, options []option) event.Write {
	for _, o := range options {
		o(&w)
	}
	return w
}

func fresh(w *event.Write) { w.Fresh = true }

func id(n uint64) option {
	return func(w *event.Write) { w.ID = testID(n) }
}

func named(s string) option {
	return func(w *event.Write) { w.Set, w.EventName = w.Set.With(event.FieldEventName), s }
}

func metadata(s string) option {
	return func(w *event.Write) { w.Set, w.Metadata = w.Set.With(event.FieldMetadata), []byte(s) }
}

func patch(s string) option {
	return func(w *event.Write) {
		metadata(s)(w)
		w.MergeMetadata = true
	}
}

func failure(s string) option {
	return func(w *event.Write) { w.Set, w.Error = w.Set.With(event.FieldError), s }
}

func latency(ms float64) option {
	return func(w *event.Write) { w.Set, w.Latency = w.Set.With(event.FieldLatency), ms }
}

func input(s string) option {
	return func(w *event.Write) { w.Set, w.Input = w.Set.With(event.FieldInput), text(s) }
}

func output(s string) option {
	return func(w *event.Write) { w.Set, w.Output = w.Set.With(event.FieldOutput), text(s) }
}

func inputVector(v ...float32) option {
	return func(w *event.Write) {
		w.Set, w.InputEmbeddings = w.Set.With(event.FieldInputEmbeddings), event.VectorOf(v...)
	}
}

func outputVector(v ...float32) option {
	return func(w *event.Write) {
		w.Set, w.OutputEmbeddings = w.Set.With(event.FieldOutputEmbeddings), event.VectorOf(v...)
	}
}

func null(fields ...event.Field) option {
	return func(w *event.Write) {
		for _, f := range fields {
			w.Set, w.Null = w.Set.With(f), w.Null.With(f)
		}
	}
}

func text(s string) event.Content {
	return event.Content{Kind: event.KindString, Data: []byte(s)}
}

// recordOf is the write as the broker has it.
func recordOf(w event.Write, partition int32, offset int64) record.Record {
	return record.Record{
		Generation: 1, Partition: partition, Offset: offset,
		Key: []byte(w.Ref().String()), Value: record.AppendWrite(nil, &w), Version: record.FormatVersionOf(&w),
		AppendTime: time.UnixMicro(micros),
	}
}

func position(offset int64) event.Position { return event.MakePosition(1, offset) }

// created, updated and deleted are the versions of such a write at the offset.
func created(offset int64) event.Version {
	return event.MakeVersion(event.ClassCreate, position(offset))
}

func updated(offset int64) event.Version {
	return event.MakeVersion(event.ClassUpdate, position(offset))
}

func deleted(offset int64) event.Version {
	return event.MakeVersion(event.ClassDelete, position(offset))
}
