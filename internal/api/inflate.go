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
	// and of batches are inflated at once.
	inflatersSingle = 2
	inflatersBatch  = 1
	// inflaterBytes is what an inflater holds at most, with a window of 8 MiB. It
	// stays with it. What it makes is in the budget of bodies.
	inflaterBytes = 11 << 20
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
	packed, err := s.fill(x, requestBody{x}, x.r.ContentLength, bytesMax)
	if err != nil {
		return nil, err
	}
	i := free.take(x.r.Context(), s.cfg.InflateTimeout)
	if i == nil {
		return nil, overloaded()
	}
	defer func() { free <- i }()
	defer i.packed.Reset(nil) // lets go of the request
	decoder, err := i.open(packed, isZstd)
	if err != nil {
		return nil, err
	}
	from := x.body
	defer s.buffers.put(from)
	x.body = nil
	return s.fill(x, inflated{decoder}, -1, bytesMax)
}

// inflated makes problems of a decoder's errors.
type inflated struct{ io.Reader }

func (r inflated) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = inflateProblem(err)
	}
	return n, err
}

// open returns a decoder of the body. It is good until the next one.
func (i *inflater) open(packed []byte, isZstd bool) (io.Reader, error) {
	i.packed.Reset(packed)
	if !isZstd {
		if err := i.gzip.Reset(&i.packed); err != nil {
			return nil, inflateProblem(err)
		}
		return &i.gzip, nil
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
	return i.zstd[class], nil
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
