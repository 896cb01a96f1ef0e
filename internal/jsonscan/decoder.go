package jsonscan

import (
	"bytes"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// A Decoder is a [jsontext.Decoder] that reads a byte slice where it lies.
type Decoder struct {
	jsontext.Decoder
	buf bytes.Buffer
}

var decoders = sync.Pool{New: func() any { return new(Decoder) }} //nolint:gochecknoglobals // memory to reuse, no state

// NewDecoder returns a decoder of the text. Release must be called in the end.
func NewDecoder(text []byte) *Decoder {
	d := decoders.Get().(*Decoder)
	d.buf = *bytes.NewBuffer(text)
	d.Reset(&d.buf)
	return d
}

// Release gives the decoder's memory back for the next one. The decoder must not
// be used afterwards.
func (d *Decoder) Release() {
	d.buf = bytes.Buffer{}
	d.Reset(&d.buf) // lets go of the text
	decoders.Put(d)
}
