package body_test

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"testing"

	"github.com/sluicehq/sluice/internal/api/body"
)

func checkBase64(t *testing.T, text []byte) {
	t.Helper()
	want, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if bytes.ContainsAny(text, "\r\n") {
		err = base64.CorruptInputError(0)
	}
	got, ok := body.DecodeBase64(text)
	if ok != (err == nil) {
		t.Fatalf("%q: taken is %t, error %v", text, ok, err)
	}
	if ok && !bytes.Equal(got, want) {
		t.Fatalf("%q: %x, want %x", text, got, want)
	}
}

// A wrong byte is found wherever it is, and whatever the length.
func TestBase64(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for n := range 200 {
		raw := make([]byte, n)
		for i := range raw {
			raw[i] = byte(rng.Uint32())
		}
		text := base64.StdEncoding.AppendEncode(nil, raw)
		checkBase64(t, text)
		for i := range text {
			for _, c := range []byte("=A/+-_ \n\r\x00\x80\xff") {
				broken := bytes.Clone(text)
				broken[i] = c
				checkBase64(t, broken)
			}
			checkBase64(t, text[:i])
		}
	}
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("AAAA"))
	f.Add(bytes.Repeat([]byte("abc+/d=="), 9))
	f.Fuzz(checkBase64)
}
