package clickhouse

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/schema"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/golden"
)

func identity(n int) []uint64 {
	order := make([]uint64, n)
	for i := range order {
		order[i] = uint64(i)
	}
	return order
}

// encoded is the block as it goes over the wire. Both ways of ch-go, buffered
// for compression and streamed without, must give the same bytes.
func encoded(tb testing.TB, input proto.Input, rows int) []byte {
	tb.Helper()
	block := proto.Block{Columns: len(input), Rows: rows}
	var buffered proto.Buffer
	if err := block.EncodeBlock(&buffered, proto.Version, input); err != nil {
		tb.Fatal(err)
	}
	var streamed bytes.Buffer
	w := proto.NewWriter(&streamed, new(proto.Buffer))
	if err := block.WriteBlock(w, proto.Version, input); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(buffered.Buf, streamed.Bytes()) {
		tb.Fatal("a streamed block differs from a buffered one")
	}
	return buffered.Buf
}

func decode(tb testing.TB, data []byte, result proto.Results) {
	tb.Helper()
	var block proto.Block
	r := proto.NewReader(bytes.NewReader(data))
	if err := block.DecodeBlock(r, proto.Version, result); err != nil {
		tb.Fatal(err)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		tb.Fatalf("after the block: %v, want its end", err)
	}
}

func sampleRows() event.Rows {
	id := event.MakeID(1_767_225_600_123_456, event.ConversationHash("conversation"), 0x2a)
	alias := event.MakeID(event.TimestampMin, event.ConversationHash(""), 1<<38-1).AsInternal()
	position := event.MakePosition(3, 12345)
	version := event.MakeVersion(event.ClassCreate, position)
	del := event.MakeVersion(event.ClassDelete, event.MakePosition(3, 12350))
	return event.Rows{
		Cores: []event.Core{
			{ID: id, ConversationID: "conversation", EventName: "event_a", Metadata: `{"k":1}`, Error: "timeout", Latency: 12.5, HasLatency: true, Created: position, Version: version},
			{ID: alias, ConversationID: "é", EventName: "event_b", Alias: "order-1", Created: position, Version: version},
			{ID: id, Version: del, Deleted: true},
		},
		Contents: []event.ContentRow{
			{ID: id, Field: event.FieldInput, Content: event.Content{Kind: event.KindString, Data: []byte("hello")}, Version: version},
			{ID: id, Field: event.FieldOutput, Content: event.Content{Kind: event.KindJSON, Data: []byte(`[{"role":"user"}]`)}, Version: version},
			{ID: id, Field: event.FieldOutput, Version: del, Deleted: true},
		},
		Embeddings: []event.EmbeddingRow{
			{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(0.5, -1, math.MaxFloat32), Version: version},
			{ID: id, Field: event.FieldOutputEmbeddings, Vector: event.Vector{}, Version: version},
			{ID: alias, Field: event.FieldOutputEmbeddings, Vector: event.VectorOf(1), Version: version},
		},
		Aliases: []event.AliasRow{
			{Alias: "order-1", ID: alias, Version: version},
			{Alias: "dead", Version: del, Deleted: true},
		},
	}
}

func TestBlocksAreGolden(t *testing.T) {
	e := newEncoder()
	rows := sampleRows()
	blocks := []struct {
		table string
		data  func() []byte
	}{
		{schema.TableEvents, func() []byte {
			return encoded(t, e.coreInput(rows.Cores, identity(len(rows.Cores))), len(rows.Cores))
		}},
		{schema.TableContents, func() []byte {
			return encoded(t, bind(e, e.contents, rows.Contents, identity(len(rows.Contents))), len(rows.Contents))
		}},
		{schema.TableEmbeddings, func() []byte {
			return encoded(t, bind(e, e.embeddings, rows.Embeddings, identity(len(rows.Embeddings))), len(rows.Embeddings))
		}},
		{schema.TableAliases, func() []byte {
			return encoded(t, bind(e, e.aliases, rows.Aliases, identity(len(rows.Aliases))), len(rows.Aliases))
		}},
	}
	for _, block := range blocks {
		t.Run(block.table, func(t *testing.T) {
			golden.Compare(t, filepath.Join("testdata", block.table+".golden"), []byte(hex.Dump(block.data())))
		})
	}
}

// FuzzEncode encodes rows made of the input and decodes them with ch-go's own columns.
func FuzzEncode(f *testing.F) {
	f.Add("conversation", "event_a", "error", "{}", "alias", []byte("content"), uint64(5), uint64(7), 1.5, uint16(3))
	f.Add("", "", "", "", "", []byte{}, uint64(0), uint64(math.MaxUint64), math.Inf(-1), uint16(0))
	f.Add("\x00'\\", "é", "e", "m", strings.Repeat("a", 300), []byte(strings.Repeat("x", 20_000)), uint64(1), uint64(2), 0.0, uint16(319))
	f.Fuzz(func(t *testing.T, conversation, name, errorText, metadata, alias string, content []byte, random, version uint64, latency float64, n uint16) {
		if len(content) > 30_000 {
			return
		}
		count := int(n)%40 + 1
		var rows event.Rows
		for i := range count {
			id := event.MakeID(event.TimestampMin+int64(random%(1<<50))+int64(i), event.ConversationHash(conversation), random)
			rows.Cores = append(rows.Cores, event.Core{
				ID: id, ConversationID: conversation, EventName: name + fmt.Sprint(i%3), Error: errorText, Metadata: metadata, Alias: alias,
				Latency: latency, HasLatency: i%2 == 0, Created: event.Position(random), Version: event.Version(version), Deleted: i%3 == 0,
			})
			rows.Contents = append(rows.Contents, event.ContentRow{
				ID: id, Field: event.FieldInput + event.Field(i%2), Version: event.Version(version),
				Content: event.Content{Kind: event.Kind(i % 3), Data: content[:len(content)*i/count]},
			})
			floats := make([]float32, (int(n)+i)%50)
			for j := range floats {
				floats[j] = math.Float32frombits(uint32(random) + uint32(j))
			}
			rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings + event.Field(i%2), Vector: event.VectorOf(floats...), Version: event.Version(version)})
		}
		e := newEncoder()
		order := identity(count)
		// Any order must do.
		order[0], order[count-1] = order[count-1], order[0]

		var hash proto.ColUInt32
		timestamp := new(proto.ColDateTime64).WithPrecision(6)
		r := newCoreResult()
		keys := proto.Results{{Name: "conversation_hash", Data: &hash}, {Name: "timestamp", Data: timestamp}, {Name: "id", Data: &r.id}}
		decode(t, encoded(t, e.coreInput(rows.Cores, order), count), append(keys,
			proto.ResultColumn{Name: "conversation_id", Data: &r.conversationID},
			proto.ResultColumn{Name: "error", Data: r.error},
			proto.ResultColumn{Name: "latency", Data: r.latency},
			proto.ResultColumn{Name: "metadata", Data: &r.metadata},
			proto.ResultColumn{Name: "alias", Data: &r.alias},
			proto.ResultColumn{Name: "created", Data: &r.created},
			proto.ResultColumn{Name: "version", Data: &r.version},
			proto.ResultColumn{Name: "deleted", Data: &r.deleted},
			proto.ResultColumn{Name: "event_name", Data: r.eventName}))
		for i, o := range order {
			want := rows.Cores[o]
			if !want.HasLatency {
				want.Latency = 0
			}
			got := r.core(i)
			if got.HasLatency != want.HasLatency || math.Float64bits(got.Latency) != math.Float64bits(want.Latency) {
				t.Fatalf("latency of row %d: got %v, want %v", i, got.Latency, want.Latency)
			}
			got.Latency, want.Latency = 0, 0
			if got != want {
				t.Fatalf("row %d: got %+v, want %+v", i, got, want)
			}
			if hash[i] != want.ID.ConversationHash() || int64(timestamp.Data[i]) != want.ID.Micros() {
				t.Fatalf("row %d: the key is not its id's", i)
			}
		}

		var (
			field         = new(proto.ColEnum)
			kind, deleted proto.ColUInt8
			text          proto.ColStr
			versions      proto.ColUInt64
		)
		keyResults := func() proto.Results {
			return proto.Results{{Name: "conversation_hash", Data: &hash}, {Name: "timestamp", Data: timestamp}, {Name: "id", Data: &r.id}, {Name: "field", Data: field}}
		}
		decode(t, encoded(t, bind(e, e.contents, rows.Contents, order), count), append(keyResults(),
			proto.ResultColumn{Name: "kind", Data: &kind}, proto.ResultColumn{Name: "content", Data: &text},
			proto.ResultColumn{Name: "version", Data: &versions}, proto.ResultColumn{Name: "deleted", Data: &deleted}))
		for i, o := range order {
			want := rows.Contents[o]
			if event.ID(r.id[i]) != want.ID || field.Row(i) != want.Field.String() || event.Kind(kind[i]) != want.Content.Kind ||
				!bytes.Equal(text.RowBytes(i), want.Content.Data) || event.Version(versions[i]) != want.Version || deleted[i] != 0 {
				t.Fatalf("content row %d differs", i)
			}
		}

		var values proto.ColFloat32
		vectors := values.Array()
		decode(t, encoded(t, bind(e, e.embeddings, rows.Embeddings, order), count), append(keyResults(),
			proto.ResultColumn{Name: "vector", Data: vectors},
			proto.ResultColumn{Name: "version", Data: &versions}, proto.ResultColumn{Name: "deleted", Data: &deleted}))
		for i, o := range order {
			want, got := rows.Embeddings[o].Vector, vectors.Row(i)
			if !bytes.Equal(event.VectorOf(got...), want) {
				t.Fatalf("vector %d is %v, want %v", i, got, want)
			}
		}
	})
}

func TestParseNumber(t *testing.T) {
	for text, want := range map[string]bool{
		"0": true, "-0": true, "12": true, "1.50": true, "1e3": true, "-1.5E-7": true, "123456789012345678901234567890": true,
		"": false, "-": false, "01": false, "1.": false, ".5": false, "1e": false, "+1": false, "null": false, "1 ": false, " 1": false,
		"0x1": false, "NaN": false, "Infinity": false, "1_000": false, `"1"`: false, "1}": false, "true": false, "1e400": false,
		"1e-99999999999999999999": false, "1e-1000000000": false,
	} {
		if _, got := parseNumber(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	for text, want := range map[string][2]string{
		"1.5": {"1", "2"}, "-1.5": {"-2", "-1"}, "1.50e1": {"15", "15"}, "-7": {"-7", "-7"},
		"9007199254740993.5": {"9007199254740993", "9007199254740994"},
	} {
		n, _ := parseNumber(text)
		if got := [2]string{n.floor.String(), n.ceil.String()}; got != want {
			t.Errorf("%q lies between %v, want %v", text, got, want)
		}
	}
}

func benchmarkEncode[R any](b *testing.B, input func(e *encoder, order []uint64) proto.Input, rows []R) {
	e := newEncoder()
	order := identity(len(rows))
	w := proto.NewWriter(io.Discard, new(proto.Buffer))
	block := proto.Block{Rows: len(rows)}
	b.ReportAllocs()
	for b.Loop() {
		in := input(e, order)
		block.Columns = len(in)
		if err := block.WriteBlock(w, proto.Version, in); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(rows))*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkEncodeCores(b *testing.B) {
	rows := make([]event.Core, 50_000)
	for i := range rows {
		rows[i] = sampleRows().Cores[0]
	}
	b.SetBytes(int64(len(encoded(b, newEncoder().coreInput(rows, identity(len(rows))), len(rows)))))
	benchmarkEncode(b, func(e *encoder, order []uint64) proto.Input { return e.coreInput(rows, order) }, rows)
}

func BenchmarkEncodeContents(b *testing.B) {
	rows := make([]event.ContentRow, 50_000)
	for i := range rows {
		rows[i] = sampleRows().Contents[0]
		rows[i].Content.Data = bytes.Repeat([]byte("x"), 500)
	}
	e := newEncoder()
	b.SetBytes(int64(len(encoded(b, bind(e, e.contents, rows, identity(len(rows))), len(rows)))))
	benchmarkEncode(b, func(e *encoder, order []uint64) proto.Input { return bind(e, e.contents, rows, order) }, rows)
}

func BenchmarkEncodeEmbeddings(b *testing.B) {
	rows := make([]event.EmbeddingRow, 10_000)
	for i := range rows {
		rows[i] = sampleRows().Embeddings[0]
		rows[i].Vector = event.VectorOf(make([]float32, 384)...)
	}
	e := newEncoder()
	b.SetBytes(int64(len(encoded(b, bind(e, e.embeddings, rows, identity(len(rows))), len(rows)))))
	benchmarkEncode(b, func(e *encoder, order []uint64) proto.Input { return bind(e, e.embeddings, rows, order) }, rows)
}
