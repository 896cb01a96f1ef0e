package event

import (
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// JSONPieceBytes is how many bytes of JSON an event is at most ahead of the
// last call of the spill function of [Event.SpillJSON], roughly.
const JSONPieceBytes = 16 << 10

const (
	// quotedPieceBytes is how much of a text is quoted at once: each byte may
	// become six.
	quotedPieceBytes = 4 << 10
	// vectorPieceDimensions is the same for vectors.
	vectorPieceDimensions = 512
)

// AppendJSON appends the event as a JSON object to b: its fields in a fixed
// order, absent ones as null, the timestamp as RFC 3339 in UTC with as many
// digits of microseconds as it needs, inputs and outputs in the JSON type they
// came in. The embeddings are members only with withEmbeddings, as the shortest
// numbers that read back as the same float32.
func (e *Event) AppendJSON(b []byte, withEmbeddings bool) []byte {
	b, _ = e.SpillJSON(b, withEmbeddings, func(b []byte) ([]byte, error) { return b, nil })
	return b
}

// SpillJSON is [Event.AppendJSON] in bounded memory. It calls spill with what is
// in b whenever that is [JSONPieceBytes] or more, and goes on with the buffer
// that spill returns, which spill has usually emptied. It returns the rest, which
// was not spilled, or the first error of spill.
func (e *Event) SpillJSON(b []byte, withEmbeddings bool, spill func(b []byte) ([]byte, error)) ([]byte, error) {
	j := jsonPieces{b: b, spill: spill}
	j.b = append(j.b, `{"id":`...)
	j.b = appendQuoted(j.b, e.ID)
	j.b = append(j.b, `,"conversation_id":`...)
	j.b = appendQuoted(j.b, e.ConversationID)
	j.b = append(j.b, `,"conversation_metadata":`...)
	if e.Metadata == "" {
		j.b = append(j.b, "null"...)
	} else {
		raw(&j, e.Metadata)
	}
	j.b = append(j.b, `,"event_name":`...)
	j.b = appendQuoted(j.b, e.EventName)
	j.b = append(j.b, `,"timestamp":"`...)
	j.b = time.UnixMicro(e.Micros).UTC().AppendFormat(j.b, time.RFC3339Nano)
	j.b = append(j.b, `","error":`...)
	if e.Error == "" {
		j.b = append(j.b, "null"...)
	} else {
		quoted(&j, e.Error)
	}
	j.b = append(j.b, `,"latency":`...)
	if e.Latency == nil {
		j.b = append(j.b, "null"...)
	} else {
		j.b = jsontext.AppendFloat(j.b, *e.Latency, 64)
	}
	j.b = append(j.b, `,"input":`...)
	j.content(e.Input)
	j.b = append(j.b, `,"output":`...)
	j.content(e.Output)
	if withEmbeddings {
		j.b = append(j.b, `,"input_embeddings":`...)
		j.vector(e.InputEmbeddings)
		j.b = append(j.b, `,"output_embeddings":`...)
		j.vector(e.OutputEmbeddings)
	}
	j.b = append(j.b, '}')
	j.full()
	return j.b, j.err
}

// jsonPieces is JSON that is spilled by the piece. After an error nothing is
// appended to it in a loop.
type jsonPieces struct {
	b     []byte
	spill func(b []byte) ([]byte, error)
	err   error
}

// full spills what has been appended, where that is enough. It reports whether
// more can be appended.
func (j *jsonPieces) full() bool {
	if j.err == nil && len(j.b) >= JSONPieceBytes {
		j.b, j.err = j.spill(j.b)
	}
	return j.err == nil
}

func (j *jsonPieces) content(c Content) {
	switch c.Kind {
	case KindString:
		quoted(j, c.Data)
	case KindJSON:
		raw(j, c.Data)
	default:
		j.b = append(j.b, "null"...)
	}
}

// raw appends JSON as it is.
func raw[T ~string | ~[]byte](j *jsonPieces, text T) {
	for len(text) > 0 && j.full() {
		n := min(len(text), JSONPieceBytes)
		j.b = append(j.b, text[:n]...)
		text = text[n:]
	}
}

// quoted appends the text as a JSON string. Bytes that are not UTF-8, which no
// stored event has, become U+FFFD.
func quoted[T ~string | ~[]byte](j *jsonPieces, text T) {
	if len(text) <= quotedPieceBytes {
		j.b = appendQuoted(j.b, text)
		j.full()
		return
	}
	j.b = append(j.b, '"')
	for len(text) > 0 && j.full() {
		n := min(len(text), quotedPieceBytes)
		for cut := n; n < len(text) && cut > n-utf8.UTFMax; cut-- {
			if utf8.RuneStart(text[cut]) {
				n = cut // so that no rune is cut in two
				break
			}
		}
		// Without the quotation marks of the piece.
		at := len(j.b)
		j.b = appendQuoted(j.b, text[:n])
		j.b = append(j.b[:at], j.b[at+1:len(j.b)-1]...)
		text = text[n:]
	}
	j.b = append(j.b, '"')
	j.full()
}

func appendQuoted[T ~string | ~[]byte](b []byte, text T) []byte {
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

func (j *jsonPieces) vector(vector Vector) {
	if len(vector) == 0 {
		j.b = append(j.b, "null"...)
		return
	}
	for i := range vector.Dimensions() {
		if i == 0 {
			j.b = append(j.b, '[')
		} else {
			j.b = append(j.b, ',')
		}
		if i%vectorPieceDimensions == vectorPieceDimensions-1 && !j.full() {
			return
		}
		j.b = jsontext.AppendFloat(j.b, float64(vector.At(i)), 32)
	}
	j.b = append(j.b, ']')
	j.full()
}
