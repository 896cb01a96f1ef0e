package event

// NewMinter returns a function that mints as [NewID] does in a process whose
// first id has the count first.
func NewMinter(first uint64) func(micros int64, conversationID string) ID {
	return newMinter(first).mint
}

// RandomCount is randomCount.
func RandomCount() uint64 { return randomCount() }

// ReadPlain and ReadAny read the members of an item, by the quick way and the
// thorough one. ReadPlain reports whether it took the body.
func ReadPlain(body []byte) (m Members, ok bool) {
	ok = m.m.readPlain(body, true)
	return m, ok
}

// ReadAny is explained with [ReadPlain].
func ReadAny(body []byte) (m Members, err error) {
	err = m.m.readAny(body, true)
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
func (m *Members) Vectors() (read, again [2]Vector, err error) {
	for i := range m.m.vectors {
		f := FieldInputEmbeddings + Field(i)
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

// PlainValue reports whether the value is plain, compact JSON.
func PlainValue(b []byte) bool {
	p := plain{b: b}
	return p.value(0, 2) == len(b) && p.spaces == 0
}

// PlainFloat reads a number, and reports whether that is all there is.
func PlainFloat(b []byte) (float32, bool) {
	p := plain{b: b}
	v, end := p.float(0)
	return v, end == len(b)
}

// NumbersFinite is numbersFinite.
func NumbersFinite(b []byte) bool { return numbersFinite(b) }

// DecodeBase64 is decodeBase64.
func DecodeBase64(text []byte) ([]byte, bool) {
	buf := make([]byte, len(text)/4*3+3)
	n, ok := decodeBase64(buf, text)
	return buf[:n], ok
}
