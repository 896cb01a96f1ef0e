package clickhouse

import (
	"encoding/binary"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/event"
)

// wireChunkBytes is how many bytes of a column are encoded before they are sent.
const wireChunkBytes = 256 << 10

const (
	typeTimestamp = "DateTime64(6, 'UTC')"
	typeField     = "Enum8('input' = 1, 'output' = 2)"
)

// column encodes one column directly from the rows. So no copy of the values is needed,
// and a block of any size takes one chunk of memory. It is a [proto.ColInput].
type column[R any] struct {
	typ  proto.ColumnType
	rows []R
	// order selects the rows: the low 32 bits of each element are an index of rows.
	order []uint64
	// passes are the parts of the encoding, one after the other. A Nullable and an
	// Array have two.
	passes []put[R]
}

// put appends the value of a row. sum is a running sum of the pass, which begins at 0.
type put[R any] func(b *proto.Buffer, r *R, sum *uint64)

func (c *column[R]) Type() proto.ColumnType { return c.typ }
func (c *column[R]) Rows() int              { return len(c.order) }

// EncodeColumn encodes the whole column. Compressed connections call it.
func (c *column[R]) EncodeColumn(b *proto.Buffer) {
	for _, p := range c.passes {
		var sum uint64
		for _, o := range c.order {
			p(b, &c.rows[uint32(o)], &sum)
		}
	}
}

// WriteColumn sends the column in chunks. A write that fails leaves the
// connection broken, which the flush after the last column then reports.
func (c *column[R]) WriteColumn(w *proto.Writer) {
	for _, p := range c.passes {
		var sum uint64
		for i := 0; i < len(c.order); {
			full := false
			w.ChainBuffer(func(b *proto.Buffer) {
				for i < len(c.order) && len(b.Buf) < wireChunkBytes {
					p(b, &c.rows[uint32(c.order[i])], &sum)
					i++
				}
				full = len(b.Buf) >= wireChunkBytes
			})
			if full {
				_, _ = w.Flush()
			}
		}
	}
}

// encoder encodes blocks of all tables, one block at a time.
type encoder struct {
	cores      []namedColumn[event.Core]
	names      *proto.ColLowCardinality[string]
	contents   []namedColumn[event.ContentRow]
	embeddings []namedColumn[event.EmbeddingRow]
	aliases    []namedColumn[event.AliasRow]
	input      proto.Input
}

type namedColumn[R any] struct {
	name string
	*column[R]
}

func newEncoder() *encoder {
	e := &encoder{names: new(proto.ColStr).LowCardinality()}
	e.cores = append(keyColumns(func(r *event.Core) *event.ID { return &r.ID }),
		newColumn("conversation_id", "String", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutString(r.ConversationID) }),
		newColumn("error", "Nullable(String)",
			func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutBool(r.Error == "") },
			func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutString(r.Error) }),
		newColumn("latency", "Nullable(Float64)",
			func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutBool(!r.HasLatency) },
			func(b *proto.Buffer, r *event.Core, _ *uint64) {
				if r.HasLatency {
					b.PutFloat64(r.Latency)
				} else {
					b.PutUInt64(0)
				}
			}),
		newColumn("metadata", "String", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutString(r.Metadata) }),
		newColumn("alias", "String", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutString(r.Alias) }),
		newColumn("created", "UInt64", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutUInt64(uint64(r.Created)) }),
		newColumn("version", "UInt64", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutUInt64(uint64(r.Version)) }),
		newColumn("deleted", "UInt8", func(b *proto.Buffer, r *event.Core, _ *uint64) { b.PutBool(r.Deleted) }),
	)
	e.contents = append(keyColumns(func(r *event.ContentRow) *event.ID { return &r.ID }),
		newColumn("field", typeField, func(b *proto.Buffer, r *event.ContentRow, _ *uint64) { b.PutUInt8(fieldNumber(r.Field)) }),
		newColumn("kind", "UInt8", func(b *proto.Buffer, r *event.ContentRow, _ *uint64) { b.PutUInt8(uint8(r.Content.Kind)) }),
		newColumn("content", "String", func(b *proto.Buffer, r *event.ContentRow, _ *uint64) {
			b.PutUVarInt(uint64(len(r.Content.Data)))
			b.PutRaw(r.Content.Data)
		}),
		newColumn("version", "UInt64", func(b *proto.Buffer, r *event.ContentRow, _ *uint64) { b.PutUInt64(uint64(r.Version)) }),
		newColumn("deleted", "UInt8", func(b *proto.Buffer, r *event.ContentRow, _ *uint64) { b.PutBool(r.Deleted) }),
	)
	e.embeddings = append(keyColumns(func(r *event.EmbeddingRow) *event.ID { return &r.ID }),
		newColumn("field", typeField, func(b *proto.Buffer, r *event.EmbeddingRow, _ *uint64) { b.PutUInt8(fieldNumber(r.Field)) }),
		newColumn("vector", "Array(Float32)",
			func(b *proto.Buffer, r *event.EmbeddingRow, sum *uint64) {
				*sum += uint64(r.Vector.Dimensions())
				b.PutUInt64(*sum)
			},
			func(b *proto.Buffer, r *event.EmbeddingRow, _ *uint64) { b.PutRaw(r.Vector) }),
		newColumn("version", "UInt64", func(b *proto.Buffer, r *event.EmbeddingRow, _ *uint64) { b.PutUInt64(uint64(r.Version)) }),
		newColumn("deleted", "UInt8", func(b *proto.Buffer, r *event.EmbeddingRow, _ *uint64) { b.PutBool(r.Deleted) }),
	)
	e.aliases = []namedColumn[event.AliasRow]{
		newColumn("alias", "String", func(b *proto.Buffer, r *event.AliasRow, _ *uint64) { b.PutString(r.Alias) }),
		newColumn("id", "UUID", func(b *proto.Buffer, r *event.AliasRow, _ *uint64) { putID(b, &r.ID) }),
		newColumn("version", "UInt64", func(b *proto.Buffer, r *event.AliasRow, _ *uint64) { b.PutUInt64(uint64(r.Version)) }),
		newColumn("deleted", "UInt8", func(b *proto.Buffer, r *event.AliasRow, _ *uint64) { b.PutUInt8(aliasState(r)) }),
	}
	return e
}

// The states of an alias, in the column "deleted" of its table. A build that does not
// know the last state reads it as the second, so that the alias is not free.
const (
	aliasTaken uint8 = iota
	aliasDeleted
	aliasRefused
)

func aliasState(r *event.AliasRow) uint8 {
	switch {
	case r.Deleted:
		return aliasDeleted
	case r.Refused:
		return aliasRefused
	}
	return aliasTaken
}

func newColumn[R any](name string, typ proto.ColumnType, passes ...put[R]) namedColumn[R] {
	return namedColumn[R]{name: name, column: &column[R]{typ: typ, passes: passes}}
}

// keyColumns returns the columns of the sort key, which all follow from the id.
func keyColumns[R any](id func(*R) *event.ID) []namedColumn[R] {
	return []namedColumn[R]{
		newColumn("conversation_hash", "UInt32", func(b *proto.Buffer, r *R, _ *uint64) { b.PutUInt32(id(r).ConversationHash()) }),
		newColumn("timestamp", typeTimestamp, func(b *proto.Buffer, r *R, _ *uint64) { b.PutInt64(id(r).Micros()) }),
		newColumn("id", "UUID", func(b *proto.Buffer, r *R, _ *uint64) { putID(b, id(r)) }),
	}
}

// putID appends a UUID in ClickHouse's format: two little-endian halves, the more
// significant half first.
func putID(b *proto.Buffer, id *event.ID) {
	b.PutUInt64(binary.BigEndian.Uint64(id[:8]))
	b.PutUInt64(binary.BigEndian.Uint64(id[8:]))
}

// fieldNumber returns the number of the field in the enumerations of the tables.
func fieldNumber(f event.Field) uint8 {
	switch f {
	case event.FieldInput, event.FieldInputEmbeddings:
		return 1
	case event.FieldOutput, event.FieldOutputEmbeddings:
		return 2
	default:
		panic("BUG: " + f.String() + " is in no table of its own")
	}
}

// bind points the columns at the rows of one block and returns them as the
// input of an insert, which is valid until release.
func bind[R any](e *encoder, columns []namedColumn[R], rows []R, order []uint64) proto.Input {
	e.input = e.input[:0]
	for _, c := range columns {
		c.rows, c.order = rows, order
		e.input = append(e.input, proto.InputColumn{Name: c.name, Data: c.column})
	}
	return e.input
}

func release[R any](columns []namedColumn[R]) {
	for _, c := range columns {
		c.rows, c.order = nil, nil
	}
}

// coreInput is bind for core rows, which have one column with a dictionary.
func (e *encoder) coreInput(rows []event.Core, order []uint64) proto.Input {
	input := bind(e, e.cores, rows, order)
	e.names.Reset()
	for _, o := range order {
		e.names.Append(rows[uint32(o)].EventName)
	}
	e.input = append(input, proto.InputColumn{Name: "event_name", Data: e.names})
	return e.input
}

// releaseCores drops the references to the rows of a block, except for the strings of
// the dictionary, which the next block overwrites.
func (e *encoder) releaseCores() {
	release(e.cores)
	clear(e.names.Values)
	e.names.Reset()
}
