package sluice

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"
)

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
