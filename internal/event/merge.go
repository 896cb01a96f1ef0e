package event

import (
	"bytes"

	"github.com/sluicehq/sluice/internal/jsonscan"
)

// MergeMetadata applies a merge patch (RFC 7396) to the metadata of an event,
// which is a compact JSON object, or empty. Members keep their order, new ones
// come last, and values their bytes. It is not ok where the result is longer than
// [MetadataBytesMax]; then the metadata should stay as it is.
//
// The result depends on nothing but the two, so that replays of a log find the
// same metadata.
func MergeMetadata(metadata string, patch []byte) (merged []byte, ok bool) {
	merged = appendMerged(make([]byte, 0, len(metadata)+len(patch)), []byte(metadata), patch)
	return merged, len(merged) <= MetadataBytesMax
}

// jsonMember is a member of an object, as it is written.
type jsonMember struct{ name, value []byte }

// appendMerged appends the target with the patch, an object, applied to it. A
// target that is no object counts as an empty one.
func appendMerged(b, target, patch []byte) []byte {
	changes := membersOf(patch)
	index := make(map[string]int, len(changes))
	for i, m := range changes {
		index[string(jsonscan.Unquote(m.name))] = i
	}
	b = append(b, '{')
	begin := len(b)
	add := func(name, before, change []byte) {
		if change != nil && change[0] == 'n' {
			return // null takes the member away
		}
		if len(b) > begin {
			b = append(b, ',')
		}
		b = append(append(b, name...), ':')
		switch {
		case change == nil:
			b = append(b, before...)
		case change[0] == '{':
			b = appendMerged(b, before, change)
		default:
			b = append(b, change...)
		}
	}
	for _, m := range membersOf(target) {
		name := string(jsonscan.Unquote(m.name))
		if i, ok := index[name]; ok {
			add(m.name, m.value, changes[i].value)
			delete(index, name)
			continue
		}
		add(m.name, m.value, nil)
	}
	for _, m := range changes {
		if _, isNew := index[string(jsonscan.Unquote(m.name))]; isNew {
			add(m.name, nil, m.value)
		}
	}
	return append(b, '}')
}

// membersOf are the members of a valid JSON object; those of any other text are
// none.
func membersOf(object []byte) []jsonMember {
	if len(object) == 0 || object[0] != '{' {
		return nil
	}
	d := jsonscan.NewDecoder(object)
	defer d.Release()
	if _, err := d.ReadToken(); err != nil {
		return nil
	}
	var members []jsonMember
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return nil
		}
		// The decoder's next call may reuse what it returned.
		name = bytes.Clone(name)
		value, err := d.ReadValue()
		if err != nil {
			return nil
		}
		members = append(members, jsonMember{name, bytes.Clone(value)})
	}
	return members
}
