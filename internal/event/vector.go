package event

import (
	"encoding/binary"
	"math"
)

// Vector is an embedding: its dimensions as little-endian float32, one after the
// other. That is the form it has in base64, in the log and on ClickHouse's wire,
// so that on its way it is copied and never converted. An empty one is none.
type Vector []byte

// DimensionBytes is the size of one dimension of a [Vector].
const DimensionBytes = 4

// VectorOf returns the vector of the values.
func VectorOf(values ...float32) Vector {
	v := make(Vector, 0, DimensionBytes*len(values))
	for _, value := range values {
		v = v.append(value)
	}
	return v
}

func (v Vector) append(value float32) Vector {
	return binary.LittleEndian.AppendUint32(v, math.Float32bits(value))
}

// Dimensions is the number of the vector's dimensions.
func (v Vector) Dimensions() int { return len(v) / DimensionBytes }

// At is dimension i, from 0.
func (v Vector) At(i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(v[DimensionBytes*i:]))
}

// FirstNotFinite returns the index of the first NaN or infinity, or -1 where there
// is none.
func (v Vector) FirstNotFinite() int {
	// Their exponents, and theirs alone, have all bits set: one more in the
	// lowest of them carries into the sign. Two dimensions are seen at a time.
	const exponent, lowest, sign = 0x7f80_0000, 0x0080_0000, 0x8000_0000
	i := 0
	for ; i+2*DimensionBytes <= len(v); i += 2 * DimensionBytes {
		const both = 1<<32 + 1
		if (binary.LittleEndian.Uint64(v[i:])&(both*exponent)+both*lowest)&(both*sign) != 0 {
			break
		}
	}
	for i /= DimensionBytes; i < v.Dimensions(); i++ {
		if math.Float32bits(v.At(i))&exponent == exponent {
			return i
		}
	}
	return -1
}
