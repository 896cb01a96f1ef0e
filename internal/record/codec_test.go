package record_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/golden"
	"github.com/sluicehq/sluice/internal/record"
)

func namedWrites() []struct {
	name  string
	write event.Write
} {
	id := event.MakeID(1_767_323_045_678_901, event.ConversationHash("c1"), 1)
	set := func(fields ...event.Field) (s event.Fields) {
		for _, f := range fields {
			s = s.With(f)
		}
		return s
	}
	return []struct {
		name  string
		write event.Write
	}{
		{"smallest create", event.Write{
			Op: event.OpCreate, ID: id, ConversationID: "c1", Set: set(event.FieldEventName), EventName: "event_a",
		}},
		{"fresh create with everything", event.Write{
			Op: event.OpCreate, ID: id, Fresh: true, ConversationID: "c1", Set: 1<<8 - 1, EventName: "event_a",
			Metadata: []byte(`{"plan":"pro"}`), Error: "timeout", Latency: 451.061,
			Input:           event.Content{Kind: event.KindString, Data: []byte("Grüße")},
			Output:          event.Content{Kind: event.KindJSON, Data: []byte(`[{"role":"tool"}]`)},
			InputEmbeddings: event.VectorOf(0.5, -0.25, 1e-45), OutputEmbeddings: event.VectorOf(math.MaxFloat32),
		}},
		{"create by alias", event.Write{
			Op: event.OpCreate, ID: id.AsInternal(), Alias: "order-1", ConversationID: "c1", Set: set(event.FieldEventName), EventName: "event_b",
		}},
		{"empty text and zero latency are values", event.Write{
			Op: event.OpUpdate, ID: id, Set: set(event.FieldLatency, event.FieldInput), Input: event.Content{Kind: event.KindString},
		}},
		{"update that clears all it can", event.Write{
			Op: event.OpUpdate, Alias: "order-1", Set: 1<<8 - 2, Null: 1<<8 - 2,
		}},
		{"update that sets and clears", event.Write{
			Op: event.OpUpdate, ID: id, Set: set(event.FieldError, event.FieldOutput), Null: set(event.FieldError),
			Output: event.Content{Kind: event.KindJSON, Data: []byte(`0`)},
		}},
		{"delete", event.Write{Op: event.OpDelete, ID: id}},
		{"delete by alias", event.Write{Op: event.OpDelete, Alias: "order-1"}},
	}
}

func TestAppendWriteGolden(t *testing.T) {
	var text strings.Builder
	for _, c := range namedWrites() {
		if err := c.write.Validate(now); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		fmt.Fprintf(&text, "# %s\n%s\n", c.name, hex.EncodeToString(record.AppendWrite(nil, &c.write)))
	}
	golden.Compare(t, "testdata/writes.golden", []byte(text.String()))
}

func TestWriteRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5_000 {
		w := randomWrite(r)
		if err := w.Validate(now); err != nil {
			t.Fatalf("write %d: %v\n%+v", i, err, w)
		}
		prefix := []byte("prefix")
		b := record.AppendWrite(prefix, &w)
		if !bytes.HasPrefix(b, prefix) {
			t.Fatalf("write %d: AppendWrite did not append", i)
		}
		got := event.Write{Op: 9, Error: "left over", Set: 7, InputEmbeddings: event.VectorOf(1)}
		if err := record.DecodeWrite(&got, b[len(prefix):]); err != nil {
			t.Fatalf("write %d: %v\n%+v", i, err, w)
		}
		if diff := cmp.Diff(w, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("write %d (-want +got):\n%s", i, diff)
		}
	}
}

// TestWriteIsProtobuf checks the codec against the schema and a full Protobuf
// implementation, in both directions.
func TestWriteIsProtobuf(t *testing.T) {
	desc := compileWrite(t)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 1_000 {
		w := randomWrite(r)
		m := dynamicpb.NewMessage(desc)
		if err := proto.Unmarshal(record.AppendWrite(nil, &w), m); err != nil {
			t.Fatalf("write %d: Protobuf cannot read it: %v", i, err)
		}
		if len(m.GetUnknown()) > 0 {
			t.Fatalf("write %d: has fields that the schema does not", i)
		}
		if diff := cmp.Diff(w, fromMessage(m), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("write %d, read by Protobuf (-want +got):\n%s", i, diff)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var got event.Write
		if err := record.DecodeWrite(&got, b); err != nil {
			t.Fatalf("write %d, written by Protobuf: %v", i, err)
		}
		if diff := cmp.Diff(w, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("write %d, written by Protobuf (-want +got):\n%s", i, diff)
		}
	}
}

func compileWrite(tb testing.TB) protoreflect.MessageDescriptor {
	tb.Helper()
	compiler := protocompile.Compiler{Resolver: &protocompile.SourceResolver{}}
	files, err := compiler.Compile(tb.Context(), "write.proto")
	if err != nil {
		tb.Fatal(err)
	}
	return files[0].Messages().ByName("Write")
}

// fromMessage reads a message of the schema into a write, by field names.
func fromMessage(m *dynamicpb.Message) event.Write {
	field := func(name protoreflect.Name) protoreflect.FieldDescriptor { return m.Descriptor().Fields().ByName(name) }
	get := func(name protoreflect.Name) protoreflect.Value { return m.Get(field(name)) }
	w := event.Write{
		Op:             event.Op(get("op").Enum()),
		Alias:          get("alias").String(),
		Fresh:          get("fresh").Bool(),
		ConversationID: get("conversation_id").String(),
		EventName:      get("event_name").String(),
		Metadata:       get("metadata").Bytes(),
		Error:          get("error").String(),
		Latency:        get("latency").Float(),
	}
	copy(w.ID[:], get("id").Bytes())
	cleared := get("cleared").List()
	for i := range cleared.Len() {
		f := event.Field(cleared.Get(i).Enum() - 1)
		w.Set, w.Null = w.Set.With(f), w.Null.With(f)
	}
	content := func(name protoreflect.Name) event.Content {
		c := get(name).Message()
		fields := c.Descriptor().Fields()
		return event.Content{
			Kind: event.Kind(c.Get(fields.ByName("kind")).Enum()),
			Data: c.Get(fields.ByName("data")).Bytes(),
		}
	}
	w.Input, w.Output = content("input"), content("output")
	vector := func(name protoreflect.Name) (v event.Vector) {
		list := get(name).List()
		for i := range list.Len() {
			v = append(v, event.VectorOf(float32(list.Get(i).Float()))...)
		}
		return v
	}
	w.InputEmbeddings, w.OutputEmbeddings = vector("input_embeddings"), vector("output_embeddings")
	for i, name := range []protoreflect.Name{
		"event_name", "metadata", "error", "latency", "input", "output", "input_embeddings", "output_embeddings",
	} {
		if m.Has(field(name)) {
			w.Set = w.Set.With(event.Field(i))
		}
	}
	return w
}

// TestDecodeWriteForms has the forms that other writers of Protobuf may give a
// message, and those of a later schema.
func TestDecodeWriteForms(t *testing.T) {
	id := event.MakeID(1_767_323_045_678_901, event.ConversationHash("c1"), 1)
	want := event.Write{
		Op: event.OpUpdate, ID: id, Error: "x",
		Set: event.Fields(0).With(event.FieldError).With(event.FieldInput).With(event.FieldInputEmbeddings).
			With(event.FieldLatency).With(event.FieldOutput),
		Null:            event.Fields(0).With(event.FieldLatency).With(event.FieldOutput),
		Input:           event.Content{Kind: event.KindString, Data: []byte("hi")},
		InputEmbeddings: event.VectorOf(1, 2, 3),
	}
	floats := func(b []byte, packed bool, values ...float32) []byte {
		if packed {
			b = protowire.AppendTag(b, 13, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(4*len(values)))
		}
		for _, v := range values {
			if !packed {
				b = protowire.AppendTag(b, 13, protowire.Fixed32Type)
			}
			b = protowire.AppendFixed32(b, math.Float32bits(v))
		}
		return b
	}
	content := func(b []byte, kind uint64, data string) []byte {
		var c []byte
		if kind != 0 {
			c = protowire.AppendVarint(protowire.AppendTag(c, 1, protowire.VarintType), kind)
		}
		if data != "" {
			c = protowire.AppendString(protowire.AppendTag(c, 2, protowire.BytesType), data)
		}
		return protowire.AppendBytes(protowire.AppendTag(b, 11, protowire.BytesType), c)
	}
	varint := func(b []byte, num protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
	}
	text := func(b []byte, num protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
	}
	// Fields in reverse order, unpacked lists, values overridden and merged.
	b := floats(nil, false, 1)
	b = floats(b, true, 2)
	b = floats(b, true)
	b = floats(b, false, 3)
	b = content(b, 2, "hi")
	b = content(b, 1, "")
	b = text(b, 9, "overridden")
	b = text(b, 9, "x")
	b = varint(b, 6, 4)
	b = text(b, 6, "\x06")
	b = text(b, 2, string(id[:]))
	b = varint(b, 1, 1)
	b = varint(b, 1, 1<<32|2) // an enum is cut to 32 bits
	// Of a later schema: unknown numbers of every type, an unknown cleared field.
	b = varint(b, 100, 1)
	b = text(b, 101, "x")
	b = protowire.AppendFixed32(protowire.AppendTag(b, 102, protowire.Fixed32Type), 1)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 103, protowire.Fixed64Type), 1)
	b = protowire.AppendTag(protowire.AppendTag(b, 104, protowire.StartGroupType), 104, protowire.EndGroupType)
	b = varint(b, 6, 99)
	// Known numbers of another type are unknown fields.
	b = varint(b, 9, 1)
	b = text(b, 10, "x")
	b = protowire.AppendFixed64(protowire.AppendTag(b, 13, protowire.Fixed64Type), 1)

	var got event.Write
	if err := record.DecodeWrite(&got, b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := proto.Unmarshal(b, dynamicpb.NewMessage(compileWrite(t))); err != nil {
		t.Errorf("the test's message is not Protobuf: %v", err)
	}
}

func TestDecodeWriteErrors(t *testing.T) {
	valid := namedWrites()[1].write
	b := record.AppendWrite(nil, &valid)
	field := func(num protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(slices.Clone(b), num, protowire.BytesType), value)
	}
	tooMany := bytes.Repeat(append(protowire.AppendTag(nil, 14, protowire.Fixed32Type), 0, 0, 0, 0), event.EmbeddingDimensionsMax)
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "op: "},
		{"cut short", b[:len(b)-1], "is not a Protobuf message"},
		{"field number 0", []byte{0, 0}, "is not a Protobuf message"},
		{"end group without a start", []byte{8<<3 | 4}, "is not a Protobuf message"},
		{"varint of 11 bytes", []byte("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "is not a Protobuf message"},
		{"op 0", []byte{8, 0}, "op: "},
		{"op 4", []byte{8, 4}, "op: "},
		{"negative op", []byte("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "op: "},
		{"id of 15 bytes", field(2, strings.Repeat("x", 15)), "id: is not 16 bytes long"},
		{"id of no bytes", field(2, ""), "id: is not 16 bytes long"},
		{"alias not UTF-8", field(3, "\xff"), "alias: is not valid UTF-8"},
		{"conversation_id not UTF-8", field(5, "\xff"), "conversation_id: is not valid UTF-8"},
		{"event_name not UTF-8", field(7, "\xed\xa0\x80"), "event_name: is not valid UTF-8"},
		{"error not UTF-8", field(9, "\xc0\x80"), "error: is not valid UTF-8"},
		{"cleared cut short", field(6, "\x80"), "is not a Protobuf message"},
		{"content of kind 3", field(11, "\x08\x03"), "input: is of an unknown kind"},
		{"content cut short", field(12, "\x12\x05x"), "is not a Protobuf message"},
		{"floats of 3 bytes", field(13, "xxx"), "is not a Protobuf message"},
		{"4097 packed floats", field(13, strings.Repeat("\x00", 4*4097)), "input_embeddings: has more than 4096 dimensions"},
		{"4097 floats in two packs", field(13, strings.Repeat("\x00", 4*4094)), "input_embeddings: has more than 4096 dimensions"},
		{"4097 unpacked floats", append(slices.Clone(b), tooMany...), "output_embeddings: has more than 4096 dimensions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w event.Write
			err := record.DecodeWrite(&w, c.in)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzDecodeWrite(f *testing.F) {
	for _, c := range namedWrites() {
		f.Add(record.AppendWrite(nil, &c.write))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w event.Write
		if record.DecodeWrite(&w, b) != nil || w.Validate(now) != nil {
			return
		}
		var again event.Write
		if err := record.DecodeWrite(&again, record.AppendWrite(nil, &w)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
