package body

import "github.com/sluicehq/sluice/internal/event"

// ReadFast and ReadStrict read the members of an item, by the fast way and the
// strict one. ReadFast reports whether it took the body.
func ReadFast(body []byte) (m Members, ok bool) {
	ok = m.m.readFast(body, true)
	return m, ok
}

// ReadStrict is explained with [ReadFast].
func ReadStrict(body []byte) (m Members, err error) {
	err = m.m.readStrict(body, true)
	return m, err
}

// Members are what was read of a body.
type Members struct{ m members }

// Raw are the members as they are written, Spaces the white space in the arrays
// and objects, but for that in embeddings.
func (m *Members) Raw() (raw [][]byte, spaces []int) {
	spaces = m.m.spaces[:memberInputEmbeddings]
	return m.m.raw[:], spaces
}

// Finite says that the metadata's numbers are known to fit a double.
func (m *Members) Finite() bool { return m.m.finite }

// Metadata is the raw metadata.
func (m *Members) Metadata() []byte { return m.m.raw[memberMetadata] }

// Vectors parses the embeddings that are arrays: those that are read already,
// and again what is written.
func (m *Members) Vectors() (read, again [2]event.Vector, err error) {
	for i := range m.m.vectors {
		f := event.FieldInputEmbeddings + event.Field(i)
		if m.m.vectors[i] == nil {
			continue
		}
		read[i] = m.m.vectors[i]
		if again[i], err = parseNumbers(f, m.m.raw[memberOfField(f)]); err != nil {
			return read, again, err
		}
	}
	return read, again, nil
}

// DecodeBase64 is decodeBase64.
func DecodeBase64(text []byte) ([]byte, bool) {
	buf := make([]byte, len(text)/4*3+3)
	n, ok := decodeBase64(buf, text)
	return buf[:n], ok
}
