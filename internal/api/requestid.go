package api

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"net/http"
	"sync/atomic"
)

// headerRequestID names a request, in the answer and in the lines of the log
// that are about it. It is written as net/http writes header names.
const headerRequestID = "X-Request-Id"

// requestIDBytesMax bounds the request id that a client sends.
const requestIDBytesMax = 128

// requestIDs makes ids for requests. They are unique within a process and, but
// for a chance of one in 2^64, between two.
type requestIDs struct {
	prefix [8]byte
	count  atomic.Uint64
}

func newRequestIDs() *requestIDs {
	ids := new(requestIDs)
	_, _ = rand.Read(ids.prefix[:]) // never fails
	return ids
}

// next returns 32 hexadecimal digits: those of the process and the count.
func (ids *requestIDs) next() string {
	var id [16]byte
	copy(id[:], ids.prefix[:])
	binary.BigEndian.PutUint64(id[8:], ids.count.Add(1))
	var text [32]byte
	hex.Encode(text[:], id[:])
	return string(text[:])
}

// withRequestID gives every answer a request id: the one that the client or a
// proxy sent, or a new one where it sent none or one that is not fit for a log.
func withRequestID(next http.Handler) http.Handler {
	ids := newRequestIDs()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value := r.Header[headerRequestID]
		if len(value) != 1 || !isRequestID(value[0]) {
			value = []string{ids.next()}
		}
		w.Header()[headerRequestID] = value
		next.ServeHTTP(w, r)
	})
}

// log returns a logger whose lines have the id that withRequestID gave the request.
func (x *exchange) log() *slog.Logger {
	return x.s.log.With(slog.String("request_id", x.w.Header().Get(headerRequestID)))
}

// isRequestID reports whether a client's request id is short and has letters,
// digits and -._:/+=@ alone, so that it breaks no log.
func isRequestID(id string) bool {
	if id == "" || len(id) > requestIDBytesMax {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '.', c == '_', c == ':', c == '/', c == '+', c == '=', c == '@':
		default:
			return false
		}
	}
	return true
}
