package api

import (
	"net/http"

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

// parseBatch splits the body of POST /events into items and parses each. It returns
// the writes of the items that are valid; x.batch has the errors of the others.
func (s *Server) parseBatch(x *exchange, _ event.Ref, text []byte) (_ []event.Write, err error) {
	x.batch = s.batches.Get().(*batch)
	b := x.batch
	var array bool
	if b.items, array, err = body.Split(b.items, text, s.cfg.BatchItemsMax); err != nil {
		return nil, err
	}
	if len(b.items) == 0 {
		return nil, event.Errorf(event.CodeRequired, "", "the batch has no items")
	}
	if !x.reserve(body.ForBodies, int64(len(b.items))*itemBytes) {
		return nil, overloaded()
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
			return nil, event.Errorf(event.CodeInvalidJSON, "", "the body is not one valid JSON array: element %d is broken", i)
		}
	}
	return b.writes, nil
}

// answerBatch answers with one result for each item, after the writes were applied
// where the request prefers to wait for that.
func (s *Server) answerBatch(x *exchange, _ []event.Write, acks []event.Ack, wait wait) error {
	b := x.batch
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
	if s.settleBatch(x, b, wait) {
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
	x.keep(body.ForBodies, int64(len(x.out)))
	x.reply(status, headerJSON)
	return nil
}

// settleBatch waits until the accepted writes are applied. It puts what became of
// them into b.errs, and reports whether that is known of all.
func (s *Server) settleBatch(x *exchange, b *batch, wait wait) bool {
	if !wait.preferred || len(b.receipts) == 0 {
		return false
	}
	failed := make([]error, len(b.receipts))
	settled := s.settle(x, wait.most, wait.mark, b.receipts, func(j int) *event.Write {
		return &b.writes[b.places[b.accepted[j]]]
	}, failed)
	for j, err := range failed {
		if err != nil {
			b.errs[b.accepted[j]] = err
		}
	}
	return settled
}
