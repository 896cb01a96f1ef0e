package api

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	typeJSON    = "application/json"
	typeNDJSON  = "application/x-ndjson"
	typePatch   = "application/merge-patch+json"
	typeProblem = "application/problem+json"
)

// writeKind is what one kind of request that writes has of its own.
type writeKind struct {
	// named says that the request names an event, in its path or as the parameter id.
	named bool
	// hasBody says that the writes are in the request's body.
	hasBody bool
	// isBatch says that there may be many writes, so that the body may be larger and
	// take longer.
	isBatch bool
	// otherType is the media type that the body may have beside JSON.
	otherType string
	// parse makes the writes of the body.
	parse func(s *Server, x *exchange, ref event.Ref, text []byte) ([]event.Write, error)
	// answer answers when the log has the writes.
	answer func(s *Server, x *exchange, writes []event.Write, acks []event.Ack, wait wait) error
}

func (s *Server) createEvent(x *exchange) error {
	return s.write(x, &writeKind{hasBody: true, parse: (*Server).parseCreate, answer: (*Server).answerOne})
}

func (s *Server) updateEvent(x *exchange) error {
	return s.write(x, &writeKind{named: true, hasBody: true, parse: (*Server).parseUpdate, answer: (*Server).answerOne})
}

func (s *Server) patchEvent(x *exchange) error {
	return s.write(x, &writeKind{named: true, hasBody: true, otherType: typePatch, parse: (*Server).parsePatch, answer: (*Server).answerOne})
}

func (s *Server) deleteEvent(x *exchange) error {
	return s.write(x, &writeKind{named: true, parse: (*Server).parseDelete, answer: (*Server).answerOne})
}

func (s *Server) writeBatch(x *exchange) error {
	return s.write(x, &writeKind{hasBody: true, isBatch: true, otherType: typeNDJSON, parse: (*Server).parseBatch, answer: (*Server).answerBatch})
}

// write takes a request that writes from its headers to its answer. Each step is a
// function below, in this order.
func (s *Server) write(x *exchange, k *writeKind) error {
	ref, encoding, err := s.admitWrite(x, k)
	if err != nil {
		return err
	}
	if err := s.readBody(x, k); err != nil {
		return err
	}
	if err := s.inflateBody(x, k, encoding); err != nil {
		return err
	}
	writes, err := k.parse(s, x, ref, x.body.Bytes())
	if err != nil {
		return err
	}
	acks, wait := s.produce(x, writes)
	return k.answer(s, x, writes, acks, wait)
}

// admitWrite refuses what the headers and the URL alone show to be wrong. It returns
// the event that the request names, and the encoding of its body.
func (s *Server) admitWrite(x *exchange, k *writeKind) (ref event.Ref, encoding body.Encoding, err error) {
	if k.hasBody {
		if err := checkContentType(x.r, k.otherType); err != nil {
			return ref, encoding, err
		}
	}
	if k.named {
		ref, err = writtenRef(x.r, s.cfg.Now())
	} else {
		err = noParameters(x.r)
	}
	if err != nil || !k.hasBody {
		return ref, encoding, err
	}
	if k.isBatch {
		s.extendDeadlines(x)
	}
	encoding, err = s.bodyEncoding(x, k)
	return ref, encoding, err
}

// bodyEncoding returns the encoding of the body, and refuses a body that says it is too
// large.
func (s *Server) bodyEncoding(x *exchange, k *writeKind) (body.Encoding, error) {
	if bytesMax := s.bodyBytesMax(k); x.r.ContentLength > int64(bytesMax) {
		return body.Identity, tooLarge(bytesMax)
	}
	return contentEncoding(x)
}

// readBody reads the request's body, as it was sent, into memory that x holds.
func (s *Server) readBody(x *exchange, k *writeKind) (err error) {
	if !k.hasBody {
		return nil
	}
	bytesMax := s.bodyBytesMax(k)
	x.body, err = s.bodies.Read(requestBody{x}, x.r.ContentLength, bytesMax)
	return bodyProblem(err, bytesMax)
}

// inflateBody undoes the encoding of the body that x holds.
func (s *Server) inflateBody(x *exchange, k *writeKind, encoding body.Encoding) (err error) {
	inflaters := s.inflateSingle
	if k.isBatch {
		inflaters = s.inflateBatch
	}
	bytesMax := s.bodyBytesMax(k)
	packed := x.body
	x.body = nil // Inflate takes it over
	x.body, err = s.bodies.Inflate(x.r.Context(), packed, encoding, bytesMax, inflaters)
	return bodyProblem(err, bytesMax)
}

func (s *Server) parseCreate(x *exchange, _ event.Ref, text []byte) (_ []event.Write, err error) {
	x.write[0], err = s.parser.ParseCreate(text, s.received())
	return x.write[:], err
}

func (s *Server) parseUpdate(x *exchange, ref event.Ref, text []byte) (_ []event.Write, err error) {
	x.write[0], err = s.parser.ParseUpdate(ref, text)
	return x.write[:], err
}

func (s *Server) parsePatch(x *exchange, ref event.Ref, text []byte) (_ []event.Write, err error) {
	x.write[0], err = s.parser.ParsePatch(ref, text)
	return x.write[:], err
}

func (s *Server) parseDelete(x *exchange, ref event.Ref, _ []byte) ([]event.Write, error) {
	x.write[0] = event.NewDelete(ref)
	return x.write[:], nil
}

// wait is how long a request prefers to wait until its writes are applied.
type wait struct {
	// preferred says that the request prefers to wait at all.
	preferred bool
	most      time.Duration
	// mark is [Applied.Mark] before the writes: their refusals come after it.
	mark int64
}

// produce writes to the log, and waits for its acknowledgements.
func (s *Server) produce(x *exchange, writes []event.Write) ([]event.Ack, wait) {
	var w wait
	w.most, w.preferred = s.preferredWait(x.r.Header)
	if len(writes) == 0 {
		return nil, wait{}
	}
	if w.preferred {
		w.mark = s.ports.Applied.Mark()
	}
	acks := s.ports.Log.Produce(x.r.Context(), writes)
	x.releaseBody() // the log has a copy
	return acks, w
}

// answerOne answers a request with one write, after it was applied where the request
// prefers to wait for that.
func (s *Server) answerOne(x *exchange, writes []event.Write, acks []event.Ack, wait wait) error {
	w, ack := &writes[0], &acks[0]
	if ack.Err != nil {
		return ack.Err
	}
	s.metrics.accepted[w.Op].Inc()
	status := http.StatusAccepted
	if wait.preferred {
		x.receipt[0] = ack.Receipt
		var failed [1]error
		settled := s.settle(x, wait.most, wait.mark, x.receipt[:], func(int) *event.Write { return w }, failed[:])
		if failed[0] != nil {
			return failed[0]
		}
		if settled {
			status = http.StatusOK
			if w.Op == event.OpCreate {
				status = http.StatusCreated
			}
		}
	}
	id := w.Ref().String()
	if w.Op == event.OpCreate {
		x.w.Header()["Location"] = []string{"/event/" + escapeID(id)}
	}
	x.out = append(appendWritten(x.out, id, ack.Receipt), '\n')
	x.reply(status, headerJSON)
	return nil
}

// bodyBytesMax is the longest body of the kind, before inflation and after.
func (s *Server) bodyBytesMax(k *writeKind) int {
	if k.isBatch {
		return s.cfg.BatchBytesMax
	}
	return s.cfg.BodyBytesMax
}

// checkContentType refuses bodies that say they are something else than JSON or the
// other type, where there is one. A body without the header counts as the type that
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

// contentEncoding reads the request's Content-Encoding.
func contentEncoding(x *exchange) (body.Encoding, error) {
	h := x.r.Header["Content-Encoding"]
	if len(h) == 0 {
		return body.Identity, nil
	}
	switch strings.ToLower(strings.Join(h, ",")) {
	case "", "identity":
		return body.Identity, nil
	case "gzip", "x-gzip":
		return body.Gzip, nil
	case "zstd":
		return body.Zstd, nil
	}
	x.w.Header().Set("Accept-Encoding", "gzip, zstd")
	return 0, &problem{
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

// bodyProblem says how an error of reading or inflating a body is answered.
func bodyProblem(err error, bytesMax int) error {
	if err == nil {
		return nil
	}
	var invalid *body.EncodingError
	switch {
	case errors.Is(err, body.ErrTooLarge):
		return tooLarge(bytesMax)
	case errors.Is(err, body.ErrOverloaded):
		return overloaded()
	case errors.As(err, &invalid):
		return badRequest(invalid.Error())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &problem{
			status: http.StatusRequestTimeout, code: CodeRequestTimeout,
			detail: "the body did not arrive in time", closes: true,
		}
	}
	p := badRequest("the body broke off")
	p.closes = true
	return p
}

func overloaded() error {
	return &problem{
		status: http.StatusServiceUnavailable, code: CodeOverloaded,
		detail: "too many bytes are under way; send it again later", closes: true,
	}
}

// received is the time at which a write is received, which is the timestamp of
// an event that comes without one. It grows from write to write, across requests
// too, so that the events of a batch keep their order.
func (s *Server) received() time.Time { return s.clock.Next(s.cfg.Now()) }

// preferredWait is the time that the request prefers to wait, bounded by
// Config.WaitMax. It is not ok where the request states none, or none that can
// be read, which RFC 7240 says to pass over.
func (s *Server) preferredWait(h http.Header) (wait time.Duration, ok bool) {
	for _, line := range h["Prefer"] {
		for preference := range strings.SplitSeq(line, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(value, " \t\""), 10, 32)
			if err != nil {
				return 0, false
			}
			return min(time.Duration(seconds)*time.Second, s.cfg.WaitMax), true
		}
	}
	return 0, false
}

func preferenceApplied(wait time.Duration) []string {
	return []string{"wait=" + strconv.Itoa(int(wait/time.Second))}
}

// extendDeadlines gives a batch the time that its size needs. Servers that
// know no deadlines, as in tests, have none to extend.
func (s *Server) extendDeadlines(x *exchange) {
	c := http.NewResponseController(x.w)
	now := time.Now()
	_ = c.SetReadDeadline(now.Add(s.cfg.BatchReadTimeout))
	_ = c.SetWriteDeadline(now.Add(s.cfg.BatchReadTimeout + s.cfg.WriteTimeout))
}

// appendWritten appends the result of an accepted write.
func appendWritten(b []byte, id string, r event.Receipt) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, id)
	b = append(b, `,"receipt":"`...)
	return append(r.AppendText(b), `"}`...)
}

// escapeID escapes an id for a path. The two ids that a path would take for
// steps are escaped by hand.
func escapeID(id string) string {
	switch id {
	case ".":
		return "%2E"
	case "..":
		return "%2E%2E"
	}
	return url.PathEscape(id)
}

// writtenRef is the event that a write names, which takes no parameters but the
// id.
func writtenRef(r *http.Request, now time.Time) (event.Ref, error) {
	id := r.PathValue("id")
	if id == "" || r.URL.RawQuery != "" {
		p, err := newParams(r)
		if err != nil {
			return event.Ref{}, err
		}
		id = p.id()
		if err := p.finish(); err != nil {
			return event.Ref{}, err
		}
	}
	return event.ParseRef(id, now)
}

// noParameters refuses a query string where none is known.
func noParameters(r *http.Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	p, err := newParams(r)
	if err != nil {
		return err
	}
	return p.finish()
}
