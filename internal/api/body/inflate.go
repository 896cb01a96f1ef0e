package body

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// zstdWindows are the windows, in bytes, that decoders are kept for. The last
// is what RFC 8878 asks every decoder to take, and what every level of zstd up
// to 19 stays within.
//
//nolint:gochecknoglobals // never written
var zstdWindows = [...]uint64{128 << 10, 1 << 20, 8 << 20}

// InflaterBytes is what an inflater holds at most, with a window of 8 MiB, besides
// what it makes.
const InflaterBytes = 11 << 20

// inflater undoes content encodings, one body at a time. It keeps its memory, and
// is not in a [sync.Pool], with which each processor would come to have its own.
type inflater struct {
	packed bytes.Reader
	gzip   gzip.Reader
	zstd   [len(zstdWindows)]*zstd.Decoder
}

// Inflaters are the inflaters that are free. There should be few, because a few
// hundred bytes can become a batch of the largest size: all bodies that came at once
// would hold that much each before they turn out to be too long.
type Inflaters chan *inflater

// NewInflaters returns n inflaters.
func NewInflaters(n int) Inflaters {
	free := make(Inflaters, n)
	for range n {
		free <- new(inflater)
	}
	return free
}

// take waits for an inflater, and returns nil where none comes in time.
func (free Inflaters) take(ctx context.Context, timeout time.Duration) *inflater {
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

// open returns a decoder of the body. It is valid until the next call.
func (i *inflater) open(packed []byte, isZstd bool) (io.Reader, error) {
	i.packed.Reset(packed)
	if !isZstd {
		if err := i.gzip.Reset(&i.packed); err != nil {
			return nil, decodeError(err)
		}
		return &i.gzip, nil
	}
	class, err := zstdClass(packed)
	if err != nil {
		return nil, err
	}
	if i.zstd[class] == nil {
		// The caller's goroutine decodes; there are no others.
		i.zstd[class], err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindows[class]))
		if err != nil {
			return nil, err
		}
	}
	if err := i.zstd[class].Reset(&i.packed); err != nil {
		return nil, decodeError(err)
	}
	return i.zstd[class], nil
}

// zstdClass is the index of the smallest window that does for the body's first
// frame. A later frame must do with it too.
func zstdClass(packed []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(packed); err != nil {
		return 0, encodingError("the body is not valid zstd")
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
	return 0, encodingError("the zstd frame needs a window of more than 8 MiB")
}

// decodeError is the error of a decoder's failure. The whole body is there, so that
// the body is at fault.
func decodeError(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return encodingError("a zstd frame needs a larger window than the first one")
	}
	return encodingError("the body is not valid in its Content-Encoding")
}
