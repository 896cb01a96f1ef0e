package event

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// AppendJSON appends the event as a JSON object to b: its fields in a fixed
// order, absent ones as null, the timestamp as RFC 3339 in UTC with as many
// digits of microseconds as it needs, inputs and outputs in the JSON type they
// came in. The embeddings are members only with withEmbeddings, as the shortest
// numbers that read back as the same float32.
func (e *Event) AppendJSON(b []byte, withEmbeddings bool) []byte {
	b = append(b, `{"id":`...)
	b = appendQuoted(b, e.ID)
	b = append(b, `,"conversation_id":`...)
	b = appendQuoted(b, e.ConversationID)
	b = append(b, `,"conversation_metadata":`...)
	if e.Metadata == "" {
		b = append(b, "null"...)
	} else {
		b = append(b, e.Metadata...)
	}
	b = append(b, `,"event_name":`...)
	b = appendQuoted(b, e.EventName)
	b = append(b, `,"timestamp":"`...)
	b = time.UnixMicro(e.Micros).UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","error":`...)
	if e.Error == "" {
		b = append(b, "null"...)
	} else {
		b = appendQuoted(b, e.Error)
	}
	b = append(b, `,"latency":`...)
	if e.Latency == nil {
		b = append(b, "null"...)
	} else {
		b = jsontext.AppendFloat(b, *e.Latency, 64)
	}
	b = append(b, `,"input":`...)
	b = appendContentJSON(b, e.Input)
	b = append(b, `,"output":`...)
	b = appendContentJSON(b, e.Output)
	if withEmbeddings {
		b = append(b, `,"input_embeddings":`...)
		b = appendVectorJSON(b, e.InputEmbeddings)
		b = append(b, `,"output_embeddings":`...)
		b = appendVectorJSON(b, e.OutputEmbeddings)
	}
	return append(b, '}')
}

// appendQuoted appends the text as a JSON string. Bytes that are not UTF-8,
// which no stored event has, become U+FFFD.
func appendQuoted[T ~string | ~[]byte](b []byte, text T) []byte {
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

func appendContentJSON(b []byte, c Content) []byte {
	switch c.Kind {
	case KindString:
		return appendQuoted(b, c.Data)
	case KindJSON:
		return append(b, c.Data...)
	default:
		return append(b, "null"...)
	}
}

func appendVectorJSON(b []byte, vector Vector) []byte {
	if len(vector) == 0 {
		return append(b, "null"...)
	}
	for i := range vector.Dimensions() {
		if i == 0 {
			b = append(b, '[')
		} else {
			b = append(b, ',')
		}
		b = jsontext.AppendFloat(b, float64(vector.At(i)), 32)
	}
	return append(b, ']')
}
