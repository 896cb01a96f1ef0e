package body

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"

	asmbase64 "github.com/segmentio/asm/base64"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// parseVector reads an embedding: an array of numbers, or base64 of
// little-endian float32. An array may have been read already.
func parseVector(f event.Field, raw []byte, vector event.Vector) (event.Vector, error) {
	if vector != nil {
		return vector, nil
	}
	var err error
	switch raw[0] {
	case '[':
		vector, err = parseNumbers(f, raw)
	case '"':
		vector, err = parseBase64(f, jsonscan.Unquote(raw))
	default:
		return nil, event.Errorf(event.CodeInvalidType, f.String(), "must be an array of numbers, or base64 of little-endian float32")
	}
	if err != nil {
		return nil, err
	}
	if len(vector) == 0 {
		return nil, event.Errorf(event.CodeInvalidValue, f.String(), "must not be empty; use null for no embedding")
	}
	return vector, nil
}

// parseNumbers reads a valid JSON array whose elements must be numbers.
func parseNumbers(f event.Field, raw []byte) (event.Vector, error) {
	// No more elements than commas and one, so that this is the only allocation.
	vector := make(event.Vector, 0, event.DimensionBytes*min(bytes.Count(raw, []byte{','})+1, event.EmbeddingDimensionsMax))
	for i := 1; ; {
		i += skipSpace(raw[i:])
		if raw[i] == ']' {
			return vector, nil
		}
		if !jsonscan.StartsNumber(raw[i]) {
			if depth, _ := jsonscan.Measure(raw); depth > event.DepthMax-1 {
				return nil, event.ErrTooDeep(f.String())
			}
			return nil, event.Errorf(event.CodeInvalidType, f.String()+"["+strconv.Itoa(vector.Dimensions())+"]", "must be a number")
		}
		if len(vector) == event.EmbeddingBytesMax {
			return nil, event.ErrDimensions(f)
		}
		end := i + 1
		for jsonscan.InNumber(raw[end]) {
			end++
		}
		v, err := strconv.ParseFloat(string(raw[i:end]), 32)
		if err != nil {
			return nil, event.ErrNotFinite(f, vector.Dimensions())
		}
		vector = binary.LittleEndian.AppendUint32(vector, math.Float32bits(float32(v)))
		i = end + skipSpace(raw[end:])
		if raw[i] == ',' {
			i++
		}
	}
}

func parseBase64(f event.Field, text []byte) (event.Vector, error) {
	if len(text) > base64.StdEncoding.EncodedLen(event.EmbeddingBytesMax) {
		return nil, event.ErrDimensions(f)
	}
	vector := make(event.Vector, base64.StdEncoding.DecodedLen(len(text)))
	n, ok := decodeBase64(vector, text)
	if !ok {
		return nil, errBase64(f)
	}
	if n%event.DimensionBytes != 0 {
		return nil, event.Errorf(event.CodeInvalidValue, f.String(), "holds %d bytes, which is not a multiple of 4, the size of a float32", n)
	}
	if vector = vector[:n]; len(vector) > event.EmbeddingBytesMax {
		return nil, event.ErrDimensions(f)
	}
	if i := vector.FirstNotFinite(); i >= 0 {
		return nil, event.ErrNotFinite(f, i)
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

func errBase64(f event.Field) error {
	return event.Errorf(event.CodeInvalidValue, f.String(), "is not standard base64 with padding")
}

func skipSpace(b []byte) int {
	i := 0
	for b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r' {
		i++
	}
	return i
}
