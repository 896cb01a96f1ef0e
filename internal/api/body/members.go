package body

import (
	"bytes"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// member is a member of a request's object. From memberEventName on they are
// the mutable fields, in the order of [event.Field].
type member uint8

const (
	memberOp member = iota
	memberID
	memberConversationID
	memberTimestamp
	memberEventName
	memberMetadata
	memberError
	memberLatency
	memberInput
	memberOutput
	memberInputEmbeddings
	memberOutputEmbeddings
	memberCount
)

func (i member) String() string {
	switch i {
	case memberOp:
		return "op"
	case memberID:
		return "id"
	case memberConversationID:
		return "conversation_id"
	case memberTimestamp:
		return "timestamp"
	default:
		return i.field().String()
	}
}

func (i member) field() event.Field { return event.Field(i - memberEventName) }

func memberOfField(f event.Field) member { return memberEventName + member(f) }

// memberOf returns the member of a name as it is written, quotes and all.
func memberOf(quoted []byte) (i member, ok bool) {
	switch string(quoted) {
	case `"op"`:
		return memberOp, true
	case `"id"`:
		return memberID, true
	case `"conversation_id"`:
		return memberConversationID, true
	case `"conversation_metadata"`:
		return memberMetadata, true
	case `"event_name"`:
		return memberEventName, true
	case `"timestamp"`:
		return memberTimestamp, true
	case `"error"`:
		return memberError, true
	case `"latency"`:
		return memberLatency, true
	case `"input"`:
		return memberInput, true
	case `"output"`:
		return memberOutput, true
	case `"input_embeddings"`:
		return memberInputEmbeddings, true
	case `"output_embeddings"`:
		return memberOutputEmbeddings, true
	}
	if bytes.IndexByte(quoted, '\\') >= 0 {
		plain := append(append([]byte{'"'}, jsonscan.Unquote(quoted)...), '"')
		// Once unquoted, a backslash is one; it is in none of the names.
		if bytes.IndexByte(plain, '\\') < 0 {
			return memberOf(plain)
		}
	}
	return 0, false
}

// members are the values of a request's object as they are written, nil where
// they are absent.
type members struct {
	raw [memberCount][]byte
	// spaces are the bytes of white space within arrays and objects.
	spaces [memberCount]int
	// finite says that all numbers of the metadata fit a double. Where it is
	// false, they may.
	finite bool
	// vectors are the embeddings that were arrays, where already read.
	vectors [2]event.Vector
}

// read reads the whole of a body, so that every error of the JSON itself comes
// before any of what it says.
func (m *members) read(body []byte, isItem bool) error {
	if m.readFast(body, isItem) {
		return nil
	}
	*m = members{}
	if !isItem {
		body = trimByteOrderMark(body)
	}
	return m.readStrict(body, isItem)
}

// trimByteOrderMark returns the text without U+FEFF at its beginning, which some
// programs write there, and which RFC 8259 allows to pass over.
func trimByteOrderMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

// ref reads the id, which is given.
func (m *members) ref(now time.Time) (event.Ref, error) {
	s, err := stringOf(memberID, m.raw[memberID])
	if err != nil {
		return event.Ref{}, err
	}
	return event.ParseRef(s, now)
}

// given reports whether a member is present and not null.
func given(raw []byte) bool { return raw != nil && raw[0] != 'n' }

func errType(i member, want string) error {
	return event.Errorf(event.CodeInvalidType, i.String(), "must be %s", want)
}

// stringOf returns a copy of the text of a member that must be a string.
func stringOf(i member, raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errType(i, "a string")
	}
	return string(jsonscan.Unquote(raw)), nil
}
