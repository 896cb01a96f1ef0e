package event

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	asmbase64 "github.com/segmentio/asm/base64"
)

// DefaultEventNames returns the event names that are allowed where none are
// configured: event_a, event_b and event_c.
func DefaultEventNames() []string { return []string{"event_a", "event_b", "event_c"} }

// Rules are the rules of request bodies that are configured. They must not be
// changed once in use; their methods may then be called concurrently.
type Rules struct {
	// EventNames are the allowed event names: at least one, each of 1 to
	// [EventNameBytesMax] bytes of UTF-8. One that ends in "*" is a pattern, and
	// allows every name that begins with what is before it. See
	// [DefaultEventNames].
	EventNames []string
	// EventNamesMax bounds the distinct names that patterns let in, over the
	// whole life of the rules. Default: [DefaultEventNamesMax].
	EventNamesMax int

	matched matchedNames
}

// DefaultEventNamesMax is the default of Rules.EventNamesMax. It is well below
// the 8,192 values of a part up to which ClickHouse keeps names in a dictionary.
const DefaultEventNamesMax = 1000

// matchedNames are the names that patterns have let in.
type matchedNames struct {
	mu    sync.RWMutex
	names map[string]string // to themselves
}

// find returns the name, if it was let in before.
func (m *matchedNames) find(text []byte) (name string, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	name, ok = m.names[string(text)]
	return name, ok
}

// add lets the name in, and reports whether there is room for it.
func (m *matchedNames) add(name string, namesMax int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.names[name]; ok {
		return true
	}
	if len(m.names) >= namesMax {
		return false
	}
	if m.names == nil {
		m.names = make(map[string]string)
	}
	m.names[name] = name
	return true
}

// Validate reports everything that is wrong with the rules.
func (r *Rules) Validate() error {
	var errs []error
	if len(r.EventNames) == 0 {
		errs = append(errs, errors.New("EventNames: must name at least one event"))
	}
	for i, name := range r.EventNames {
		if name == "" || len(name) > EventNameBytesMax || !utf8.ValidString(name) {
			errs = append(errs, fmt.Errorf("EventNames[%d]: must be 1 to %d bytes of UTF-8", i, EventNameBytesMax))
		}
		if star := strings.IndexByte(name, '*'); star >= 0 && star < len(name)-1 {
			errs = append(errs, fmt.Errorf("EventNames[%d]: has a * that is not at its end, as that of a pattern is", i))
		}
		if slices.Contains(r.EventNames[:i], name) {
			errs = append(errs, fmt.Errorf("EventNames[%d]: repeats %q", i, name))
		}
	}
	if r.EventNamesMax < 0 {
		errs = append(errs, errors.New("EventNamesMax: must not be negative"))
	}
	return errors.Join(errs...)
}

// ParseCreate reads the body of a create that was received at the time now.
// Without an id it mints one, and the write is Fresh; with an alias it mints the
// internal id that the event gets if this create wins.
//
// The error is an [*Error] that names the field. The write is valid as of
// [Write.Validate]; its metadata and contents may alias the body.
func (r *Rules) ParseCreate(body []byte, now time.Time) (Write, error) {
	var m members
	if err := m.read(body, false); err != nil {
		return Write{}, err
	}
	return r.create(&m, now)
}

// ParseUpdate reads the body of an update of the event that ref names; see
// [Rules.ParseCreate] for the rest. Besides the fields to change, the body may
// repeat the id.
func (r *Rules) ParseUpdate(ref Ref, body []byte, _ time.Time) (Write, error) {
	var m members
	if err := m.read(body, false); err != nil {
		return Write{}, err
	}
	if raw := m.raw[memberID]; raw != nil {
		if s, err := stringOf(memberID, raw); err != nil || s != ref.String() {
			return Write{}, Errorf(CodeImmutable, "id", "differs from the event's; an id never changes")
		}
	}
	return r.update(ref, &m)
}

// ParsePatch is [Rules.ParseUpdate] for a body whose conversation_metadata, where
// it is an object, is a merge patch (RFC 7396).
func (r *Rules) ParsePatch(ref Ref, body []byte, now time.Time) (Write, error) {
	return asPatch(r.ParseUpdate(ref, body, now))
}

// asPatch makes a patch of an update that was read.
func asPatch(w Write, err error) (Write, error) {
	w.MergeMetadata = err == nil && (w.Set &^ w.Null).Has(FieldMetadata)
	return w, err
}

// ParseItem reads one item of a batch: the body of a create, or with the member
// "op" an update, patch or delete of the event that its id names. See
// [Rules.ParseCreate] for the rest.
func (r *Rules) ParseItem(item []byte, now time.Time) (Write, error) {
	var m members
	if err := m.read(item, true); err != nil {
		return Write{}, err
	}
	op, isPatch := OpCreate, false
	if raw := m.raw[memberOp]; given(raw) {
		s, err := stringOf(memberOp, raw)
		if err != nil {
			return Write{}, err
		}
		switch s {
		case "create":
		case "update":
			op = OpUpdate
		case "patch":
			op, isPatch = OpUpdate, true
		case "delete":
			op = OpDelete
		default:
			return Write{}, Errorf(CodeInvalidValue, "op", "must be create, update, patch or delete")
		}
	}
	if op == OpCreate {
		return r.create(&m, now)
	}
	if !given(m.raw[memberID]) {
		return Write{}, Errorf(CodeRequired, "id", "is required to %s an event", op)
	}
	ref, err := m.ref(now)
	if err != nil {
		return Write{}, err
	}
	if op == OpUpdate {
		if isPatch {
			return asPatch(r.update(ref, &m))
		}
		return r.update(ref, &m)
	}
	for i, raw := range m.raw {
		if i := member(i); raw != nil && i != memberOp && i != memberID {
			return Write{}, Errorf(CodeUnknownField, i.String(), "is not a member of a delete, which has op and id only")
		}
	}
	return NewDelete(ref), nil
}

// NewDelete returns the delete of the event that ref names.
func NewDelete(ref Ref) Write {
	return Write{Op: OpDelete, ID: ref.ID, Alias: ref.Alias}
}

func (r *Rules) create(m *members, now time.Time) (Write, error) {
	w := Write{Op: OpCreate}
	if !given(m.raw[memberConversationID]) {
		return Write{}, Errorf(CodeRequired, "conversation_id", "is required")
	}
	var err error
	if w.ConversationID, err = stringOf(memberConversationID, m.raw[memberConversationID]); err != nil {
		return Write{}, err
	}
	if err := checkConversationID(w.ConversationID); err != nil {
		return Write{}, err
	}
	micros := now.UnixMicro()
	timed := given(m.raw[memberTimestamp])
	if timed {
		if micros, err = parseTimestamp(m.raw[memberTimestamp], now); err != nil {
			return Write{}, err
		}
	}
	if !given(m.raw[memberID]) {
		w.ID, w.Fresh = NewID(micros, w.ConversationID), true
	} else {
		ref, err := m.ref(now)
		if err != nil {
			return Write{}, err
		}
		switch {
		case ref.Alias != "":
			w.Alias, w.ID = ref.Alias, NewID(micros, w.ConversationID).AsInternal()
		case ref.ID.ConversationHash() != ConversationHash(w.ConversationID):
			return Write{}, errOtherConversation()
		case timed && ref.ID.Micros() != micros:
			return Write{}, Errorf(CodeIDMismatch, "id", "was minted for another timestamp")
		default:
			w.ID = ref.ID
		}
	}
	if !given(m.raw[memberEventName]) {
		return Write{}, Errorf(CodeRequired, "event_name", "is required")
	}
	if err := r.mutable(&w, m); err != nil {
		return Write{}, err
	}
	return w, nil
}

func (r *Rules) update(ref Ref, m *members) (Write, error) {
	for _, i := range [...]member{memberConversationID, memberTimestamp} {
		if m.raw[i] != nil {
			return Write{}, Errorf(CodeImmutable, i.String(), "never changes; leave it out of an update")
		}
	}
	w := Write{Op: OpUpdate, ID: ref.ID, Alias: ref.Alias}
	if err := r.mutable(&w, m); err != nil {
		return Write{}, err
	}
	if w.Set == 0 {
		return Write{}, errNoFields()
	}
	return w, nil
}

// mutable reads the members that an update may name into the write. A null
// clears the field in an update, and is as good as absent in a create.
func (r *Rules) mutable(w *Write, m *members) error {
	for i := memberEventName; i < memberCount; i++ {
		raw := m.raw[i]
		if raw == nil {
			continue
		}
		f := i.field()
		isNull := !given(raw)
		if !isNull {
			var err error
			if isNull, err = r.value(w, f, m); err != nil {
				return err
			}
		}
		if isNull {
			if f == FieldEventName {
				return Errorf(CodeRequired, "event_name", "must not be null")
			}
			if w.Op == OpCreate {
				continue
			}
			w.Null = w.Null.With(f)
		}
		w.Set = w.Set.With(f)
	}
	return r.admitName(w.EventName)
}

// value reads the value of one field, which is not null, into the write. It
// reports whether the value means the same as null.
func (r *Rules) value(w *Write, f Field, m *members) (isNull bool, err error) {
	raw, spaces := m.raw[memberOfField(f)], m.spaces[memberOfField(f)]
	switch f {
	case FieldEventName:
		w.EventName, err = r.eventName(raw)
	case FieldMetadata:
		w.Metadata, err = parseMetadata(raw, spaces, m.finite)
	case FieldError:
		w.Error, err = stringOf(memberError, raw)
		isNull = w.Error == ""
	case FieldLatency:
		w.Latency, err = parseLatency(raw)
	case FieldInput:
		w.Input = parseContent(raw, spaces)
	case FieldOutput:
		w.Output = parseContent(raw, spaces)
	case FieldInputEmbeddings:
		w.InputEmbeddings, err = parseVector(f, raw, m.vectors[0])
	case FieldOutputEmbeddings:
		w.OutputEmbeddings, err = parseVector(f, raw, m.vectors[1])
	default:
		panic("BUG: a member that is no mutable field")
	}
	return isNull, err
}

// eventName returns the name that the member equals and that is configured or
// was let in by a pattern before, so that no copy of it is made. A new one that a
// pattern matches is returned as it is, for admitName.
func (r *Rules) eventName(raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errType(memberEventName, "a string")
	}
	text := unquote(raw)
	matches := false
	for _, name := range r.EventNames {
		prefix, isPattern := strings.CutSuffix(name, "*")
		if !isPattern && string(text) == name {
			return name, nil
		}
		matches = matches || isPattern && len(text) >= len(prefix) && string(text[:len(prefix)]) == prefix
	}
	if matches {
		switch name, known := r.matched.find(text); {
		case known:
			return name, nil
		case len(text) == 0:
			return "", Errorf(CodeInvalidValue, "event_name", "must not be empty")
		case len(text) > EventNameBytesMax:
			return "", Errorf(CodeTooLarge, "event_name", "is longer than %d bytes", EventNameBytesMax)
		}
		return string(text), nil
	}
	const namesMax = 10 // what an error message has room for
	if len(r.EventNames) > namesMax {
		return "", Errorf(CodeInvalidValue, "event_name", "is none of the %d configured names", len(r.EventNames))
	}
	return "", Errorf(CodeInvalidValue, "event_name", "must be one of %s", strings.Join(r.EventNames, ", "))
}

// admitName counts the name of a write that is valid otherwise against
// EventNamesMax, where only a pattern allows it. A name that is refused for
// something else takes no room.
func (r *Rules) admitName(name string) error {
	if name == "" || slices.Contains(r.EventNames, name) {
		return nil
	}
	namesMax := r.EventNamesMax
	if namesMax == 0 {
		namesMax = DefaultEventNamesMax
	}
	if _, known := r.matched.find([]byte(name)); known || r.matched.add(name, namesMax) {
		return nil
	}
	return Errorf(CodeInvalidValue, "event_name",
		"is a new name, and this server has taken as many as it may beside those that are listed: %d", namesMax)
}

func parseMetadata(raw []byte, spaces int, finite bool) ([]byte, error) {
	if raw[0] != '{' {
		return nil, errType(memberMetadata, "an object")
	}
	if len(raw)-spaces > MetadataBytesMax {
		return nil, errMetadataTooLarge()
	}
	if !finite && !numbersFinite(raw) {
		return nil, errMetadataNumber()
	}
	return compactJSON(raw, spaces), nil
}

func parseLatency(raw []byte) (float64, error) {
	if !isNumber(raw[0]) {
		return 0, errType(memberLatency, "a number of milliseconds")
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || v < 0 {
		return 0, Errorf(CodeInvalidValue, "latency", "must be a finite number, 0 or more")
	}
	if v == 0 {
		return 0, nil // -0 is no latency of its own
	}
	return v, nil
}

func parseContent(raw []byte, spaces int) Content {
	if raw[0] == '"' {
		return Content{Kind: KindString, Data: unquote(raw)}
	}
	return Content{Kind: KindJSON, Data: compactJSON(raw, spaces)}
}

// parseTimestamp reads RFC 3339 text or Unix milliseconds into Unix
// microseconds. What is finer is cut off.
func parseTimestamp(raw []byte, now time.Time) (int64, error) {
	var micros int64
	switch {
	case raw[0] == '"':
		text := unquote(raw)
		var ok bool
		if micros, ok = ParseRFC3339(text); !ok {
			if _, err := strconv.ParseFloat(string(text), 64); err == nil {
				return 0, Errorf(CodeInvalidValue, "timestamp", "is text; Unix milliseconds are a number, without quotation marks%s", TimeUnitHint(text))
			}
			return 0, Errorf(CodeInvalidValue, "timestamp", "is not RFC 3339, such as 2026-01-31T12:00:00.25Z")
		}
	case isNumber(raw[0]):
		if bytes.ContainsAny(raw, ".eE") {
			return 0, Errorf(CodeInvalidValue, "timestamp", "must be a whole number of Unix milliseconds%s", TimeUnitHint(raw))
		}
		ms, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || ms < TimestampMin/1000 || ms > math.MaxInt64/1000 || !inTimestampRange(ms*1000, now) {
			return 0, Errorf(CodeInvalidValue, "timestamp",
				"must lie between 2000-01-01T00:00:00Z and 24 h from now, in Unix milliseconds%s", TimeUnitHint(raw))
		}
		return ms * 1000, nil
	default:
		return 0, errType(memberTimestamp, "an RFC 3339 string or a whole number of Unix milliseconds")
	}
	if !inTimestampRange(micros, now) {
		return 0, Errorf(CodeInvalidValue, "timestamp", "must lie between 2000-01-01T00:00:00Z and 24 h from now")
	}
	return micros, nil
}

func inTimestampRange(micros int64, now time.Time) bool {
	return micros >= TimestampMin && micros <= now.Add(TimestampAhead).UnixMicro()
}

// TimeUnitHint is the rest of an error about a time that should be Unix
// milliseconds. It asks whether the number is in another unit, where it would
// then be a time of this century, and is empty otherwise.
func TimeUnitHint[T ~string | ~[]byte](number T) string {
	v, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return ""
	}
	for _, unit := range [...]struct {
		name, change string
		micros       float64
	}{
		{"milliseconds", "", 1e3},
		{"seconds", "multiply it by 1,000", 1e6},
		{"microseconds", "divide it by 1,000", 1},
		{"nanoseconds", "divide it by 1,000,000", 1e-3},
	} {
		// 2000-01-01 to 2100-01-01.
		if at := v * unit.micros; at < float64(TimestampMin) || at >= 4_102_444_800e6 {
			continue
		}
		if unit.change == "" {
			return ""
		}
		return "; is it in " + unit.name + "? Then " + unit.change
	}
	return ""
}

// ParseRFC3339 reads a date-time of RFC 3339 §5.6 into Unix microseconds; what is
// finer is cut off. The letters T and Z may be lower-case. The time package is
// more lenient: it takes a comma for the point, and hours and offsets that the RFC
// does not. Leap seconds have no Unix time and are refused.
func ParseRFC3339(s []byte) (micros int64, ok bool) {
	const layout = "2006-01-02T15:04:05"
	if len(s) <= len(layout) || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	year, ok0 := digits(s[0:4])
	month, ok1 := digits(s[5:7])
	day, ok2 := digits(s[8:10])
	hour, ok3 := digits(s[11:13])
	minute, ok4 := digits(s[14:16])
	second, ok5 := digits(s[17:19])
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	if t.Month() != time.Month(month) || t.Day() != day {
		return 0, false // a day that the month does not have
	}
	micros = t.UnixMicro()
	s = s[len(layout):]
	if s[0] == '.' {
		n := 1
		for scale := int64(100_000); n < len(s) && s[n]-'0' <= 9; n++ {
			micros += int64(s[n]-'0') * scale
			scale /= 10
		}
		if n == 1 {
			return 0, false
		}
		s = s[n:]
	}
	if len(s) == 1 && s[0]|0x20 == 'z' {
		return micros, true
	}
	if len(s) != len("+00:00") || (s[0] != '+' && s[0] != '-') || s[3] != ':' {
		return 0, false
	}
	hour, ok0 = digits(s[1:3])
	minute, ok1 = digits(s[4:6])
	if !ok0 || !ok1 || hour > 23 || minute > 59 {
		return 0, false
	}
	offset := int64(hour*60+minute) * time.Minute.Microseconds()
	if s[0] == '-' {
		offset = -offset
	}
	return micros - offset, true
}

func digits(s []byte) (n int, ok bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// parseVector reads an embedding: an array of numbers, or base64 of
// little-endian float32. An array may have been read already.
func parseVector(f Field, raw []byte, vector Vector) (Vector, error) {
	if vector != nil {
		return vector, nil
	}
	var err error
	switch raw[0] {
	case '[':
		vector, err = parseNumbers(f, raw)
	case '"':
		vector, err = parseBase64(f, unquote(raw))
	default:
		return nil, Errorf(CodeInvalidType, f.String(), "must be an array of numbers, or base64 of little-endian float32")
	}
	if err != nil {
		return nil, err
	}
	if len(vector) == 0 {
		return nil, Errorf(CodeInvalidValue, f.String(), "must not be empty; use null for no embedding")
	}
	return vector, nil
}

// parseNumbers reads a valid JSON array whose elements must be numbers.
func parseNumbers(f Field, raw []byte) (Vector, error) {
	// No more elements than commas and one, so that this is the only allocation.
	vector := make(Vector, 0, DimensionBytes*min(bytes.Count(raw, []byte{','})+1, EmbeddingDimensionsMax))
	for i := 1; ; {
		i += skipSpace(raw[i:])
		if raw[i] == ']' {
			return vector, nil
		}
		if !isNumber(raw[i]) {
			if depth, _ := scanJSON(raw); depth > DepthMax-1 {
				return nil, errTooDeep(f.String())
			}
			return nil, Errorf(CodeInvalidType, f.String()+"["+strconv.Itoa(vector.Dimensions())+"]", "must be a number")
		}
		if len(vector) == EmbeddingBytesMax {
			return nil, errDimensions(f)
		}
		end := i + 1
		for inNumber(raw[end]) {
			end++
		}
		v, err := strconv.ParseFloat(string(raw[i:end]), 32)
		if err != nil {
			return nil, errNotFinite(f, vector.Dimensions())
		}
		vector = vector.append(float32(v))
		i = end + skipSpace(raw[end:])
		if raw[i] == ',' {
			i++
		}
	}
}

func parseBase64(f Field, text []byte) (Vector, error) {
	if len(text) > base64.StdEncoding.EncodedLen(EmbeddingBytesMax) {
		return nil, errDimensions(f)
	}
	vector := make(Vector, base64.StdEncoding.DecodedLen(len(text)))
	n, ok := decodeBase64(vector, text)
	if !ok {
		return nil, errBase64(f)
	}
	if n%DimensionBytes != 0 {
		return nil, Errorf(CodeInvalidValue, f.String(), "holds %d bytes, which is not a multiple of 4, the size of a float32", n)
	}
	if vector = vector[:n]; len(vector) > EmbeddingBytesMax {
		return nil, errDimensions(f)
	}
	if i := vector.indexNotFinite(); i >= 0 {
		return nil, errNotFinite(f, i)
	}
	return vector, nil
}

// decodeBase64 decodes standard base64 with padding, and nothing but that. The
// quick decoder is lenient about the end, which it does not get.
func decodeBase64(dst, text []byte) (n int, ok bool) {
	// The decoders skip line breaks, which standard base64 does not have.
	if len(text)%4 != 0 || bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0 {
		return 0, false
	}
	if last := len(text) - 4; last > 0 {
		var err error
		if n, err = asmbase64.StdEncoding.Decode(dst, text[:last]); err != nil || n != last/4*3 {
			return 0, false
		}
		text = text[last:]
	}
	m, err := base64.StdEncoding.Strict().Decode(dst[n:], text)
	return n + m, err == nil
}

func errBase64(f Field) error {
	return Errorf(CodeInvalidValue, f.String(), "is not standard base64 with padding")
}

// member is a member of a request's object. From memberEventName on they are
// the mutable fields, in the order of [Field].
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

func (i member) field() Field { return Field(i - memberEventName) }

func memberOfField(f Field) member { return memberEventName + member(f) }

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
		plain := append(append([]byte{'"'}, unquote(quoted)...), '"')
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
	vectors [2]Vector
}

// read reads the whole of a body, so that every error of the JSON itself comes
// before any of what it says.
func (m *members) read(body []byte, isItem bool) error {
	if m.readPlain(body, isItem) {
		return nil
	}
	*m = members{}
	if !isItem {
		body = TrimByteOrderMark(body)
	}
	return m.readAny(body, isItem)
}

// TrimByteOrderMark returns the text without U+FEFF at its beginning, which some
// programs write there, and which RFC 8259 allows to pass over.
func TrimByteOrderMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

// readPlain is read for a body that is plain and right. It reports whether it is.
func (m *members) readPlain(body []byte, isItem bool) bool {
	p := plain{b: body}
	i := p.skip(0)
	if !p.is(i, '{') {
		return false
	}
	for i = p.skip(i + 1); ; i = p.skip(i + 1) {
		end := p.name(i)
		if end == no {
			return false
		}
		at, known := memberOf(body[i:end])
		if !known || m.raw[at] != nil || at == memberOp && !isItem {
			return false
		}
		if i = p.skip(end); !p.is(i, ':') {
			return false
		}
		i = p.skip(i + 1)
		p.spaces, p.large = 0, false
		if at >= memberInputEmbeddings && p.is(i, '[') {
			m.vectors[at-memberInputEmbeddings], end = p.vector(i)
		} else {
			end = p.value(i, 2)
		}
		if end == no {
			return false
		}
		m.raw[at], m.spaces[at] = body[i:end], p.spaces
		if at == memberMetadata {
			m.finite = !p.large
		}
		i = p.skip(end)
		if p.is(i, '}') {
			return p.skip(i+1) == len(body)
		}
		if !p.is(i, ',') {
			return false
		}
	}
}

// readAny is read for every body.
func (m *members) readAny(body []byte, isItem bool) error {
	d := getDecoder(body)
	defer putDecoder(d)
	isObject := d.json.PeekKind() == '{'
	if !isObject {
		if _, err := d.json.ReadValue(); err != nil {
			return jsonError(body, err)
		}
	} else if _, err := d.json.ReadToken(); err != nil {
		return jsonError(body, err)
	}
	unknown, hasUnknown := "", false
	for isObject && d.json.PeekKind() != '}' {
		quoted, err := d.json.ReadValue()
		if err != nil {
			return jsonError(body, err)
		}
		i, known := memberOf(quoted)
		if known = known && (isItem || i != memberOp); !known && !hasUnknown {
			unknown, hasUnknown = fieldName(unquote(quoted)), true
		}
		raw, err := d.json.ReadValue()
		if err != nil {
			return jsonError(body, err)
		}
		if !known {
			continue
		}
		// Embeddings are large and flat; they look after themselves.
		if (raw[0] == '{' || raw[0] == '[') && i < memberInputEmbeddings {
			depth, spaces := scanJSON(raw)
			if depth > DepthMax-1 {
				return errTooDeep(i.String())
			}
			m.spaces[i] = spaces
		}
		m.raw[i] = raw
	}
	if isObject {
		if _, err := d.json.ReadToken(); err != nil {
			return jsonError(body, err)
		}
	}
	if _, err := d.json.ReadToken(); err == nil {
		return Errorf(CodeInvalidJSON, "", "has data after its JSON value")
	} else if err != io.EOF { //nolint:errorlint // ReadToken documents the very value
		return jsonError(body, err)
	}
	if !isObject {
		return Errorf(CodeInvalidType, "", "must be a JSON object")
	}
	if hasUnknown {
		return Errorf(CodeUnknownField, unknown, "is not a known field")
	}
	return nil
}

// ref reads the id, which is given.
func (m *members) ref(now time.Time) (Ref, error) {
	s, err := stringOf(memberID, m.raw[memberID])
	if err != nil {
		return Ref{}, err
	}
	return ParseRef(s, now)
}

// jsonError is the error of a body that the JSON decoder refused.
func jsonError(body []byte, err error) error {
	if err == io.EOF { //nolint:errorlint // the decoder documents the very value
		return Errorf(CodeInvalidJSON, "", "is empty")
	}
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return Errorf(CodeInvalidJSON, "", "is not valid JSON")
	}
	at := int(syntax.ByteOffset)
	if depth, _ := scanJSON(body[:min(at+1, len(body))]); depth > DepthMax {
		return errTooDeep("")
	}
	field := fieldPath(syntax.JSONPointer)
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return Errorf(CodeDuplicateField, field, "is there twice")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return Errorf(CodeInvalidJSON, field, "ends within a JSON value")
	case !utf8.Valid(body):
		return Errorf(CodeInvalidJSON, field, "is not valid UTF-8 (after byte %d)", at)
	case at < len(body) && body[at] == '\\':
		return Errorf(CodeInvalidJSON, field, "has an invalid escape or half a surrogate pair (at byte %d)", at)
	}
	return Errorf(CodeInvalidJSON, field, "is not valid JSON (at byte %d)", at)
}

const fieldNameBytesMax = 64 // longer ones are cut in errors

// fieldName is the name of a member for an error's Field.
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
		if _, isIndex := digits([]byte(token)); isIndex && token != "" && n > 1 {
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

// decoder is a JSON decoder that reads a byte slice in place.
type decoder struct {
	json jsontext.Decoder
	buf  bytes.Buffer
}

var decoders = sync.Pool{New: func() any { return new(decoder) }} //nolint:gochecknoglobals // memory to reuse, no state

func getDecoder(body []byte) *decoder {
	d := decoders.Get().(*decoder)
	d.buf = *bytes.NewBuffer(body)
	d.json.Reset(&d.buf)
	return d
}

func putDecoder(d *decoder) {
	d.buf = bytes.Buffer{}
	d.json.Reset(&d.buf) // lets go of the body
	decoders.Put(d)
}

// given reports whether a member is present and not null.
func given(raw []byte) bool { return raw != nil && raw[0] != 'n' }

func isNumber(c byte) bool { return c == '-' || c >= '0' && c <= '9' }

func inNumber(c byte) bool {
	return c >= '0' && c <= '9' || c == '.' || c|0x20 == 'e' || c == '-' || c == '+'
}

func skipSpace(b []byte) int {
	i := 0
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
		i++
	}
	return i
}

func errType(i member, want string) error {
	return Errorf(CodeInvalidType, i.String(), "must be %s", want)
}

// stringOf returns a copy of the text of a member that must be a string.
func stringOf(i member, raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errType(i, "a string")
	}
	return string(unquote(raw)), nil
}

// unquote returns the text of a valid JSON string. Without escapes in it the
// text aliases the string.
func unquote(quoted []byte) []byte {
	text := quoted[1 : len(quoted)-1 : len(quoted)-1]
	if bytes.IndexByte(text, '\\') < 0 {
		return text
	}
	text, err := jsontext.AppendUnquote(make([]byte, 0, len(text)), quoted)
	if err != nil {
		panic("BUG: the string was read from valid JSON: " + err.Error())
	}
	return text
}
