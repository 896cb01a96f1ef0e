package api

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
)

const (
	typeJSON    = "application/json"
	typeNDJSON  = "application/x-ndjson"
	typePatch   = "application/merge-patch+json"
	typeProblem = "application/problem+json"
)

// readBody reads the request's body and undoes its encoding by one of the
// inflaters. The bytes live until the end of the request.
func (s *Server) readBody(x *exchange, bytesMax int, free inflaters) ([]byte, error) {
	if x.r.ContentLength > int64(bytesMax) {
		return nil, tooLarge(bytesMax)
	}
	encoding := ""
	if h := x.r.Header["Content-Encoding"]; len(h) > 0 {
		encoding = strings.ToLower(strings.Join(h, ","))
	}
	switch encoding {
	case "", "identity":
		return s.fill(x, requestBody{x}, x.r.ContentLength, bytesMax)
	case "gzip", "x-gzip", "zstd":
		return s.readCompressed(x, encoding == "zstd", bytesMax, free)
	}
	x.w.Header().Set("Accept-Encoding", "gzip, zstd")
	return nil, &problem{
		status: http.StatusUnsupportedMediaType, code: CodeUnsupportedEncoding,
		detail: "Content-Encoding must be gzip, zstd or absent",
	}
}

// requestBody reads the request's body and notes when there is no more of it.
type requestBody struct{ x *exchange }

func (b requestBody) Read(p []byte) (int, error) {
	n, err := b.x.r.Body.Read(p)
	b.x.bodyEnded = err != nil
	return n, err
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

// checkContentType refuses bodies that say they are something else than JSON or,
// where there is one, the other type. A body without the header is taken for what
// the resource reads.
func checkContentType(r *http.Request, other string) error {
	h := r.Header["Content-Type"]
	if len(h) == 0 || len(h) == 1 && h[0] == typeJSON {
		return nil
	}
	mediaType, parameters, err := mime.ParseMediaType(h[0])
	known := mediaType == typeJSON || other != "" && mediaType == other
	switch strings.ToLower(parameters["charset"]) {
	case "", "utf-8", "utf8":
	default:
		known = false
	}
	if err != nil || len(h) > 1 || !known {
		detail := "Content-Type must be " + typeJSON
		if other != "" {
			detail += " or " + other
		}
		detail += ", with no charset but utf-8"
		return &problem{status: http.StatusUnsupportedMediaType, code: CodeUnsupportedMediaType, detail: detail}
	}
	return nil
}
