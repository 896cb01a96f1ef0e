package body

import (
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// readStrict is read for every body. It alone says what is wrong.
func (m *members) readStrict(body []byte, isItem bool) error {
	d := jsonscan.NewDecoder(body)
	defer d.Release()
	isObject := d.PeekKind() == '{'
	if !isObject {
		if _, err := d.ReadValue(); err != nil {
			return jsonError(body, err)
		}
	} else if _, err := d.ReadToken(); err != nil {
		return jsonError(body, err)
	}
	unknown, hasUnknown := "", false
	for isObject && d.PeekKind() != '}' {
		quoted, err := d.ReadValue()
		if err != nil {
			return jsonError(body, err)
		}
		i, known := memberOf(quoted)
		if known = known && (isItem || i != memberOp); !known && !hasUnknown {
			unknown, hasUnknown = fieldName(jsonscan.Unquote(quoted)), true
		}
		raw, err := d.ReadValue()
		if err != nil {
			return jsonError(body, err)
		}
		if !known {
			continue
		}
		// Embeddings are large and flat; they look after themselves.
		if (raw[0] == '{' || raw[0] == '[') && i < memberInputEmbeddings {
			depth, spaces := jsonscan.Measure(raw)
			if depth > event.DepthMax-1 {
				return event.ErrTooDeep(i.String())
			}
			m.spaces[i] = spaces
		}
		m.raw[i] = raw
	}
	if isObject {
		if _, err := d.ReadToken(); err != nil {
			return jsonError(body, err)
		}
	}
	if _, err := d.ReadToken(); err == nil {
		return event.Errorf(event.CodeInvalidJSON, "", "has data after its JSON value")
	} else if err != io.EOF { //nolint:errorlint // ReadToken documents the very value
		return jsonError(body, err)
	}
	if !isObject {
		return event.Errorf(event.CodeInvalidType, "", "must be a JSON object")
	}
	if hasUnknown {
		return event.Errorf(event.CodeUnknownField, unknown, "is not a known field")
	}
	return nil
}

// jsonError is the error of a body that the JSON decoder refused.
func jsonError(body []byte, err error) error {
	if err == io.EOF { //nolint:errorlint // the decoder documents the very value
		return event.Errorf(event.CodeInvalidJSON, "", "is empty")
	}
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return event.Errorf(event.CodeInvalidJSON, "", "is not valid JSON")
	}
	at := int(syntax.ByteOffset)
	if depth, _ := jsonscan.Measure(body[:min(at+1, len(body))]); depth > event.DepthMax {
		return event.ErrTooDeep("")
	}
	field := fieldPath(syntax.JSONPointer)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return event.Errorf(event.CodeDuplicateField, field, "is there twice")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return event.Errorf(event.CodeInvalidJSON, field, "ends within a JSON value")
	case !utf8.Valid(body):
		return event.Errorf(event.CodeInvalidJSON, field, "is not valid UTF-8 (after byte %d)", at)
	case at < len(body) && body[at] == '\\':
		return event.Errorf(event.CodeInvalidJSON, field, "has an invalid escape or half a surrogate pair (at byte %d)", at)
	}
	return event.Errorf(event.CodeInvalidJSON, field, "is not valid JSON (at byte %d)", at)
}

const fieldNameBytesMax = 64 // longer ones are cut in errors

// fieldName is the name of a member for an error's event.Field.
func fieldName(name []byte) string {
	if len(name) <= fieldNameBytesMax {
		return string(name)
	}
	return strings.ToValidUTF8(string(name[:fieldNameBytesMax]), "") + "…"
}

// fieldPath is the JSON pointer as an error's Field: conversation_metadata.a[3].
func fieldPath(p jsontext.Pointer) string {
	const tokensMax = 8 // the rest of the path is left out
	var b strings.Builder
	n := 0
	for token := range p.Tokens() {
		if n++; n > tokensMax {
			b.WriteString("…")
			break
		}
		if isIndex := token != "" && strings.Trim(token, "0123456789") == ""; isIndex && n > 1 {
			b.WriteString("[" + token + "]")
			continue
		}
		if n > 1 {
			b.WriteByte('.')
		}
		b.WriteString(fieldName([]byte(token)))
	}
	return b.String()
}
