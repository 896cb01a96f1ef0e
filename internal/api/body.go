package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	typeJSON    = "application/json"
	typeNDJSON  = "application/x-ndjson"
	typeProblem = "application/problem+json"

	// gzipBytes is about what one gzip reader holds.
	gzipBytes = 48 << 10
	// zstdBytes is about what one zstd decoder holds beside its window.
	zstdBytes = 512 << 10
)

// zstdWindows are the windows, in bytes, that decoders are kept for. The last
// is what RFC 8878 asks every decoder to take, and what every level of zstd up
// to 19 stays within.
//
//nolint:gochecknoglobals // never written
var zstdWindows = [...]int64{128 << 10, 1 << 20, 8 << 20}

// inflater keeps the decoders of content encodings.
type inflater struct {
	gzip sync.Pool
	zstd [len(zstdWindows)]sync.Pool
}

// readBody reads the request's body and undoes its encoding. The bytes live
// until the end of the request.
func (s *Server) readBody(x *exchange, bytesMax int) ([]byte, error) {
	if x.r.ContentLength > int64(bytesMax) {
		return nil, tooLarge(bytesMax)
	}
	encoding := ""
	if h := x.r.Header["Content-Encoding"]; len(h) > 0 {
		encoding = strings.ToLower(strings.Join(h, ","))
	}
	switch encoding {
	case "", "identity":
		return s.fill(x, x.r.Body, x.r.ContentLength, bytesMax)
	case "gzip", "x-gzip":
		return s.readGzip(x, bytesMax)
	case "zstd":
		return s.readZstd(x, bytesMax)
	}
	x.w.Header().Set("Accept-Encoding", "gzip, zstd")
	return nil, &problem{
		status: http.StatusUnsupportedMediaType, code: CodeUnsupportedEncoding,
		detail: "Content-Encoding must be gzip, zstd or absent",
	}
}

// fill reads src to its end into a buffer that x holds. Memory grows with what
// has arrived, not with what was announced, so that a slow client cannot hold
// more than four times what it sent. expected is the length if known, else -1.
func (s *Server) fill(x *exchange, src io.Reader, expected int64, bytesMax int) ([]byte, error) {
	buf := x.hold(s.buffers.get(smallestBytes))
	if buf == nil {
		return nil, overloaded()
	}
	for {
		if len(buf.b) == cap(buf.b) {
			size := min(4*cap(buf.b), bytesMax+1)
			if expected >= int64(len(buf.b)) {
				size = min(size, int(expected)+1)
			}
			if buf = x.regrow(&s.buffers, max(size, len(buf.b)+1)); buf == nil {
				return nil, overloaded()
			}
		}
		n, err := src.Read(buf.b[len(buf.b):cap(buf.b)])
		buf.b = buf.b[:len(buf.b)+n]
		if len(buf.b) > bytesMax {
			return nil, tooLarge(bytesMax)
		}
		if err == io.EOF {
			return buf.b, nil
		}
		if err != nil {
			return nil, readProblem(err)
		}
	}
}

func (s *Server) readGzip(x *exchange, bytesMax int) ([]byte, error) {
	if !x.reserve(&s.buffers.budget, gzipBytes) {
		return nil, overloaded()
	}
	src := &limitReader{r: x.r.Body, left: bytesMax, max: bytesMax}
	zr, ok := s.inflate.gzip.Get().(*gzip.Reader)
	if !ok {
		zr = new(gzip.Reader)
	}
	defer s.inflate.gzip.Put(zr)
	if err := zr.Reset(src); err != nil {
		return nil, src.problem()
	}
	return s.fill(x, &inflated{r: zr, src: src}, -1, bytesMax)
}

// readZstd takes the memory that the frame's window needs from the budget
// before it decodes anything.
func (s *Server) readZstd(x *exchange, bytesMax int) ([]byte, error) {
	src := &limitReader{r: x.r.Body, left: bytesMax, max: bytesMax}
	head := make([]byte, zstd.HeaderMaxSize)
	n, err := io.ReadFull(src, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, src.problem()
	}
	head = head[:n]
	class, err := zstdClass(head)
	if err != nil {
		return nil, err
	}
	if !x.reserve(&s.buffers.budget, zstdBytes+zstdWindows[class]) {
		return nil, overloaded()
	}
	pool := &s.inflate.zstd[class]
	zr, ok := pool.Get().(*zstd.Decoder)
	if !ok {
		// Of one goroutine, the caller's, so that one the pool drops is just garbage.
		zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(uint64(zstdWindows[class])))
		if err != nil {
			return nil, err
		}
	}
	defer func() {
		if zr.Reset(nil) == nil { // lets go of the request
			pool.Put(zr)
		}
	}()
	if err := zr.Reset(io.MultiReader(bytes.NewReader(head), src)); err != nil {
		return nil, src.problem()
	}
	return s.fill(x, &inflated{r: zr, src: src}, -1, bytesMax)
}

// zstdClass is the index of the smallest window that does for the frame. A
// later frame of the same body must do with it too.
func zstdClass(head []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil {
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
		if window <= uint64(size) {
			return class, nil
		}
	}
	return 0, badRequest("the zstd frame needs a window of more than 8 MiB")
}

// inflated reads through a decoder, and tells apart whether the data or the
// connection broke.
type inflated struct {
	r   io.Reader
	src *limitReader
}

func (i *inflated) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return n, badRequest("a zstd frame needs a larger window than the first one")
	}
	return n, i.src.problem()
}

// limitReader fails once more than left bytes were read: a body is never longer
// compressed than inflated, but for one that keeps the decoder busy with empty
// blocks. It remembers errors of the connection, which a decoder may disguise.
type limitReader struct {
	r         io.Reader
	left, max int
	err       error
}

var errTooLong = errors.New("compressed body is too long")

func (l *limitReader) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.r.Read(p[:min(len(p), l.left+1)])
	if n > l.left {
		l.err = errTooLong
		return 0, l.err
	}
	l.left -= n
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

// problem is what a decompressor's failure is answered with.
func (l *limitReader) problem() error {
	switch {
	case l.err == nil:
		return badRequest("the body is not valid in its Content-Encoding")
	case errors.Is(l.err, errTooLong):
		return tooLarge(l.max)
	}
	return readProblem(l.err)
}

// readProblem says what went wrong while a body was read.
func readProblem(err error) error {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &problem{
			status: http.StatusRequestTimeout, code: CodeRequestTimeout,
			detail: "the body did not arrive in time", closes: true,
		}
	}
	p = badRequest("the body broke off")
	p.closes = true
	return p
}

func overloaded() error {
	return &problem{
		status: http.StatusServiceUnavailable, code: CodeOverloaded,
		detail: "too many bytes are under way; send it again later", closes: true,
	}
}

// checkContentType refuses bodies that say they are something else. A body
// without the header is taken for what the resource reads.
func checkContentType(r *http.Request, ndjson bool) error {
	h := r.Header["Content-Type"]
	if len(h) == 0 || len(h) == 1 && h[0] == typeJSON {
		return nil
	}
	mediaType, parameters, err := mime.ParseMediaType(h[0])
	known := mediaType == typeJSON || ndjson && mediaType == typeNDJSON
	charset := parameters["charset"]
	if err != nil || len(h) > 1 || !known || charset != "" && !strings.EqualFold(charset, "utf-8") {
		detail := "Content-Type must be " + typeJSON
		if ndjson {
			detail += " or " + typeNDJSON
		}
		return &problem{status: http.StatusUnsupportedMediaType, code: CodeUnsupportedMediaType, detail: detail}
	}
	return nil
}

// splitItems appends the items of a batch to items: the elements of a JSON
// array where the body begins with "[", else the lines that are not blank. The
// elements of an array are told apart by its commas only; the array is valid
// JSON exactly when each element is.
func splitItems(items [][]byte, body []byte, itemsMax int) (_ [][]byte, array bool, _ error) {
	body = bytes.TrimLeft(body, " \t\r\n")
	array = len(body) > 0 && body[0] == '['
	if array {
		items, err := splitArray(items, body, itemsMax)
		return items, true, err
	}
	for len(body) > 0 {
		line := body
		if i := bytes.IndexByte(body, '\n'); i >= 0 {
			line, body = body[:i], body[i+1:]
		} else {
			body = nil
		}
		if line = bytes.Trim(line, " \t\r"); len(line) == 0 {
			continue
		}
		if len(items) == itemsMax {
			return items, false, tooManyItems(itemsMax)
		}
		items = append(items, line)
	}
	return items, false, nil
}

func splitArray(items [][]byte, body []byte, itemsMax int) ([][]byte, error) {
	broken := event.Errorf(event.CodeInvalidJSON, "", "the body is not one valid JSON array")
	depth, start := 0, 1
	end := -1
scan:
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '"':
			// Skip the string; a quote after an odd run of backslashes is in it.
			for i++; ; i++ {
				n := bytes.IndexByte(body[min(i, len(body)):], '"')
				if n < 0 {
					return items, broken
				}
				from := i
				i += n
				slashes := 0
				for j := i - 1; j >= from && body[j] == '\\'; j-- {
					slashes++
				}
				if slashes%2 == 0 {
					break
				}
			}
		case '[', '{':
			depth++
		case ']', '}':
			if depth--; depth == 0 {
				end = i
				break scan
			}
		case ',':
			if depth != 1 {
				continue
			}
			if len(items) == itemsMax {
				return items, tooManyItems(itemsMax)
			}
			items = append(items, bytes.Trim(body[start:i], " \t\r\n"))
			start = i + 1
		}
	}
	if end < 0 || body[end] != ']' || len(bytes.Trim(body[end+1:], " \t\r\n")) > 0 {
		return items, broken
	}
	last := bytes.Trim(body[start:end], " \t\r\n")
	if len(last) == 0 && len(items) == 0 {
		return items, nil
	}
	if len(items) == itemsMax {
		return items, tooManyItems(itemsMax)
	}
	return append(items, last), nil
}

func tooManyItems(itemsMax int) error {
	return event.Errorf(event.CodeTooLarge, "", "the batch has more than %d items", itemsMax)
}
