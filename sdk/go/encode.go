package sluice

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

const (
	// checksumBytes is the length of the checksum before the item in a spool line.
	checksumBytes = len("01234567 ")
	// encoderBytesMax is the largest buffer that an encoder keeps for the next write.
	encoderBytesMax = 64 << 10
	timestampLayout = `"2006-01-02T15:04:05.000000Z07:00"`
)

// An encoder encodes one write into line, which is a line of the spool: space for
// the checksum, the item, a newline. Values of the caller's types are encoded by
// encoding/json, all other fields directly. end returns the first error.
type encoder struct {
	line  []byte
	value bytes.Buffer
	// strict refuses values that are not JSON or are too large.
	strict bool
	// contents has the places in line of the values that may be cut.
	contents []span
	json     *json.Encoder
	err      error
}

func newEncoder() *encoder {
	e := new(encoder)
	e.json = json.NewEncoder(&e.value)
	e.json.SetEscapeHTML(false)
	return e
}

// reusable reports whether the encoder's buffers are small enough to be kept.
func (e *encoder) reusable() bool {
	return cap(e.line) <= encoderBytesMax && e.value.Cap() <= encoderBytesMax
}

func (e *encoder) create(event *Event, id string) {
	e.begin(OpCreate, id)
	e.name("conversation_id")
	e.line = appendString(e.line, event.ConversationID)
	// A minted id contains the timestamp.
	if event.ID != "" && !event.Timestamp.IsZero() {
		e.name("timestamp")
		e.line = event.Timestamp.UTC().AppendFormat(e.line, timestampLayout)
	}
	e.fields(&Fields{
		ConversationMetadata: event.ConversationMetadata,
		EventName:            event.EventName,
		Error:                event.Error,
		Latency:              event.Latency,
		Input:                event.Input,
		Output:               event.Output,
		InputEmbeddings:      event.InputEmbeddings,
		OutputEmbeddings:     event.OutputEmbeddings,
	})
}

// update encodes an update or a patch.
func (e *encoder) update(op Op, fields *Fields, id string) {
	e.begin(op, id)
	empty := len(e.line)
	e.fields(fields)
	if len(e.line) == empty {
		e.fail("", "the update changes no field", nil)
	}
}

func (e *encoder) delete(id string) { e.begin(OpDelete, id) }

func (e *encoder) begin(op Op, id string) {
	e.err, e.contents = nil, e.contents[:0]
	e.line = append(e.line[:0], "01234567 {"...)
	if op != OpCreate {
		e.line = append(e.line, `"op":"`...)
		e.line = append(append(e.line, op...), `",`...)
	}
	e.line = append(e.line, `"id":`...)
	e.line = appendString(e.line, id)
}

// end returns the item with its newline, or the first error. The next begin
// overwrites the item.
func (e *encoder) end() ([]byte, error) {
	e.line = append(e.line, "}\n"...)
	item := e.line[checksumBytes:]
	if over := len(item) - 1 - writeBytesMax; over > 0 && !e.strict && len(e.contents) > 0 {
		e.cut(over)
		item = e.line[checksumBytes:]
	}
	if len(item)-1 > writeBytesMax {
		e.fail("", fmt.Sprintf("the write is %d bytes as encoded, more than 1 MiB", len(item)-1), nil)
	}
	return item, e.err
}

// span is the place of a value in the line.
type span struct {
	start, end int
	isText     bool // whether the value must stay a string
}

// cut shortens the line by at least the given number of bytes, if the contents
// are large enough.
func (e *encoder) cut(over int) {
	var fields [][]byte
	var isText []bool
	room := -over
	for _, p := range e.contents {
		fields, isText = append(fields, e.line[p.start:p.end]), append(isText, p.isText)
		room += p.end - p.start
	}
	if room < 1<<10 {
		return // the contents are too small to cut enough
	}
	var line []byte
	at := 0
	for i, field := range fit(fields, isText, room) {
		line = append(append(line, e.line[at:e.contents[i].start]...), field...)
		at = e.contents[i].end
	}
	e.line = append(line, e.line[at:]...)
}

func (e *encoder) fail(field, reason string, cause error) {
	if e.err == nil {
		e.err = &FieldError{Field: field, Reason: reason, Err: cause}
	}
}

// fields appends the given fields, and null for each field to clear.
func (e *encoder) fields(f *Fields) {
	if f.EventName != "" {
		e.name("event_name")
		e.line = appendString(e.line, f.EventName)
	}
	e.any("conversation_metadata", f.ConversationMetadata, f.Clear&ClearConversationMetadata != 0)
	if e.given("error", f.Error != "", f.Clear&ClearError != 0) {
		start := len(e.line)
		e.line = appendString(e.line, f.Error)
		e.contents = append(e.contents, span{start, len(e.line), true})
	}
	if e.given("latency", f.Latency != nil, f.Clear&ClearLatency != 0) {
		if !(*f.Latency >= 0 && *f.Latency <= math.MaxFloat64) {
			e.fail("latency", "must be a finite number, 0 or more", nil)
		}
		e.line = strconv.AppendFloat(e.line, *f.Latency, 'g', -1, 64)
	}
	e.any("input", f.Input, f.Clear&ClearInput != 0)
	e.any("output", f.Output, f.Clear&ClearOutput != 0)
	e.embeddings("input_embeddings", f.InputEmbeddings, f.Clear&ClearInputEmbeddings != 0)
	e.embeddings("output_embeddings", f.OutputEmbeddings, f.Clear&ClearOutputEmbeddings != 0)
}

func (e *encoder) name(name string) {
	e.line = append(e.line, `,"`...)
	e.line = append(append(e.line, name...), `":`...)
}

// given appends the name if the field has a value, or the name and null if the
// field is to be cleared. It reports whether the caller has to append the value.
func (e *encoder) given(name string, given, clear bool) bool {
	if given && clear {
		e.fail(name, "is both set and cleared", nil)
	}
	if given || clear {
		e.name(name)
	}
	if clear {
		e.line = append(e.line, "null"...)
	}
	return given
}

// any appends a value of the caller's type. A value that encodes as null is left
// out, like nil.
func (e *encoder) any(name string, v any, clear bool) {
	mark := len(e.line)
	if !e.given(name, v != nil, clear) {
		return
	}
	start := len(e.line)
	if err := e.appendJSON(v); err != nil {
		e.fail(name, "cannot be encoded as JSON", err)
		return
	}
	value := e.line[start:]
	switch {
	case string(value) == "null":
		e.line = e.line[:mark]
	case name != "conversation_metadata":
		e.contents = append(e.contents, span{start, len(e.line), false})
	case value[0] != '{':
		e.fail(name, "must encode as a JSON object", nil)
	case !e.strict:
		e.line = append(e.line[:start], fitObject(value, metadataBytesMax)...)
	}
}

func (e *encoder) appendJSON(v any) (err error) {
	e.value.Reset()
	switch v := v.(type) {
	case string:
		e.line = appendString(e.line, v)
		return nil
	case json.RawMessage:
		if v == nil {
			v = json.RawMessage("null") // as json.Marshal does
		}
		err = json.Compact(&e.value, v)
		if err != nil && !e.strict {
			e.line = appendString(e.line, string(v))
			return nil
		}
	default:
		err = encodeJSON(e.json, v)
	}
	if !e.strict && (err != nil || isTooDeep(e.value.Bytes())) {
		if raw, ok := v.(json.RawMessage); ok {
			e.line = appendString(e.line, string(raw))
		} else {
			e.line = appendAny(e.line, v)
		}
		return nil
	}
	e.line = append(e.line, bytes.TrimSuffix(e.value.Bytes(), []byte("\n"))...)
	return err
}

// embeddings appends a vector as base64 of little-endian float32.
func (e *encoder) embeddings(name string, v []float32, clear bool) {
	if !e.given(name, v != nil, clear) {
		return
	}
	if len(v) == 0 || len(v) > dimensionsMax {
		e.fail(name, "must have 1 to 4,096 numbers", nil)
		return
	}
	e.line = append(e.line, '"')
	// The length of a part is a multiple of three bytes, so that only the last part
	// is padded.
	var part [3 * 256]byte
	for at := 0; at < len(v); {
		n := 0
		for ; n < len(part) && at < len(v); at, n = at+1, n+4 {
			word := math.Float32bits(v[at])
			const infinity = 0x7f800000 // NaN has the same exponent
			if word&infinity == infinity {
				e.fail(fmt.Sprintf("%s[%d]", name, at), "must be a finite number of float32's range", nil)
			}
			binary.LittleEndian.PutUint32(part[n:], word)
		}
		e.line = base64.StdEncoding.AppendEncode(e.line, part[:n])
	}
	e.line = append(e.line, '"')
}

// appendString appends s as JSON. Bytes that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	plain := 0 // the start of the bytes that are not appended yet
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[plain:i]...), "\ufffd"...)
				plain = i + 1
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[plain:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, `\u00`...)
			b = append(b, digits[c>>4], digits[c&0xf])
		}
		i++
		plain = i
	}
	b = append(b, s[plain:]...)
	return append(b, '"')
}
