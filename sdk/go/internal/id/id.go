// Package id mints the ids of events.
package id

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

const (
	hashBits  = 24
	countBits = 38
)

// Mint composes the id of an event from its conversation, its time in Unix
// microseconds and the low 38 bits of count. The id is a UUIDv8 (RFC 9562 §5.8) in
// lower case. From the most significant bit, it has 48 bits Unix milliseconds,
// version 8, 12 bits microseconds within the millisecond, the variant, 24 bits
// hash of the conversation, and 38 bits count. See [Process.Mint].
func Mint(conversationID string, unixMicros int64, count uint64) string {
	hash := Hash(conversationID) >> (64 - hashBits)
	var id [16]byte
	binary.BigEndian.PutUint64(id[:8], uint64(unixMicros/1000)<<16|8<<12|uint64(unixMicros%1000))
	binary.BigEndian.PutUint64(id[8:], 2<<62|hash<<countBits|count&(1<<countBits-1))

	var text [36]byte
	hex.Encode(text[:], id[:4])
	at := 8
	for i := 4; i < 10; i += 2 {
		text[at] = '-'
		hex.Encode(text[at+1:], id[i:i+2])
		at += 5
	}
	text[at] = '-'
	hex.Encode(text[at+1:], id[10:])
	return string(text[:])
}

const (
	prime1 uint64 = 11400714785074694791
	prime2 uint64 = 14029467366897019727
	prime3 uint64 = 1609587929392839161
	prime4 uint64 = 9650029242287828579
	prime5 uint64 = 2870177450012600261
)

// Hash is XXH64 with seed 0.
func Hash(s string) uint64 {
	length := uint64(len(s))
	h := prime5
	if len(s) >= 32 {
		var seed uint64 // not a constant, because the sums below overflow
		a, b, c, d := seed+prime1+prime2, seed+prime2, seed, seed-prime1
		for ; len(s) >= 32; s = s[32:] {
			a, b = round(a, uint64At(s)), round(b, uint64At(s[8:]))
			c, d = round(c, uint64At(s[16:])), round(d, uint64At(s[24:]))
		}
		h = bits.RotateLeft64(a, 1) + bits.RotateLeft64(b, 7) + bits.RotateLeft64(c, 12) + bits.RotateLeft64(d, 18)
		for _, lane := range [...]uint64{a, b, c, d} {
			h = (h^round(0, lane))*prime1 + prime4
		}
	}
	h += length
	for ; len(s) >= 8; s = s[8:] {
		h = bits.RotateLeft64(h^round(0, uint64At(s)), 27)*prime1 + prime4
	}
	if len(s) >= 4 {
		h = bits.RotateLeft64(h^uint64(uint32At(s))*prime1, 23)*prime2 + prime3
		s = s[4:]
	}
	for i := range len(s) {
		h = bits.RotateLeft64(h^uint64(s[i])*prime5, 11) * prime1
	}
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime3
	return h ^ h>>32
}

func round(lane, input uint64) uint64 {
	return bits.RotateLeft64(lane+input*prime2, 31) * prime1
}

func uint32At(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func uint64At(s string) uint64 {
	return uint64(uint32At(s)) | uint64(uint32At(s[4:]))<<32
}
