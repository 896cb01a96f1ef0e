package record_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// TestReadRefuses changes one thing of a good record at a time.
func TestReadRefuses(t *testing.T) {
	const secret = "SECRET" // in the payload; must be in no error
	at := now.UnixMicro()
	id := event.MakeID(at, event.ConversationHash(secret), 1)
	create := func() event.Write {
		return event.Write{
			Op: event.OpCreate, ID: id, ConversationID: secret, Set: 1<<8 - 1, EventName: secret,
			Metadata: []byte(`{"SECRET":1}`), Error: secret, Latency: 1,
			Input:           event.Content{Kind: event.KindString, Data: []byte(secret)},
			Output:          event.Content{Kind: event.KindJSON, Data: []byte(`["SECRET"]`)},
			InputEmbeddings: event.VectorOf(1), OutputEmbeddings: event.VectorOf(2),
		}
	}
	sets := func(f ...event.Field) (s event.Fields) {
		for _, f := range f {
			s = s.With(f)
		}
		return s
	}
	text := func(s string) event.Content { return event.Content{Kind: event.KindString, Data: []byte(s)} }
	raw := func(s string) event.Content { return event.Content{Kind: event.KindJSON, Data: []byte(s)} }
	for _, c := range []struct {
		name  string
		alter func(w *event.Write, r *record.Record)
		code  event.Code // empty: accepted
		field string
	}{
		{"unaltered", func(*event.Write, *record.Record) {}, "", ""},
		{"no version header", func(_ *event.Write, r *record.Record) { r.Version = 0 }, event.CodeBadRecord, ""},
		{"later version", func(_ *event.Write, r *record.Record) { r.Version = record.FormatVersion + 1 }, event.CodeUnsupportedVersion, ""},
		{"no Protobuf", func(_ *event.Write, r *record.Record) { r.Value = []byte("SECRET") }, event.CodeBadRecord, ""},
		{"empty value", func(_ *event.Write, r *record.Record) { r.Value = []byte{} }, event.CodeBadRecord, ""},
		{"another key", func(_ *event.Write, r *record.Record) { r.Key = []byte(secret) }, event.CodeBadRecord, "id"},
		{"no key", func(_ *event.Write, r *record.Record) { r.Key = []byte{} }, event.CodeBadRecord, "id"},
		{"appended two days before its time", func(_ *event.Write, r *record.Record) { r.AppendTime = now.Add(-50 * time.Hour) }, "", ""},
		{"appended long before its time", func(_ *event.Write, r *record.Record) { r.AppendTime = now.Add(-51 * time.Hour) }, event.CodeBadRecord, "id"},
		{"appended years after its time", func(_ *event.Write, r *record.Record) { r.AppendTime = now.AddDate(20, 0, 0) }, "", ""},

		{"no id", func(w *event.Write, _ *record.Record) { w.ID = event.ID{} }, event.CodeBadRecord, "id"},
		{"no UUIDv8", func(w *event.Write, _ *record.Record) { w.ID[6] = 0x40 }, event.CodeBadRecord, "id"},
		{"wrong variant", func(w *event.Write, _ *record.Record) { w.ID[8] |= 0xc0 }, event.CodeBadRecord, "id"},
		{"reserved bit", func(w *event.Write, _ *record.Record) { w.ID[6] |= 8 }, event.CodeBadRecord, "id"},
		{"1023 microseconds", func(w *event.Write, _ *record.Record) { w.ID[6], w.ID[7] = 0x83, 0xff }, event.CodeBadRecord, "id"},
		{"before 2000", func(w *event.Write, _ *record.Record) {
			w.ID = event.MakeID(event.TimestampMin-1, event.ConversationHash(secret), 1)
		}, event.CodeBadRecord, "id"},
		{"internal id without alias", func(w *event.Write, _ *record.Record) { w.ID = w.ID.AsInternal() }, event.CodeBadRecord, "id"},
		{"alias without internal id", func(w *event.Write, _ *record.Record) { w.Alias = "a" }, event.CodeBadRecord, "id"},
		{"alias and internal id", func(w *event.Write, _ *record.Record) { w.Alias, w.ID = "a", w.ID.AsInternal() }, "", ""},
		{"fresh alias", func(w *event.Write, _ *record.Record) { w.Alias, w.ID, w.Fresh = "a", w.ID.AsInternal(), true }, event.CodeBadRecord, "id"},
		{"UUIDv8 as alias", func(w *event.Write, _ *record.Record) { w.Alias, w.ID = w.ID.String(), w.ID.AsInternal() }, event.CodeBadRecord, "id"},
		{"alias not printable", func(w *event.Write, _ *record.Record) { w.Alias, w.ID = "a\x7f", w.ID.AsInternal() }, event.CodeBadRecord, "id"},
		{"alias too long", func(w *event.Write, _ *record.Record) {
			w.Alias, w.ID = strings.Repeat("a", 129), w.ID.AsInternal()
		}, event.CodeBadRecord, "id"},
		{"id of another conversation", func(w *event.Write, _ *record.Record) { w.ConversationID = "c2" }, event.CodeBadRecord, "id"},
		{"no conversation", func(w *event.Write, _ *record.Record) { w.ConversationID = "" }, event.CodeBadRecord, "conversation_id"},
		{"long conversation", func(w *event.Write, _ *record.Record) { w.ConversationID = strings.Repeat("x", 257) }, event.CodeBadRecord, "conversation_id"},
		{"create without event_name", func(w *event.Write, _ *record.Record) {
			w.Set &^= sets(event.FieldEventName)
			w.EventName = ""
		}, event.CodeBadRecord, "event_name"},
		{"create that clears", func(w *event.Write, _ *record.Record) { w.Null, w.Error = sets(event.FieldError), "" }, event.CodeBadRecord, ""},
		{"empty event_name", func(w *event.Write, _ *record.Record) { w.EventName = "" }, event.CodeBadRecord, "event_name"},
		{"long event_name", func(w *event.Write, _ *record.Record) { w.EventName = strings.Repeat("x", 129) }, event.CodeBadRecord, "event_name"},
		{"empty metadata", func(w *event.Write, _ *record.Record) { w.Metadata = nil }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata no object", func(w *event.Write, _ *record.Record) { w.Metadata = []byte(`["SECRET"]`) }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata no JSON", func(w *event.Write, _ *record.Record) { w.Metadata = []byte(`{"SECRET"}`) }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata two values", func(w *event.Write, _ *record.Record) { w.Metadata = []byte(`{}{}`) }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata with duplicates", func(w *event.Write, _ *record.Record) { w.Metadata = []byte(`{"SECRET":1,"SECRET":2}`) }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata not compact", func(w *event.Write, _ *record.Record) { w.Metadata = []byte(`{"SECRET": 1}`) }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata not UTF-8", func(w *event.Write, _ *record.Record) { w.Metadata = []byte("{\"\xff\":1}") }, event.CodeBadRecord, "conversation_metadata"},
		{"metadata too large", func(w *event.Write, _ *record.Record) {
			w.Metadata = []byte(`{"a":"` + strings.Repeat("x", event.MetadataBytesMax) + `"}`)
		}, event.CodeBadRecord, "conversation_metadata"},
		{"empty error", func(w *event.Write, _ *record.Record) { w.Error = "" }, event.CodeBadRecord, "error"},
		{"latency NaN", func(w *event.Write, _ *record.Record) { w.Latency = math.NaN() }, event.CodeBadRecord, "latency"},
		{"latency infinite", func(w *event.Write, _ *record.Record) { w.Latency = math.Inf(1) }, event.CodeBadRecord, "latency"},
		{"latency negative", func(w *event.Write, _ *record.Record) { w.Latency = -1 }, event.CodeBadRecord, "latency"},
		{"text not UTF-8", func(w *event.Write, _ *record.Record) { w.Input = text("SECRET\xff") }, event.CodeBadRecord, "input"},
		{"text that is empty", func(w *event.Write, _ *record.Record) { w.Input = text("") }, "", ""},
		{"content of no kind", func(w *event.Write, _ *record.Record) { w.Input = event.Content{} }, event.CodeBadRecord, "input"},
		{"JSON that is empty", func(w *event.Write, _ *record.Record) { w.Output = raw("") }, event.CodeBadRecord, "output"},
		{"JSON that is a string", func(w *event.Write, _ *record.Record) { w.Output = raw(`"SECRET"`) }, event.CodeBadRecord, "output"},
		{"JSON that is null", func(w *event.Write, _ *record.Record) { w.Output = raw(`null`) }, event.CodeBadRecord, "output"},
		{"JSON that is none", func(w *event.Write, _ *record.Record) { w.Output = raw(`[NaN]`) }, event.CodeBadRecord, "output"},
		{"JSON not compact", func(w *event.Write, _ *record.Record) { w.Output = raw(`[1, 2]`) }, event.CodeBadRecord, "output"},
		{"JSON of 31 levels", func(w *event.Write, _ *record.Record) { w.Output = raw(nested(31)) }, "", ""},
		{"JSON of 32 levels", func(w *event.Write, _ *record.Record) { w.Output = raw(nested(32)) }, event.CodeBadRecord, "output"},
		{"vector with NaN", func(w *event.Write, _ *record.Record) {
			w.InputEmbeddings = event.VectorOf(1, float32(math.NaN()))
		}, event.CodeBadRecord, "input_embeddings[1]"},
		{"vector with infinity", func(w *event.Write, _ *record.Record) {
			w.OutputEmbeddings = event.VectorOf(float32(math.Inf(-1)))
		}, event.CodeBadRecord, "output_embeddings[0]"},
		{"vector too long", func(w *event.Write, _ *record.Record) { w.InputEmbeddings = event.VectorOf(make([]float32, 4097)...) }, event.CodeBadRecord, ""},

		{"update of nothing", func(w *event.Write, _ *record.Record) { *w = event.Write{Op: event.OpUpdate, ID: id} }, event.CodeBadRecord, ""},
		{"update that clears event_name", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Set: 1, Null: 1}
		}, event.CodeBadRecord, "event_name"},
		{"update with a conversation", func(w *event.Write, _ *record.Record) { w.Op = event.OpUpdate }, event.CodeBadRecord, "conversation_id"},
		{"update that is fresh", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Fresh: true, Set: 1, EventName: "a"}
		}, event.CodeBadRecord, "conversation_id"},
		{"update by alias with an id", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpUpdate, Alias: "a", ID: id, Set: 1, EventName: "a"}
		}, event.CodeBadRecord, "id"},
		{"update by internal id", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id.AsInternal(), Set: 1, EventName: "a"}
		}, event.CodeBadRecord, "id"},
		{"merge patch", func(w *event.Write, r *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Set: sets(event.FieldMetadata), Metadata: []byte(`{"SECRET":null}`), MergeMetadata: true}
			r.Version = record.FormatVersionPatch
		}, "", ""},
		{"merge patch in a record that old builds read", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Set: sets(event.FieldMetadata), Metadata: []byte(`{}`), MergeMetadata: true}
		}, event.CodeUnsupportedVersion, ""},
		{"merge patch in a create", func(w *event.Write, r *record.Record) {
			w.MergeMetadata, r.Version = true, record.FormatVersionPatch
		}, event.CodeBadRecord, "conversation_metadata"},
		{"merge patch that is no object", func(w *event.Write, r *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Set: sets(event.FieldMetadata), Metadata: []byte(`[1]`), MergeMetadata: true}
			r.Version = record.FormatVersionPatch
		}, event.CodeBadRecord, "conversation_metadata"},
		{"merge patch of a later version", func(w *event.Write, r *record.Record) {
			*w = event.Write{Op: event.OpUpdate, ID: id, Set: sets(event.FieldMetadata), Metadata: []byte(`{}`), MergeMetadata: true}
			r.Version = record.FormatVersionPatch + 1
		}, event.CodeUnsupportedVersion, ""},
		{"delete by internal id", func(w *event.Write, _ *record.Record) { *w = event.NewDelete(event.Ref{ID: id.AsInternal()}) }, event.CodeBadRecord, "id"},
		{"delete of nothing", func(w *event.Write, _ *record.Record) { *w = event.Write{Op: event.OpDelete} }, event.CodeBadRecord, "id"},
		{"delete that sets", func(w *event.Write, _ *record.Record) {
			*w = event.Write{Op: event.OpDelete, ID: id, Set: 1, EventName: "a"}
		}, event.CodeBadRecord, ""},
		{"delete", func(w *event.Write, _ *record.Record) { *w = event.NewDelete(event.Ref{ID: id}) }, "", ""},
		{"delete by alias", func(w *event.Write, _ *record.Record) { *w = event.NewDelete(event.Ref{Alias: "a"}) }, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := create()
			r := record.Record{Version: record.FormatVersion, AppendTime: now}
			c.alter(&w, &r)
			if r.Key == nil {
				r.Key = []byte(w.Ref().String())
			}
			if r.Value == nil {
				r.Value = record.AppendWrite(nil, &w)
			}
			_, err := record.Read(&r)
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var got *event.Error
			if !errors.As(err, &got) || got.Code != c.code || got.Field != c.field {
				t.Fatalf("got %#v, want code %s, field %q", err, c.code, c.field)
			}
			if strings.Contains(got.Error(), secret) {
				t.Errorf("the error holds payload: %q", got.Error())
			}
		})
	}
}

func TestReadAliasesTheRecordOnlyWithBytes(t *testing.T) {
	w := namedWrites()[1].write
	value := record.AppendWrite(nil, &w)
	r := record.Record{Key: []byte(w.Ref().String()), Value: value, Version: record.FormatVersion, AppendTime: now}
	got, err := record.Read(&r)
	if err != nil {
		t.Fatal(err)
	}
	copy(value, bytes.Repeat([]byte{0xff}, len(value)))
	if got.ConversationID != w.ConversationID || got.EventName != w.EventName || got.Error != w.Error {
		t.Error("strings changed with the record")
	}
}
