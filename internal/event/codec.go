package event

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// RecordVersion is the version of the record format that this build writes, in
// the record's version header of all writes but those with a merge patch.
const RecordVersion = 1

// RecordVersionPatch is the version of records with a merge patch of the
// metadata, which builds that read only RecordVersion would not see: they refuse
// the record instead.
const RecordVersionPatch = 2

// RecordVersion is the version that the write's record must have.
func (w *Write) RecordVersion() int {
	if w.MergeMetadata {
		return RecordVersionPatch
	}
	return RecordVersion
}

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

// AppendWrite appends the write's Protobuf form, as write.proto defines it, to
// b. What it appends depends on the write only. The write must be valid, see
// [Write.Validate]; then [DecodeWrite] gives back an equal one.
func AppendWrite(b []byte, w *Write) []byte {
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
	if set.Has(FieldEventName) {
		b = appendString(b, numEventName, w.EventName)
	}
	if set.Has(FieldMetadata) {
		num := numMetadata
		if w.MergeMetadata {
			num = numMetadataPatch
		}
		b = protowire.AppendTag(b, num, protowire.BytesType)
		b = protowire.AppendBytes(b, w.Metadata)
	}
	if set.Has(FieldError) {
		b = appendString(b, numError, w.Error)
	}
	if set.Has(FieldLatency) {
		b = protowire.AppendTag(b, numLatency, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, math.Float64bits(w.Latency))
	}
	if set.Has(FieldInput) {
		b = appendContent(b, numInput, w.Input)
	}
	if set.Has(FieldOutput) {
		b = appendContent(b, numOutput, w.Output)
	}
	if set.Has(FieldInputEmbeddings) {
		b = protowire.AppendTag(b, numInputEmbeddings, protowire.BytesType)
		b = protowire.AppendBytes(b, w.InputEmbeddings)
	}
	if set.Has(FieldOutputEmbeddings) {
		b = protowire.AppendTag(b, numOutputEmbeddings, protowire.BytesType)
		b = protowire.AppendBytes(b, w.OutputEmbeddings)
	}
	return b
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// appendCleared appends the fields as packed enum values, which are one more
// than ours because an enum's 0 says nothing.
func appendCleared(b []byte, null Fields) []byte {
	b = protowire.AppendTag(b, numCleared, protowire.BytesType)
	start := len(b)
	b = append(b, 0)
	for f := range fieldCount {
		if null.Has(f) {
			b = append(b, byte(f)+1)
		}
	}
	b[start] = byte(len(b) - start - 1)
	return b
}

func appendContent(b []byte, num protowire.Number, c Content) []byte {
	n := 0
	if c.Kind != KindNull {
		n += 2
	}
	if len(c.Data) > 0 {
		n += 1 + protowire.SizeBytes(len(c.Data))
	}
	b = protowire.AppendTag(b, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	if c.Kind != KindNull {
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

// DecodeWrite reads what [AppendWrite] or any other Protobuf writer of
// write.proto wrote, and replaces all of *w. Metadata, contents and embeddings
// alias b, strings are copies. Fields it does not know are ignored.
//
// The error says what part of the message is wrong and never what it says.
// Without one, the write is well formed but may be invalid: see
// [Write.Validate].
func DecodeWrite(w *Write, b []byte) error {
	*w = Write{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errNotProtobuf
		}
		b = b[n:]
		n, err := w.decodeField(num, typ, b)
		if err != nil {
			return err
		}
		if n < 0 {
			return errNotProtobuf
		}
		b = b[n:]
	}
	if w.Op < OpCreate || w.Op > OpDelete {
		return errors.New("op: is none of create, update and delete")
	}
	return nil
}

// decodeField decodes one field's value and returns its length, which is
// negative where the bytes are no Protobuf. As Protobuf wants it, a known number
// with another wire type is an unknown field, and the last value of a singular
// field counts.
func (w *Write) decodeField(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
	switch typ {
	case protowire.BytesType:
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return n, nil
		}
		return n, w.decodeBytes(num, v)
	case protowire.VarintType:
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return n, nil
		}
		return n, w.decodeVarint(num, v)
	case protowire.Fixed64Type:
		v, n := protowire.ConsumeFixed64(b)
		if n >= 0 && num == numLatency {
			w.Latency = math.Float64frombits(v)
			w.Set = w.Set.With(FieldLatency)
		}
		return n, nil
	case protowire.Fixed32Type:
		v, n := protowire.ConsumeFixed32(b)
		if n < 0 {
			return n, nil
		}
		if f, vector := w.vector(num); vector != nil {
			if vector.Dimensions() == EmbeddingDimensionsMax {
				return n, tooManyDimensions(f)
			}
			*vector = vector.append(math.Float32frombits(v))
			w.Set = w.Set.With(f)
		}
		return n, nil
	default:
		return protowire.ConsumeFieldValue(num, typ, b), nil
	}
}

func (w *Write) decodeVarint(num protowire.Number, v uint64) error {
	switch num {
	case numOp:
		// An enum is an int32, and a longer varint is cut to one.
		if v = uint64(uint32(v)); v > uint64(OpDelete) {
			return errors.New("op: is none of create, update and delete")
		}
		w.Op = Op(v)
	case numFresh:
		w.Fresh = v != 0
	case numCleared:
		w.clear(v)
	default: // unknown, or known with another type
	}
	return nil
}

// clear notes that the field of the enum value is cleared. A value that this
// build does not know is a field that it does not know, and ignored as such.
func (w *Write) clear(v uint64) {
	if v = uint64(uint32(v)); v >= 1 && v <= uint64(fieldCount) {
		w.Null = w.Null.With(Field(v - 1))
		w.Set = w.Set.With(Field(v - 1))
	}
}

func (w *Write) decodeBytes(num protowire.Number, v []byte) error {
	switch num {
	case numID:
		if len(v) != len(w.ID) {
			return errors.New("id: is not 16 bytes long")
		}
		w.ID = ID(v)
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
			w.clear(field)
			v = v[n:]
		}
	case numEventName:
		w.Set = w.Set.With(FieldEventName)
		return decodeString(&w.EventName, "event_name", v)
	case numMetadata, numMetadataPatch:
		w.Set = w.Set.With(FieldMetadata)
		w.Metadata, w.MergeMetadata = v, num == numMetadataPatch
	case numError:
		w.Set = w.Set.With(FieldError)
		return decodeString(&w.Error, "error", v)
	case numInput:
		w.Set = w.Set.With(FieldInput)
		return decodeContent(&w.Input, FieldInput, v)
	case numOutput:
		w.Set = w.Set.With(FieldOutput)
		return decodeContent(&w.Output, FieldOutput, v)
	case numInputEmbeddings, numOutputEmbeddings:
		f, vector := w.vector(num)
		if len(v)%dimensionBytes != 0 {
			return errNotProtobuf
		}
		if len(v)+len(*vector) > embeddingBytesMax {
			return tooManyDimensions(f)
		}
		if len(v) > 0 {
			w.Set = w.Set.With(f)
			if *vector == nil {
				// What comes behind it, if anything does, must not go over b.
				*vector = v[:len(v):len(v)]
			} else {
				*vector = append(*vector, v...)
			}
		}
	default: // unknown, or known with another type
	}
	return nil
}

// vector returns the embedding that the field number stands for, or nil.
func (w *Write) vector(num protowire.Number) (Field, *Vector) {
	switch num {
	case numInputEmbeddings:
		return FieldInputEmbeddings, &w.InputEmbeddings
	case numOutputEmbeddings:
		return FieldOutputEmbeddings, &w.OutputEmbeddings
	default:
		return 0, nil
	}
}

func tooManyDimensions(f Field) error {
	return fmt.Errorf("%s: has more than %d dimensions", f, EmbeddingDimensionsMax)
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
func decodeContent(c *Content, f Field, v []byte) error {
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
			if kind = uint64(uint32(kind)); n >= 0 && kind > uint64(KindJSON) {
				return fmt.Errorf("%s: is of an unknown kind", f)
			}
			c.Kind = Kind(kind)
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
