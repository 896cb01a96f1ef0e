package sluice

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// contentDepthMax is the number of levels that a field may nest. The server
	// allows 32, and the write itself is one.
	contentDepthMax  = 31
	metadataBytesMax = 16 << 10
	// cutBytesMin is the length up to which strings are never cut.
	cutBytesMin = 256
)

// encodeJSON encodes the value with encoding/json. If a method of the value
// panics, it returns an error.
func encodeJSON(enc *json.Encoder, v any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return enc.Encode(v)
}

// isTooDeep reports whether the JSON nests deeper than contentDepthMax.
func isTooDeep(text []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > contentDepthMax {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// appendAny appends the value as the nearest JSON value: NaN, infinities,
// functions, channels and complex numbers as text, a value whose methods fail as
// the name of its type, and a cycle as [circular].
func appendAny(b []byte, v any) []byte { return appendValue(b, reflect.ValueOf(v), 0, nil) }

func appendValue(b []byte, v reflect.Value, depth int, parents []uintptr) []byte {
	if !v.IsValid() {
		return append(b, "null"...)
	}
	if text, ok := ownText(v); ok {
		return append(b, text...)
	}
	switch v.Kind() {
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return strconv.AppendUint(b, v.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		switch f := v.Float(); {
		case math.IsNaN(f):
			return append(b, `"NaN"`...)
		case math.IsInf(f, 1):
			return append(b, `"Infinity"`...)
		case math.IsInf(f, -1):
			return append(b, `"-Infinity"`...)
		default:
			return strconv.AppendFloat(b, f, 'g', -1, v.Type().Bits())
		}
	case reflect.String:
		if n := v.String(); v.Type() == reflect.TypeFor[json.Number]() && json.Valid([]byte(n)) {
			return append(b, n...) // with all its digits
		}
		return appendString(b, v.String())
	case reflect.Complex64, reflect.Complex128:
		return appendString(b, strconv.FormatComplex(v.Complex(), 'g', -1, v.Type().Bits()))
	case reflect.Interface:
		return appendValue(b, v.Elem(), depth, parents)
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if v.IsNil() {
			return append(b, "null"...)
		}
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			return appendString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
		}
		if at := v.Pointer(); v.Kind() != reflect.Slice || v.Len() > 0 {
			if slices.Contains(parents, at) {
				return append(b, `"[circular]"`...)
			}
			parents = append(slices.Clip(parents), at)
		}
		if v.Kind() == reflect.Pointer {
			return appendValue(b, v.Elem(), depth, parents)
		}
	case reflect.Array, reflect.Struct:
	default:
		return appendTypeName(b, v)
	}
	if depth == contentDepthMax {
		return appendTypeName(b, v)
	}
	switch v.Kind() {
	case reflect.Map:
		return appendMap(b, v, depth, parents)
	case reflect.Struct:
		b = append(b, '{')
		b = appendFields(b, v, depth, parents)
		return append(b, '}')
	default:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, v.Index(i), depth+1, parents)
		}
		return append(b, ']')
	}
}

// ownText returns the value's encoding by its own MarshalJSON, MarshalText or
// similar method, if it has one.
func ownText(v reflect.Value) (text []byte, ok bool) {
	if !v.CanInterface() || v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, false
	}
	defer func() {
		if recover() != nil {
			text, ok = appendTypeName(nil, v), true
		}
	}()
	switch own := v.Interface().(type) {
	case json.Marshaler:
		if text, err := json.Marshal(own); err == nil && !isTooDeep(text) {
			return text, true
		}
		return appendTypeName(nil, v), true
	case encoding.TextMarshaler:
		if text, err := own.MarshalText(); err == nil {
			return appendString(nil, string(text)), true
		}
		return appendTypeName(nil, v), true
	case error:
		return appendString(nil, own.Error()), true
	}
	return nil, false
}

func appendTypeName(b []byte, v reflect.Value) []byte {
	return appendString(b, "["+v.Type().String()+"]")
}

// appendMap appends a map, sorted by the text of its keys. If two keys have the
// same text, the later one is renamed.
func appendMap(b []byte, v reflect.Value, depth int, parents []uintptr) []byte {
	members := make(map[string]reflect.Value, v.Len())
	for key, member := range v.Seq2() {
		name := string(appendValue(nil, key, contentDepthMax, nil))
		if strings.HasPrefix(name, `"`) {
			_ = json.Unmarshal([]byte(name), &name) // name is valid, because this function made it
		}
		unique := name
		for n := 2; members[unique].IsValid(); n++ {
			unique = fmt.Sprintf("%s (%d)", name, n)
		}
		members[unique] = member
	}
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	b = append(b, '{')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, name), ':')
		b = appendValue(b, members[name], depth+1, parents)
	}
	return append(b, '}')
}

// appendFields appends a struct's exported fields, with the names of their tags.
func appendFields(b []byte, v reflect.Value, depth int, parents []uintptr) []byte {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !field.IsExported() || name == "-" && options == "" || strings.Contains(options, "omit") && v.Field(i).IsZero() {
			continue
		}
		if name == "" {
			name = field.Name
		}
		if b[len(b)-1] != '{' {
			b = append(b, ',')
		}
		b = append(appendString(b, name), ':')
		b = appendValue(b, v.Field(i), depth+1, parents)
	}
	return b
}

// fit shortens fields of JSON to room bytes in total. It cuts the longest strings,
// and each cut string states its original size. If that is not enough, the largest
// field is replaced by the beginning of its JSON.
func fit(fields [][]byte, isText []bool, room int) [][]byte {
	var lengths []int
	excess := -room
	for _, field := range fields {
		excess += len(field)
		mapStrings(field, func(token []byte) []byte {
			lengths = append(lengths, len(token)-2)
			return nil
		})
	}
	// Find the largest limit for the length of strings that saves enough.
	limit := cutBytesMin
	for low, high := cutBytesMin, slices.Max(append(lengths, 0)); low <= high; {
		middle := (low + high) / 2
		saved := 0
		for _, length := range lengths {
			if length > middle {
				saved += length - middle - 64
			}
		}
		if saved >= excess {
			limit, low = middle, middle+1
		} else {
			high = middle - 1
		}
	}
	cut := make([][]byte, len(fields))
	for i, field := range fields {
		cut[i] = mapStrings(field, func(token []byte) []byte { return cutString(token, limit) })
	}
	for {
		total, largest := 0, 0
		for i := range cut {
			total += len(cut[i])
			if len(cut[i]) > len(cut[largest]) {
				largest = i
			}
		}
		if total <= room {
			return cut
		}
		size := max(room-(total-len(cut[largest])), room/4) - 128
		start := beginning(string(fields[largest]), size)
		bytes := strconv.Itoa(len(fields[largest]))
		if isText[largest] {
			cut[largest] = appendString(nil, start+"… [sluice_truncated: "+bytes+" bytes]")
			continue
		}
		cut[largest] = append(appendString([]byte(`{"sluice_truncated":{"bytes":`+bytes+`,"beginning":`), start), "}}"...)
	}
}

// fitObject shortens the JSON of an object to room bytes: its last members are
// left out, and sluice_truncated states the original size.
func fitObject(object []byte, room int) []byte {
	if len(object) <= room {
		return object
	}
	b := []byte(`{"sluice_truncated":{"bytes":` + strconv.Itoa(len(object)) + `}`)
	members := json.NewDecoder(bytes.NewReader(object))
	_, _ = members.Token() // valid, because this library encoded it
	for members.More() {
		name, _ := members.Token()
		var value json.RawMessage
		if members.Decode(&value) != nil {
			break
		}
		member := append(appendString([]byte(","), fmt.Sprint(name)), ':')
		member = append(member, value...)
		if name != "sluice_truncated" && len(b)+len(member) < room {
			b = append(b, member...)
		}
	}
	return append(b, '}')
}

// mapStrings applies change to every string of the JSON that is not a key.
func mapStrings(text []byte, change func(token []byte) []byte) []byte {
	var b []byte
	for {
		start := bytes.IndexByte(text, '"')
		if start < 0 {
			return append(b, text...)
		}
		end := start + 1
		for text[end] != '"' {
			if text[end] == '\\' {
				end++
			}
			end++
		}
		end++
		b = append(b, text[:start]...)
		if token := text[start:end]; end < len(text) && text[end] == ':' {
			b = append(b, token...)
		} else {
			b = append(b, change(token)...)
		}
		text = text[end:]
	}
}

var truncationMark = regexp.MustCompile(`… \[sluice_truncated: (\d+) bytes\]$`)

func cutString(token []byte, limit int) []byte {
	if len(token)-2 <= limit {
		return token
	}
	var text string
	_ = json.Unmarshal(token, &text) // valid, because this library encoded it
	size := strconv.Itoa(len(text))
	// A string that was cut before, such as the input of a traced call, keeps its
	// original size.
	if m := truncationMark.FindStringSubmatch(text[max(0, len(text)-64):]); m != nil {
		size = m[1]
	}
	return appendString(nil, beginning(text, limit)+"… [sluice_truncated: "+size+" bytes]")
}

// beginning returns a beginning of the text whose JSON has at most size bytes, and
// nearly as many.
func beginning(text string, size int) string {
	text = text[:min(len(text), size)]
	for {
		for len(text) > 0 && !utf8.ValidString(text[max(0, len(text)-4):]) && !utf8.RuneStart(text[len(text)-1]) {
			text = text[:len(text)-1]
		}
		if r, n := utf8.DecodeLastRuneInString(text); r == utf8.RuneError && n == 1 {
			text = text[:len(text)-1]
		}
		has := len(appendString(nil, text)) - 2
		if has <= size {
			return text
		}
		text = text[:len(text)*size/has]
	}
}
