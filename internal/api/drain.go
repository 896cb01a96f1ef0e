package api

import (
	"io"
	"net/http"
	"time"
)

const (
	// drainedByServer is the most of a body that net/http reads by itself before
	// it sends an answer, so that the connection can be used again.
	drainedByServer = 256 << 10
	// expectedWait is how long a client that sent "Expect: 100-continue" may take
	// to begin a body that was answered without. Most never send it.
	expectedWait = time.Second
	// stopWait is how long the rest of a body may take once a stop has begun.
	stopWait = time.Second
)

// willDrain decides whether the rest of the request's body is read after the
// answer. Many clients send the whole of a body before they look for an answer;
// if the connection were closed with bytes unread, the kernel would reset it, and
// the answer would be lost.
func (x *exchange) willDrain() bool {
	r := x.r
	if x.bodyEnded || r.Body == nil || r.Body == http.NoBody {
		return false
	}
	closes := r.Close || x.w.Header()["Connection"] != nil
	return closes || x.expectsContinue() || r.ContentLength < 0 || r.ContentLength > drainedByServer
}

func (x *exchange) expectsContinue() bool { return x.r.Header.Get("Expect") != "" }

// drain sends the answer, and reads the rest of the request's body to throw it
// away: up to Config.DrainBytesMax, and for as long as Config.DrainTimeout and
// Config.DrainIdleTimeout allow.
func (s *Server) drain(w http.ResponseWriter, r *http.Request, idle time.Duration) {
	c := http.NewResponseController(w)
	if c.Flush() != nil {
		return
	}
	end := time.Now().Add(s.cfg.DrainTimeout)
	// Servers without deadlines are those of tests.
	rest := readerFunc(func(p []byte) (int, error) {
		now := time.Now()
		select {
		case <-s.draining:
			if stop := now.Add(stopWait); stop.Before(end) {
				end = stop
			}
		default:
		}
		deadline := now.Add(idle)
		if end.Before(deadline) {
			deadline = end
		}
		_ = c.SetReadDeadline(deadline)
		n, err := r.Body.Read(p)
		idle = s.cfg.DrainIdleTimeout
		return n, err
	})
	_, _ = io.Copy(io.Discard, io.LimitReader(rest, s.cfg.DrainBytesMax))
	// net/http would read on.
	_ = c.SetReadDeadline(time.Now())
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
