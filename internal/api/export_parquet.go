package api

import (
	"fmt"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/snappy"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// parquetGroupBytes is the size of a row group, before it is compressed. A group is in
	// memory until it is whole.
	parquetGroupBytes = 1 << 20
	// parquetGroupsMax bounds the groups of a file, because the end of the file describes
	// each of them, in 15 KiB of memory.
	parquetGroupsMax = 256
	// parquetBytes is the memory of a file that is being written: a group, the same in
	// columns and compressed, and the description of all groups.
	parquetBytes = 4*parquetGroupBytes + 4<<20
	// parquetRowBytes is the size of a row besides its texts and vectors.
	parquetRowBytes = 64
	// parquetNextCursor is the key of the next cursor in the metadata of a file.
	parquetNextCursor = "sluice.next_cursor"
)

// parquetRow is an event in a Parquet file. The columns have the names of the views of SQL.
type parquetRow struct {
	ID             string   `parquet:"id"`
	ConversationID string   `parquet:"conversation_id,dict"`
	Timestamp      int64    `parquet:"timestamp,timestamp(microsecond)"`
	EventName      string   `parquet:"event_name,dict"`
	Error          *string  `parquet:"error,optional"`
	Latency        *float64 `parquet:"latency,optional"`
	// Metadata is a JSON object as text.
	Metadata *string `parquet:"conversation_metadata,optional"`
	Input    *string `parquet:"input,optional"`
	// InputKind is string, or json if the input is JSON as text.
	InputKind  *string `parquet:"input_kind,optional,dict"`
	Output     *string `parquet:"output,optional"`
	OutputKind *string `parquet:"output_kind,optional,dict"`
}

// parquetEmbeddedRow is a parquetRow with the embeddings.
type parquetEmbeddedRow struct {
	parquetRow
	InputEmbeddings  []float32 `parquet:"input_embeddings,list"`
	OutputEmbeddings []float32 `parquet:"output_embeddings,list"`
}

// parquetWriter writes a Parquet file.
type parquetWriter struct {
	x          *exchange
	embeddings bool
	file       *parquet.GenericWriter[any]
	// bytes is the size of the group that is not written yet, and groups how many are.
	bytes, groups int
}

func newParquetWriter(x *exchange, embeddings bool) *parquetWriter {
	schema := parquet.SchemaOf(parquetRow{})
	if embeddings {
		schema = parquet.SchemaOf(parquetEmbeddedRow{})
	}
	options := []parquet.WriterOption{schema, parquet.Compression(&snappy.Codec{}), parquet.CreatedBy("sluice", "", "")}
	// The header of a page would have the least and the greatest text of the page, and the
	// end of the file those of each group, whole and not compressed.
	for _, name := range []string{"error", "conversation_metadata", "input", "output"} {
		options = append(options, parquet.SkipPageBounds(name), parquet.SkipPageStatistics(name))
	}
	return &parquetWriter{x: x, embeddings: embeddings, file: parquet.NewGenericWriter[any](pieces{x}, options...)}
}

func (w *parquetWriter) write(e *event.Event) error {
	row := parquetEmbeddedRow{parquetRow: parquetRow{
		ID: e.ID, ConversationID: e.ConversationID, Timestamp: e.Micros, EventName: e.EventName, Latency: e.Latency,
	}}
	w.bytes += parquetRowBytes + len(e.ID) + len(e.ConversationID) + len(e.EventName) + len(e.Error) + len(e.Metadata) + len(e.Input.Data) + len(e.Output.Data)
	if e.Error != "" {
		row.Error = &e.Error
	}
	if e.Metadata != "" {
		row.Metadata = &e.Metadata
	}
	row.Input, row.InputKind = parquetContent(e.Input)
	row.Output, row.OutputKind = parquetContent(e.Output)
	var err error
	if w.embeddings {
		row.InputEmbeddings, row.OutputEmbeddings = floats(e.InputEmbeddings), floats(e.OutputEmbeddings)
		w.bytes += event.DimensionBytes * (len(row.InputEmbeddings) + len(row.OutputEmbeddings))
		_, err = w.file.Write([]any{&row})
	} else {
		_, err = w.file.Write([]any{&row.parquetRow})
	}
	if err != nil {
		return fmt.Errorf("write a row of a Parquet file: %w", err)
	}
	if w.bytes < parquetGroupBytes {
		return nil
	}
	w.bytes = 0
	w.groups++
	if err := w.file.Flush(); err != nil {
		return fmt.Errorf("write a row group of a Parquet file: %w", err)
	}
	return nil
}

func (w *parquetWriter) full() bool { return w.groups == parquetGroupsMax }

func (w *parquetWriter) close(next string) error {
	if next != "" {
		w.file.SetKeyValueMetadata(parquetNextCursor, next)
	}
	if err := w.file.Close(); err != nil {
		return fmt.Errorf("end a Parquet file: %w", err)
	}
	return nil
}

// parquetContent returns a content and its kind; nil for none.
func parquetContent(c event.Content) (text, kind *string) {
	name := ""
	switch c.Kind {
	case event.KindString:
		name = "string"
	case event.KindJSON:
		name = "json"
	default:
		return nil, nil
	}
	data := string(c.Data)
	return &data, &name
}

func floats(v event.Vector) []float32 {
	values := make([]float32, v.Dimensions())
	for i := range values {
		values[i] = v.At(i)
	}
	return values
}

// pieces sends what is written to it by the piece.
type pieces struct{ x *exchange }

func (p pieces) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		n := min(len(rest), event.JSONPieceBytes)
		p.x.out = append(p.x.out, rest[:n]...)
		rest = rest[n:]
		if err := p.x.full(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
