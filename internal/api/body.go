package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"

	"github.com/sluicehq/sluice/internal/event"
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

// splitItems appends the items of a batch to items: the elements of a JSON
// array where the body begins with "[", else the lines that are not blank. The
// elements of an array are told apart by its commas only; the array is valid
// JSON exactly when each element is.
func splitItems(items [][]byte, body []byte, itemsMax int) (_ [][]byte, array bool, _ error) {
	body = bytes.TrimLeft(event.TrimByteOrderMark(body), " \t\r\n")
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
		// Files that were put together have a byte order mark each.
		if line = bytes.Trim(event.TrimByteOrderMark(line), " \t\r"); len(line) == 0 {
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
