package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sluicehq/sluice/internal/event"
)

// The field numbers of write.proto.
const (
	numOp               protowire.Number = 1
	numID               protowire.Number = 2
	numAlias            protowire.Number = 3
	numFresh            protowire.Number = 4
	numConversationID   protowire.Number = 5
	numCleared          protowire.Number = 6
	numEventName        protowire.Number = 7
	numMetadata         protowire.Number = 8
	numError            protowire.Number = 9
	numLatency          protowire.Number = 10
	numInput            protowire.Number = 11
	numOutput           protowire.Number = 12
	numInputEmbeddings  protowire.Number = 13
	numOutputEmbeddings protowire.Number = 14
	numMetadataPatch    protowire.Number = 15

	numContentKind protowire.Number = 1
	numContentData protowire.Number = 2
)

// AppendWrite appends the Protobuf form of the write, which write.proto defines,
// to b. Equal writes give equal bytes. The write must be valid, see
// [event.Write.Validate]; then [DecodeWrite] returns an equal one.
func AppendWrite(b []byte, w *event.Write) []byte {
	b = protowire.AppendTag(b, numOp, protowire.VarintType)
	b = append(b, byte(w.Op))
	if !w.ID.IsZero() {
		b = protowire.AppendTag(b, numID, protowire.BytesType)
		b = protowire.AppendBytes(b, w.ID[:])
	}
	if w.Alias != "" {
		b = appendString(b, numAlias, w.Alias)
	}
	if w.Fresh {
		b = protowire.AppendTag(b, numFresh, protowire.VarintType)
		b = append(b, 1)
	}
	if w.ConversationID != "" {
		b = appendString(b, numConversationID, w.ConversationID)
	}
	if w.Null != 0 {
		b = appendCleared(b, w.Null)
	}
	set := w.Set &^ w.Null
	if set.Has(event.FieldEventName) {
		b = appendString(b, numEventName, w.EventName)
	}
	if set.Has(event.FieldMetadata) {
		num := numMetadata
		if w.MergeMetadata {
			num = numMetadataPatch
		}
		b = protowire.AppendTag(b, num, protowire.BytesType)
		b = protowire.AppendBytes(b, w.Metadata)
	}
	if set.Has(event.FieldError) {
		b = appendString(b, numError, w.Error)
	}
	if set.Has(event.FieldLatency) {
		b = protowire.AppendTag(b, numLatency, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, math.Float64bits(w.Latency))
	}
	if set.Has(event.FieldInput) {
		b = appendContent(b, numInput, w.Input)
	}
	if set.Has(event.FieldOutput) {
		b = appendContent(b, numOutput, w.Output)
	}
	if set.Has(event.FieldInputEmbeddings) {
		b = protowire.AppendTag(b, numInputEmbeddings, protowire.BytesType)
		b = protowire.AppendBytes(b, w.InputEmbeddings)
	}
	if set.Has(event.FieldOutputEmbeddings) {
		b = protowire.AppendTag(b, numOutputEmbeddings, protowire.BytesType)
		b = protowire.AppendBytes(b, w.OutputEmbeddings)
	}
	return b
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// appendCleared appends the fields as packed enum values. They are one more than
// the values of [event.Field], because an enum's 0 means that none was given.
func appendCleared(b []byte, null event.Fields) []byte {
	b = protowire.AppendTag(b, numCleared, protowire.BytesType)
	start := len(b)
	b = append(b, 0)
	for f := range event.Field(event.FieldCount) {
		if null.Has(f) {
			b = append(b, byte(f)+1)
		}
	}
	b[start] = byte(len(b) - start - 1)
	return b
}

func appendContent(b []byte, num protowire.Number, c event.Content) []byte {
	n := 0
	if c.Kind != event.KindNull {
		n += 2
	}
	if len(c.Data) > 0 {
		n += 1 + protowire.SizeBytes(len(c.Data))
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	if c.Kind != event.KindNull {
		b = protowire.AppendTag(b, numContentKind, protowire.VarintType)
		b = append(b, byte(c.Kind))
	}
	if len(c.Data) > 0 {
		b = protowire.AppendTag(b, numContentData, protowire.BytesType)
		b = protowire.AppendBytes(b, c.Data)
	}
	return b
}

var (
	errNotProtobuf = errors.New("is not a Protobuf message")
	errNotUTF8     = errors.New("is not valid UTF-8")
)

// DecodeWrite reads a message of write.proto, whoever wrote it, and replaces all
// of *w. Metadata, contents and embeddings alias b; strings are copies. Unknown
// fields are ignored.
//
// The error says which part of the message is wrong, and never quotes it. A write
// that was decoded is well formed but may be invalid: see [event.Write.Validate].
func DecodeWrite(w *event.Write, b []byte) error {
	*w = event.Write{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errNotProtobuf
		}
		b = b[n:]
		n, err := decodeField(w, num, typ, b)
		if err != nil {
			return err
		}
		if n < 0 {
			return errNotProtobuf
		}
		b = b[n:]
	}
	if w.Op < event.OpCreate || w.Op > event.OpDelete {
		return errors.New("op: is none of create, update and delete")
	}
	return nil
}

// decodeField decodes the value of one field and returns its length, which is
// negative where the bytes are not Protobuf. It follows Protobuf's rules: a known
// number with another wire type is an unknown field, and of the values of a
// singular field the last one counts.
func decodeField(w *event.Write, num protowire.Number, typ protowire.Type, b []byte) (int, error) {
	switch typ {
	case protowire.BytesType:
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return n, nil
		}
		return n, decodeBytes(w, num, v)
	case protowire.VarintType:
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return n, nil
		}
		return n, decodeVarint(w, num, v)
	case protowire.Fixed64Type:
		v, n := protowire.ConsumeFixed64(b)
		if n >= 0 && num == numLatency {
			w.Latency = math.Float64frombits(v)
			w.Set = w.Set.With(event.FieldLatency)
		}
		return n, nil
	case protowire.Fixed32Type:
		v, n := protowire.ConsumeFixed32(b)
		if n < 0 {
			return n, nil
		}
		if f, vector := vectorOf(w, num); vector != nil {
			if vector.Dimensions() == event.EmbeddingDimensionsMax {
				return n, tooManyDimensions(f)
			}
			*vector = binary.LittleEndian.AppendUint32(*vector, v)
			w.Set = w.Set.With(f)
		}
		return n, nil
	default:
		return protowire.ConsumeFieldValue(num, typ, b), nil
	}
}

func decodeVarint(w *event.Write, num protowire.Number, v uint64) error {
	switch num {
	case numOp:
		// An enum is an int32, and a longer varint is cut to one.
		if v = uint64(uint32(v)); v > uint64(event.OpDelete) {
			return errors.New("op: is none of create, update and delete")
		}
		w.Op = event.Op(v)
	case numFresh:
		w.Fresh = v != 0
	case numCleared:
		decodeCleared(w, v)
	default: // unknown, or known with another type
	}
	return nil
}

// decodeCleared notes that the write clears the field of the enum value. A value
// that this build does not know stands for a field that it does not know, and is
// ignored like one.
func decodeCleared(w *event.Write, v uint64) {
	if v = uint64(uint32(v)); v >= 1 && v <= uint64(event.FieldCount) {
		w.Null = w.Null.With(event.Field(v - 1))
		w.Set = w.Set.With(event.Field(v - 1))
	}
}

func decodeBytes(w *event.Write, num protowire.Number, v []byte) error {
	switch num {
	case numID:
		if len(v) != len(w.ID) {
			return errors.New("id: is not 16 bytes long")
		}
		w.ID = event.ID(v)
	case numAlias:
		return decodeString(&w.Alias, "alias", v)
	case numConversationID:
		return decodeString(&w.ConversationID, "conversation_id", v)
	case numCleared:
		for len(v) > 0 {
			field, n := protowire.ConsumeVarint(v)
			if n < 0 {
				return errNotProtobuf
			}
			decodeCleared(w, field)
			v = v[n:]
		}
	case numEventName:
		w.Set = w.Set.With(event.FieldEventName)
		return decodeString(&w.EventName, "event_name", v)
	case numMetadata, numMetadataPatch:
		w.Set = w.Set.With(event.FieldMetadata)
		w.Metadata, w.MergeMetadata = v, num == numMetadataPatch
	case numError:
		w.Set = w.Set.With(event.FieldError)
		return decodeString(&w.Error, "error", v)
	case numInput:
		w.Set = w.Set.With(event.FieldInput)
		return decodeContent(&w.Input, event.FieldInput, v)
	case numOutput:
		w.Set = w.Set.With(event.FieldOutput)
		return decodeContent(&w.Output, event.FieldOutput, v)
	case numInputEmbeddings, numOutputEmbeddings:
		f, vector := vectorOf(w, num)
		if len(v)%event.DimensionBytes != 0 {
			return errNotProtobuf
		}
		if len(v)+len(*vector) > event.EmbeddingBytesMax {
			return tooManyDimensions(f)
		}
		if len(v) > 0 {
			w.Set = w.Set.With(f)
			if *vector == nil {
				// The capacity is cut, so that appending to it never writes into b.
				*vector = v[:len(v):len(v)]
			} else {
				*vector = append(*vector, v...)
			}
		}
	default: // unknown, or known with another type
	}
	return nil
}

// vectorOf returns the write's embedding of the field number, or nil where the
// number is that of another field.
func vectorOf(w *event.Write, num protowire.Number) (event.Field, *event.Vector) {
	switch num {
	case numInputEmbeddings:
		return event.FieldInputEmbeddings, &w.InputEmbeddings
	case numOutputEmbeddings:
		return event.FieldOutputEmbeddings, &w.OutputEmbeddings
	default:
		return 0, nil
	}
}

func tooManyDimensions(f event.Field) error {
	return fmt.Errorf("%s: has more than %d dimensions", f, event.EmbeddingDimensionsMax)
}

func decodeString(s *string, name string, v []byte) error {
	if !utf8.Valid(v) {
		return fmt.Errorf("%s: %w", name, errNotUTF8)
	}
	*s = string(v)
	return nil
}

// decodeContent merges v into the content, as Protobuf does with a message
// field that comes twice.
func decodeContent(c *event.Content, f event.Field, v []byte) error {
	for len(v) > 0 {
		num, typ, n := protowire.ConsumeTag(v)
		if n < 0 {
			return errNotProtobuf
		}
		v = v[n:]
		switch {
		case num == numContentKind && typ == protowire.VarintType:
			var kind uint64
			kind, n = protowire.ConsumeVarint(v)
			if kind = uint64(uint32(kind)); n >= 0 && kind > uint64(event.KindJSON) {
				return fmt.Errorf("%s: is of an unknown kind", f)
			}
			c.Kind = event.Kind(kind)
		case num == numContentData && typ == protowire.BytesType:
			c.Data, n = protowire.ConsumeBytes(v)
		default:
			n = protowire.ConsumeFieldValue(num, typ, v)
		}
		if n < 0 {
			return errNotProtobuf
		}
		v = v[n:]
	}
	return nil
}
