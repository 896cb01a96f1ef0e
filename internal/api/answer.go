package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	// readFactor is how much memory a read takes, at most, for each byte of its
	// result: the block as it was sent, and what is made of it.
	readFactor = 2
	// sendBytes is what a piece of an answer takes on its way.
	sendBytes = 2 * event.JSONPieceBytes
	// eventBytesFirst is what a read of one event may take at first.
	eventBytesFirst = 128 << 10
	// pageBytesFirst is the same for the first part of a page. pageBytesMost is
	// what a part grows to for a reader that takes it fast, and pageBytesLeast what
	// it shrinks to for one that is slow, and is at first where memory is short.
	pageBytesFirst = 1 << 20
	pageBytesMost  = 2 << 20
	pageBytesLeast = 128 << 10
	// eventBytesGuess is what an event is taken for before any was read.
	eventBytesGuess = 4 << 10
	// partTime is how long a reader should be busy with a part of a page. The
	// part is in memory for as long.
	partTime = 2 * time.Second
	// largeTries bounds how often a read is tried anew because its event turned
	// out to be larger.
	largeTries = 4
)

// errGone is why an answer is broken off whose reader has gone, or takes it
// slower than Config.AnswerBytesPerSecondMin.
var errGone = errors.New("the reader has gone or is too slow")

// errNoRoom says that the memory for answers is used up.
var errNoRoom = &problem{
	status: http.StatusServiceUnavailable, code: CodeOverloaded,
	detail: "too much is being read; ask again later",
}

// spill sends b, which x.out may have grown to, and returns an empty buffer.
// It is the spill function of [event.Event.SpillJSON].
func (x *exchange) spill(b []byte) ([]byte, error) {
	x.out = b
	err := x.send()
	return x.out, err
}

// full sends x.out where that is enough for a piece.
func (x *exchange) full() error {
	if len(x.out) < event.JSONPieceBytes {
		return nil
	}
	return x.send()
}

// send sends x.out as the next piece of a JSON answer, after the headers if it
// is the first. The answer may fail after that; then it must be broken off.
func (x *exchange) send() error {
	if x.status == 0 {
		x.head(http.StatusOK, headerJSON)
		x.w.WriteHeader(http.StatusOK)
		// Nothing shows a client of HTTP/1.0 that a piece is not the last one but the
		// broken JSON.
	}
	begun := time.Now()
	x.sent += len(x.out)
	// The bound is on the average of the whole answer: a steady reader takes its
	// time by its own buffers, not by our pieces.
	due := x.s.cfg.AnswerStallTimeout + time.Duration(float64(x.sent)/float64(x.s.cfg.AnswerBytesPerSecondMin)*float64(time.Second)) - x.sending
	_ = x.control().SetWriteDeadline(begun.Add(max(due, 0))) // servers without deadlines are those of tests
	_, err := x.w.Write(x.out)
	x.sending += time.Since(begun)
	x.out = x.out[:0]
	if err != nil {
		reason := "gone"
		if errors.Is(err, os.ErrDeadlineExceeded) {
			reason = "slow"
		}
		x.s.metrics.cut.WithLabelValues(reason).Inc()
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

func (x *exchange) control() *http.ResponseController { return http.NewResponseController(x.w) }

// end sends the rest of a JSON answer, or all of it where it is small.
func (x *exchange) end() error {
	if x.status == 0 {
		x.reply(http.StatusOK, headerJSON)
		return nil
	}
	return x.send()
}

// waitFor reserves n bytes for the use until release, or all that there are for
// it: one request alone may have more.
func (x *exchange) waitFor(u body.Use, n int64) error {
	share := &x.s.budget[u]
	n = min(n, share.Max())
	if !share.Wait(x.r.Context(), n, x.s.cfg.AnswerWait) {
		return errNoRoom
	}
	x.held[u] += n
	return nil
}

// keep gives back what x holds for the use beyond n bytes.
func (x *exchange) keep(u body.Use, n int64) {
	if back := x.held[u] - n; back > 0 {
		x.s.budget[u].Give(back)
		x.held[u] = n
	}
}

// readEvents calls read with the memory that it may take, and returns what it
// took. An event that takes more is read again with what it takes. Until x.keep,
// x holds what was read and what it is sent through.
func (x *exchange) readEvents(bytesMax int, read func(ctx context.Context, bytesMax int) (bytes int, err error)) error {
	for try := 1; ; try++ {
		if err := x.waitFor(body.ForEvents, readFactor*int64(bytesMax)+sendBytes); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(x.r.Context(), x.s.cfg.QueryTimeout)
		bytes, err := read(ctx, bytesMax)
		cancel()
		var large *event.LargeError
		if !errors.As(err, &large) || try == largeTries {
			x.keep(body.ForEvents, int64(bytes)+sendBytes)
			return storageProblem(err)
		}
		x.keep(body.ForEvents, 0) // or those that wait for more would wait for each other
		bytesMax = large.Bytes + large.Bytes/8
	}
}
