package body

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Errors of a [Reader].
var (
	// ErrOverloaded says that the bodies that are under way use all the memory that
	// they may, or that too many wait to be inflated.
	ErrOverloaded = errors.New("too many bytes are under way")
	// ErrTooLarge says that a body is longer than it may be.
	ErrTooLarge = errors.New("the body is too long")
)

// EncodingError says that a body is not valid in its Content-Encoding. Its text is
// for the caller.
type EncodingError struct{ detail string }

func (e *EncodingError) Error() string { return e.detail }

func encodingError(detail string) error { return &EncodingError{detail} }

// Encoding is a Content-Encoding of a body.
type Encoding uint8

// The encodings.
const (
	// Identity: the body is as it is.
	Identity Encoding = iota
	Gzip
	Zstd
)

// A Reader reads the bodies of requests into memory that a share of the budget
// bounds. Its methods may be called concurrently.
type Reader struct {
	buffers buffers
	// inflateTimeout bounds how long a body waits for an inflater.
	inflateTimeout time.Duration
}

// NewReader returns a reader whose buffers the share bounds. A compressed body waits
// for an inflater up to the timeout.
func NewReader(share *Share, inflateTimeout time.Duration) *Reader {
	return &Reader{buffers: buffers{share: share}, inflateTimeout: inflateTimeout}
}

// Bytes are the contents of the buffer, which must not be used after
// [Reader.Release]. A nil buffer has none.
func (b *Buffer) Bytes() []byte {
	if b == nil {
		return nil
	}
	return b.b
}

// Release takes a buffer back. nil is fine.
func (r *Reader) Release(buf *Buffer) { r.buffers.put(buf) }

// Read reads src to its end into a buffer, which the caller must release. Memory
// grows with what has arrived, not with what was announced, so that a slow client
// cannot hold more than four times what it sent. expected is the length if known,
// otherwise -1.
//
// The error is [ErrOverloaded], [ErrTooLarge], or wraps that of src.
func (r *Reader) Read(src io.Reader, expected int64, bytesMax int) (*Buffer, error) {
	buf := r.buffers.get(smallestBytes)
	if buf == nil {
		return nil, ErrOverloaded
	}
	complete := false
	defer func() {
		if !complete {
			r.buffers.put(buf)
		}
	}()
	for {
		if len(buf.b) == cap(buf.b) {
			size := min(4*cap(buf.b), bytesMax+1)
			if expected >= int64(len(buf.b)) {
				size = min(size, int(expected)+1)
			}
			larger := r.buffers.grow(buf, max(size, len(buf.b)+1))
			if larger == nil {
				return nil, ErrOverloaded
			}
			buf = larger
		}
		n, err := src.Read(buf.b[len(buf.b):cap(buf.b)])
		buf.b = buf.b[:len(buf.b)+n]
		if len(buf.b) > bytesMax {
			return nil, ErrTooLarge
		}
		if err == io.EOF {
			complete = true
			return buf, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the body: %w", err)
		}
	}
}

// Inflate undoes the encoding of a body, with one of the free inflaters. It takes
// the packed buffer over, and returns one that the caller must release. A body is
// inflated only when all of it has arrived: what a request holds while it waits for
// its client does not depend on the window that the body says it needs, and no
// inflater waits for a client.
//
// The error is [ErrOverloaded], [ErrTooLarge] or an [*EncodingError].
func (r *Reader) Inflate(ctx context.Context, packed *Buffer, encoding Encoding, bytesMax int, free Inflaters) (*Buffer, error) {
	if encoding == Identity {
		return packed, nil
	}
	defer r.buffers.put(packed)
	i := free.take(ctx, r.inflateTimeout)
	if i == nil {
		return nil, ErrOverloaded
	}
	defer func() { free <- i }()
	defer i.packed.Reset(nil) // lets go of the request
	decoder, err := i.open(packed.b, encoding == Zstd)
	if err != nil {
		return nil, err
	}
	text, err := r.Read(decoder, -1, bytesMax)
	if err != nil && !errors.Is(err, ErrOverloaded) && !errors.Is(err, ErrTooLarge) {
		err = decodeError(err)
	}
	return text, err
}
