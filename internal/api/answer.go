package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	// readFactor is the most memory that a read takes for each byte of its result:
	// the block that the database sent, and the events made of it.
	readFactor = 2
	// sendBytes is the memory of a piece of an answer that is being sent.
	sendBytes = 2 * event.JSONPieceBytes
	// eventBytesFirst is the memory that the first try to read an event may take.
	eventBytesFirst = 128 << 10
	// pageBytesFirst is the same for the first part of a page. pageBytesMost is
	// what a part grows to for a reader that takes it fast, and pageBytesLeast what
	// it shrinks to for one that is slow, and is at first where memory is short.
	pageBytesFirst = 1 << 20
	pageBytesMost  = 2 << 20
	pageBytesLeast = 128 << 10
	// eventBytesGuess is the assumed size of an event before one was read.
	eventBytesGuess = 4 << 10
	// partTime is how long a reader should be busy with a part of a page. The part
	// stays in memory for that time.
	partTime = 2 * time.Second
	// largeTries bounds how often an event is read again because it was larger than
	// the memory of the try before.
	largeTries = 4
)

// errGone breaks an answer off: its reader has gone, or reads slower than
// Config.AnswerBytesPerSecondMin.
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

// full sends x.out if it has grown to a whole piece.
func (x *exchange) full() error {
	if len(x.out) < event.JSONPieceBytes {
		return nil
	}
	return x.send()
}

// answerType is the Content-Type of an answer that is no problem.
func (x *exchange) answerType() []string {
	if x.contentType != nil {
		return x.contentType
	}
	return headerJSON
}

// send sends x.out as the next piece of an answer. The first piece sends the
// headers too. If the answer fails after that, it must be broken off.
func (x *exchange) send() error {
	if x.status == 0 {
		x.head(http.StatusOK, x.answerType())
		x.w.WriteHeader(http.StatusOK)
		// HTTP/1.0 has no chunks. Only broken JSON shows such a client that the answer
		// is not whole.
	}
	begun := time.Now()
	x.sent += len(x.out)
	// The bound is on the average of the whole answer, because a steady reader empties
	// its own buffers in larger steps than our pieces.
	due := x.s.cfg.AnswerStallTimeout + time.Duration(float64(x.sent)/float64(x.s.cfg.AnswerBytesPerSecondMin)*float64(time.Second)) - x.sending
	if x.steady {
		due = min(due, x.s.cfg.AnswerStallTimeout)
	}
	_ = x.control().SetWriteDeadline(begun.Add(max(due, 0))) // servers without deadlines are those of tests
	_, err := x.w.Write(x.out)
	x.sending += time.Since(begun)
	x.out = x.out[:0]
	if err != nil {
		reason := "gone"
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			reason = "slow"
		case errors.Is(err, io.ErrClosedPipe):
			reason = "enough" // for an agent: see inner
		}
		x.s.metrics.cut.WithLabelValues(reason).Inc()
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

func (x *exchange) control() *http.ResponseController { return http.NewResponseController(x.w) }

// end sends the rest of an answer, or the whole answer if it is small.
func (x *exchange) end() error {
	if x.status == 0 {
		x.reply(http.StatusOK, x.answerType())
		return nil
	}
	return x.send()
}

// waitFor reserves n bytes of the use's share until release. A request that needs
// more than the whole share gets the whole share.
func (x *exchange) waitFor(u body.Use, n int64) error {
	return x.waitAtMost(u, n, x.s.cfg.AnswerWait)
}

// waitAtMost is [exchange.waitFor] with another time than Config.AnswerWait.
func (x *exchange) waitAtMost(u body.Use, n int64, most time.Duration) error {
	share := &x.s.budget[u]
	n = min(n, share.Max())
	if !share.Wait(x.r.Context(), n, most) {
		return errNoRoom
	}
	x.held[u] += n
	return nil
}

// keep gives back the bytes above n that x holds for the use.
func (x *exchange) keep(u body.Use, n int64) {
	if back := x.held[u] - n; back > 0 {
		x.s.budget[u].Give(back)
		x.held[u] = n
	}
}

// readEvents calls read with a bound of memory, and returns the memory that the
// events took. If an event takes more, it is read again with a bound that is large
// enough. x holds the memory of the events, and of sending them, until x.keep.
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
