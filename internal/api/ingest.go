package api

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	// itemBytes is about what an item of a batch costs beside its body: the
	// write, its acknowledgement and its place in the lists.
	itemBytes = 512
	// itemsKept is the largest batch whose lists are kept for the next one.
	itemsKept = 8192
)

func (s *Server) createEvent(x *exchange) error {
	if err := checkContentType(x.r, ""); err != nil {
		return err
	}
	if err := noParameters(x.r); err != nil {
		return err
	}
	text, err := s.readBody(x, s.cfg.BodyBytesMax, s.inflateSingle)
	if err != nil {
		return err
	}
	if x.write[0], err = s.parser.ParseCreate(text, s.received()); err != nil {
		return err
	}
	return s.writeOne(x)
}

func (s *Server) updateEvent(x *exchange) error {
	return s.changeEvent(x, "", s.parser.ParseUpdate)
}

func (s *Server) patchEvent(x *exchange) error {
	return s.changeEvent(x, typePatch, s.parser.ParsePatch)
}

func (s *Server) changeEvent(
	x *exchange, otherType string, parse func(event.Ref, []byte, time.Time) (event.Write, error),
) error {
	if err := checkContentType(x.r, otherType); err != nil {
		return err
	}
	now := s.cfg.Now()
	ref, err := writtenRef(x.r, now)
	if err != nil {
		return err
	}
	text, err := s.readBody(x, s.cfg.BodyBytesMax, s.inflateSingle)
	if err != nil {
		return err
	}
	if x.write[0], err = parse(ref, text, now); err != nil {
		return err
	}
	return s.writeOne(x)
}

func (s *Server) deleteEvent(x *exchange) error {
	ref, err := writtenRef(x.r, s.cfg.Now())
	if err != nil {
		return err
	}
	x.write[0] = event.NewDelete(ref)
	return s.writeOne(x)
}

// writeOne produces the exchange's write and answers.
func (s *Server) writeOne(x *exchange) error {
	w := &x.write[0]
	wait, waits := s.preferredWait(x.r.Header)
	var mark int64
	if waits {
		mark = s.ports.Applied.Mark()
	}
	ack := s.ports.Log.Produce(x.r.Context(), x.write[:])[0]
	x.releaseBody() // of which the log has a copy
	if ack.Err != nil {
		return ack.Err
	}
	s.metrics.accepted[w.Op].Inc()
	status := http.StatusAccepted
	if waits {
		x.receipt[0] = ack.Receipt
		var failed [1]error
		settled := s.settle(x, wait, mark, x.receipt[:], func(int) *event.Write { return w }, failed[:])
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

// batch holds the lists of one POST /events. It is pooled.
type batch struct {
	items [][]byte
	// errs has an entry for each item, nil where it is accepted.
	errs []error
	// places has an entry for each item: its index in writes, if it is there.
	places []int
	writes []event.Write
	// receipts are those of the accepted items, whose indices are in accepted.
	receipts []event.Receipt
	accepted []int
}

func (b *batch) reset() {
	if cap(b.items) > itemsKept {
		*b = batch{}
		return
	}
	// The lists point into the body, which others will use.
	clear(b.items)
	clear(b.errs)
	clear(b.writes)
	b.items, b.errs, b.places = b.items[:0], b.errs[:0], b.places[:0]
	b.writes, b.receipts, b.accepted = b.writes[:0], b.receipts[:0], b.accepted[:0]
}

func (s *Server) writeBatch(x *exchange) error {
	if err := checkContentType(x.r, typeNDJSON); err != nil {
		return err
	}
	if err := noParameters(x.r); err != nil {
		return err
	}
	s.extendDeadlines(x)
	text, err := s.readBody(x, s.cfg.BatchBytesMax, s.inflateBatch)
	if err != nil {
		return err
	}
	b := s.batches.Get().(*batch)
	defer func() {
		b.reset()
		s.batches.Put(b)
	}()
	if err := s.parseBatch(x, b, text); err != nil {
		return err
	}
	wait, waits := s.preferredWait(x.r.Header)
	if len(b.writes) == 0 {
		return s.answerBatch(x, b, nil, func() bool { return false })
	}
	var mark int64
	if waits {
		mark = s.ports.Applied.Mark()
	}
	acks := s.ports.Log.Produce(x.r.Context(), b.writes)
	x.releaseBody() // of which the log has a copy
	return s.answerBatch(x, b, acks, func() bool {
		if !waits || len(b.receipts) == 0 {
			return false
		}
		failed := make([]error, len(b.receipts))
		settled := s.settle(x, wait, mark, b.receipts, func(j int) *event.Write {
			return &b.writes[b.places[b.accepted[j]]]
		}, failed)
		for j, err := range failed {
			if err != nil {
				b.errs[b.accepted[j]] = err
			}
		}
		return settled
	})
}

// parseBatch splits the body into items and parses each.
func (s *Server) parseBatch(x *exchange, b *batch, text []byte) error {
	var array bool
	var err error
	if b.items, array, err = body.Split(b.items, text, s.cfg.BatchItemsMax); err != nil {
		return err
	}
	if len(b.items) == 0 {
		return event.Errorf(event.CodeRequired, "", "the batch has no items")
	}
	if !x.reserve(forBodies, int64(len(b.items))*itemBytes) {
		return overloaded()
	}
	for i, item := range b.items {
		b.places = append(b.places, len(b.writes))
		if len(item) > s.cfg.BodyBytesMax {
			b.errs = append(b.errs, event.Errorf(event.CodeTooLarge, "", "the item is longer than %d bytes", s.cfg.BodyBytesMax))
			continue
		}
		w, err := s.parser.ParseItem(item, s.received())
		b.errs = append(b.errs, err)
		if err == nil {
			b.writes = append(b.writes, w)
			continue
		}
		// An array with a broken element is no JSON, so that nothing of it can
		// be trusted. The parser may have stopped before the place that is broken.
		if array && !jsontext.Value(item).IsValid(jsontext.AllowDuplicateNames(true)) {
			return event.Errorf(event.CodeInvalidJSON, "", "the body is not one valid JSON array: element %d is broken", i)
		}
	}
	return nil
}

// received is the time at which a write is received, which is the timestamp of
// an event that comes without one. It grows from write to write, across requests
// too, so that the events of a batch keep its order.
func (s *Server) received() time.Time { return s.clock.Next(s.cfg.Now()) }

// answerBatch answers with one result for each item. It calls settle once it
// knows which of them are in the log, to put what became of them into b.errs and
// to report whether that is known of all.
func (s *Server) answerBatch(x *exchange, b *batch, acks []event.Ack, settle func() bool) error {
	failed := 0
	var failure error
	for i, err := range b.errs {
		if err != nil {
			continue
		}
		ack := &acks[b.places[i]]
		if ack.Err != nil {
			b.errs[i] = ack.Err
			if asProblem(ack.Err).status >= http.StatusInternalServerError {
				failed++
				failure = ack.Err
			}
			continue
		}
		s.metrics.accepted[b.writes[b.places[i]].Op].Inc()
		b.receipts = append(b.receipts, ack.Receipt)
		b.accepted = append(b.accepted, i)
	}
	if len(b.receipts) == 0 && failed > 0 {
		s.metrics.refused.WithLabelValues(string(asProblem(failure).code)).Add(float64(failed - 1)) // fail counts one
		return failure
	}
	status := http.StatusAccepted
	if settle() {
		status = http.StatusOK
	}
	refused := 0
	var common int // the status of all errors so far, if it is one
	x.out = append(x.out, `{"results":[`...)
	for i, err := range b.errs {
		if i > 0 {
			x.out = append(x.out, ',')
		}
		if err != nil {
			p := asProblem(err)
			s.metrics.refuse(p.code)
			x.out = appendItemError(x.out, p)
			if refused++; refused == 1 {
				common = p.status
			} else if common != p.status {
				common = http.StatusUnprocessableEntity
			}
			continue
		}
		place := b.places[i]
		x.out = appendWritten(x.out, b.writes[place].Ref().String(), acks[place].Receipt)
	}
	x.out = append(x.out, "]}\n"...)
	switch {
	case refused == len(b.errs):
		// So that a client that looks at the status alone notices. It is never 5xx,
		// which says that the batch should be sent again.
		if status = common; status >= http.StatusInternalServerError {
			status = http.StatusUnprocessableEntity
		}
	case refused > 0:
		status = http.StatusMultiStatus
	}
	// While the client takes the answer, nothing but that is held.
	b.reset()
	x.keep(forBodies, int64(len(x.out)))
	x.reply(status, headerJSON)
	return nil
}

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
	return append(appendReceipt(b, r), `"}`...)
}

func appendReceipt(b []byte, r event.Receipt) []byte {
	b = strconv.AppendInt(b, int64(r.Generation), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	b = append(b, '.')
	return strconv.AppendInt(b, r.Offset, 10)
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
