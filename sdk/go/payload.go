package sluice

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
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
