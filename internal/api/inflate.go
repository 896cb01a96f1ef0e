package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// inflatersSingle and inflatersBatch are how many bodies of single writes
	// and of batches are inflated at once. At most, with a window of 8 MiB, the
	// former hold 11 MiB each and the latter 26 MiB.
	inflatersSingle = 2
	inflatersBatch  = 1
	// inflatedBytes is the room that an inflater begins with.
	inflatedBytes = 64 << 10
)

// zstdWindows are the windows, in bytes, that decoders are kept for. The last
// is what RFC 8878 asks every decoder to take, and what every level of zstd up
// to 19 stays within.
//
//nolint:gochecknoglobals // never written
var zstdWindows = [...]uint64{128 << 10, 1 << 20, 8 << 20}

// inflater undoes content encodings, one body at a time. Its memory stays with
// it: from a [sync.Pool], each processor would come to have its own.
type inflater struct {
	packed bytes.Reader
	gzip   gzip.Reader
	zstd   [len(zstdWindows)]*zstd.Decoder
	body   []byte
}

// inflaters are those that are free. There are few, because a few hundred bytes
// can become a batch of the largest size: all that came at once would hold that
// much each before they turn out to be too long.
type inflaters chan *inflater

func newInflaters(n int) inflaters {
	free := make(inflaters, n)
	for range n {
		free <- new(inflater)
	}
	return free
}

// take waits for an inflater, and returns nil where none comes in time.
func (free inflaters) take(ctx context.Context, timeout time.Duration) *inflater {
	select {
	case i := <-free:
		return i
	default:
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case i := <-free:
		return i
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// readCompressed reads the whole body before it inflates it. What a request
// holds while it waits for its client has then arrived, whatever window the
// body says that it needs; and no inflater waits for a client.
func (s *Server) readCompressed(x *exchange, isZstd bool, bytesMax int, free inflaters) ([]byte, error) {
	packed, err := s.fill(x, x.r.Body, x.r.ContentLength, bytesMax)
	if err != nil {
		return nil, err
	}
	i := free.take(x.r.Context(), s.cfg.InflateTimeout)
	if i == nil {
		return nil, overloaded()
	}
	defer func() { free <- i }()
	body, err := i.inflate(packed, isZstd, bytesMax)
	if err != nil {
		return nil, err
	}
	s.buffers.put(x.body)
	buf := x.hold(s.buffers.get(len(body)))
	if buf == nil {
		return nil, overloaded()
	}
	buf.b = append(buf.b, body...)
	return buf.b, nil
}

// inflate returns the inflated body. It is good until the next one.
func (i *inflater) inflate(packed []byte, isZstd bool, bytesMax int) ([]byte, error) {
	i.packed.Reset(packed)
	defer i.packed.Reset(nil) // lets go of the request
	if !isZstd {
		if err := i.gzip.Reset(&i.packed); err != nil {
			return nil, inflateProblem(err)
		}
		return i.read(&i.gzip, bytesMax)
	}
	class, err := zstdClass(packed)
	if err != nil {
		return nil, err
	}
	if i.zstd[class] == nil {
		// Of one goroutine, the caller's.
		i.zstd[class], err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindows[class]))
		if err != nil {
			return nil, err
		}
	}
	if err := i.zstd[class].Reset(&i.packed); err != nil {
		return nil, inflateProblem(err)
	}
	return i.read(i.zstd[class], bytesMax)
}

// read reads the decoder to its end, or to where the body is too long.
func (i *inflater) read(decoder io.Reader, bytesMax int) ([]byte, error) {
	i.body = i.body[:0]
	for {
		if n := cap(i.body); len(i.body) == n {
			// One byte beyond the limit shows that there is more.
			i.body = append(make([]byte, 0, min(max(4*n, inflatedBytes), bytesMax+1)), i.body...)
		}
		n, err := decoder.Read(i.body[len(i.body):cap(i.body)])
		i.body = i.body[:len(i.body)+n]
		switch {
		case len(i.body) > bytesMax:
			return nil, tooLarge(bytesMax)
		case err == io.EOF:
			return i.body, nil
		case err != nil:
			return nil, inflateProblem(err)
		}
	}
}

// zstdClass is the index of the smallest window that does for the body's first
// frame. A later frame must do with it too.
func zstdClass(packed []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return 0, badRequest("the body is not valid zstd")
	}
	if h.Skippable {
		return len(zstdWindows) - 1, nil // what comes after it is not known
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	for class, size := range zstdWindows {
		if window <= size {
			return class, nil
		}
	}
	return 0, badRequest("the zstd frame needs a window of more than 8 MiB")
}

// inflateProblem is what a decoder's failure is answered with. The whole body
// is there, so that it is the body's fault.
func inflateProblem(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return badRequest("a zstd frame needs a larger window than the first one")
	}
	return badRequest("the body is not valid in its Content-Encoding")
}
