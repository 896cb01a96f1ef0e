package sluice

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"unicode/utf8"
)

// The kinds of parts.
const (
	partText = iota
	partBytes
	partJSON
	partKinds
)

// parts collects the parts of a stream for the output of its event, up to
// streamBytesMax.
type parts struct {
	// kept has the bytes of all kept parts, ends the end of each.
	kept   []byte
	ends   []int
	kinds  []byte
	counts [partKinds]int // the number of parts of each kind, kept or not
	bytes  int
	full   bool
}

// add adds a copy of a part, as the part is now.
func (p *parts) add(part any) {
	kind, text := partJSON, []byte(nil)
	switch v := part.(type) {
	case string:
		kind, text = partText, []byte(v)
	case []byte:
		kind, text = partBytes, v
	case json.Marshaler:
	default:
		if v := reflect.ValueOf(part); v.Kind() == reflect.String {
			kind, text = partText, []byte(v.String())
		}
	}
	if kind == partJSON {
		e := newEncoder()
		_ = e.appendJSON(part) // fails only if strict
		text = e.line
	}
	p.counts[kind]++
	p.bytes += len(text)
	if p.full {
		return
	}
	if room := streamBytesMax - len(p.kept); len(text) > room {
		p.full = true
		if kind == partJSON {
			return
		}
		text = text[:room]
	}
	p.kept = append(p.kept, text...)
	p.ends, p.kinds = append(p.ends, len(p.kept)), append(p.kinds, byte(kind))
}

// joined returns the parts as JSON.
func (p *parts) joined() json.RawMessage {
	switch p.counts[partText] + p.counts[partBytes] + p.counts[partJSON] {
	case p.counts[partText]:
		return p.text(string(p.kept))
	case p.counts[partBytes]:
		return p.text(textOf(p.kept))
	}
	b := []byte{'['}
	start := 0
	for i, end := range p.ends {
		if i > 0 {
			b = append(b, ',')
		}
		switch part := p.kept[start:end]; p.kinds[i] {
		case partText:
			b = appendString(b, string(part))
		case partBytes:
			b = appendString(b, base64.StdEncoding.EncodeToString(part))
		default:
			b = append(b, part...)
		}
		start = end
	}
	if p.full {
		if start > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"sluice_truncated":{"bytes":%d,"parts":%d}}`, p.bytes, p.counts[partText]+p.counts[partBytes]+p.counts[partJSON])
	}
	return append(b, ']')
}

func (p *parts) text(text string) json.RawMessage {
	if p.full {
		text += "… [sluice_truncated: " + strconv.Itoa(p.bytes) + " bytes]"
	}
	return appendString(nil, text)
}

// textOf decodes bytes as UTF-8, whose last character may be incomplete. Bytes
// that are not UTF-8 become base64.
func textOf(b []byte) string {
	for cut := range min(len(b), utf8.UTFMax) {
		whole := b[:len(b)-cut]
		if rest := b[len(whole):]; utf8.Valid(whole) && (cut == 0 || !utf8.FullRune(rest)) {
			if cut > 0 {
				return string(whole) + "\ufffd"
			}
			return string(whole)
		}
	}
	return base64.StdEncoding.EncodeToString(b)
}
