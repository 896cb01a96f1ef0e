package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// trailerNextCursor is the trailer of an export that ends before the last event. Its value is
// the cursor as it stands in a URL.
const trailerNextCursor = "Sluice-Next-Cursor"

// exportEventsMax bounds the limit of an export. Without a limit it has all events.
const exportEventsMax = 1_000_000_000

// exportStopWait is how long a reader has to take the piece that is being sent when the
// server stops.
const exportStopWait = time.Second

// headerNDJSON is the Content-Type of an export; net/http only reads it.
//
//nolint:gochecknoglobals // never written
var headerNDJSON = []string{"application/x-ndjson"}

// Exports reads all events of a filter.
type Exports interface {
	// Export returns the events, ordered by timestamp, then by id, until the first error.
	// It holds at most [query.ExportBytes], besides the events that it has returned.
	Export(ctx context.Context, q query.Export) iter.Seq2[query.Exported, error]
	// ExportedEvents returns the events with the keys that still match the filter. The error
	// of events that take more than bytesMax is a [*event.LargeError].
	ExportedEvents(ctx context.Context, f query.Filter, keys []event.ID, withEmbeddings bool, bytesMax int) ([]event.Event, error)
	// Place returns the id after which an export goes on that ended with the event. The
	// event may have been deleted since. ok is false if nothing is known of it.
	Place(ctx context.Context, ref event.Ref) (id event.ID, ok bool, err error)
}

// exportWriter writes the events of an export in its format.
type exportWriter interface {
	write(e *event.Event) error
	// full reports whether the answer must end here.
	full() bool
	// close ends the answer. next is the id of the event after which the next answer goes
	// on; empty after the last event.
	close(next string) error
}

// exportEvents serves GET /export.
func (s *Server) exportEvents(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	q := query.Export{Filter: s.filter(p, true), WithEmbeddings: p.flag("embeddings")}
	parquet := p.choice("format", "ndjson", "parquet") == 1
	limit := math.MaxInt
	if _, ok := p.values["limit"]; ok {
		limit = p.count("limit", 1, exportEventsMax)
	}
	cursor, resumed := p.one("cursor")
	after := s.after(p)
	if err := p.finish(); err != nil {
		return err
	}
	ref, err := event.ParseRef(cursor, s.cfg.Now())
	if resumed && err != nil {
		return event.Errorf(event.CodeInvalidValue, "cursor", "must be the id of the last event that was received")
	}
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	leave, err := s.enterExport(x, parquet)
	if err != nil {
		return err
	}
	defer leave()
	if resumed {
		if q.After, err = s.exportPlace(x, ref); err != nil {
			return err
		}
	}
	x.contentType = headerNDJSON
	var w exportWriter = &ndjsonWriter{x: x, embeddings: q.WithEmbeddings}
	if parquet {
		x.contentType = headerParquet
		w = newParquetWriter(x, q.WithEmbeddings)
	}
	if x.r.Method == http.MethodHead {
		x.reply(http.StatusOK, x.answerType())
		return nil
	}
	x.steady = true
	x.w.Header()["Trailer"] = []string{trailerNextCursor}
	next, err := s.sendExport(x, q, limit, w)
	if err != nil {
		return err
	}
	if err := w.close(next); err != nil {
		return err
	}
	if next != "" {
		// Before the last piece is sent, because the trailer comes with the end.
		x.w.Header().Set(trailerNextCursor, url.QueryEscape(next))
	}
	return x.send()
}

// sendExport sends the events. It returns the id of the last one if more may follow, and
// otherwise an empty text.
func (s *Server) sendExport(x *exchange, q query.Export, limit int, to exportWriter) (next string, err error) {
	ctx, cancel := context.WithCancel(x.r.Context())
	var stop sync.WaitGroup
	defer stop.Wait()
	defer cancel()
	stop.Go(func() {
		select {
		case <-s.draining:
			// An export can take hours. Its reader can go on with another server.
			cancel()
			_ = x.control().SetWriteDeadline(time.Now().Add(exportStopWait))
		case <-ctx.Done():
		}
	})
	w := exportQueue{s: s, x: x, to: to, filter: q.Filter, embeddings: q.WithEmbeddings}
	events := 0
	for exported, err := range s.ports.Exports.Export(ctx, q) {
		if err == nil && s.stopping() {
			err = errGone
		}
		if err == nil {
			err = w.add(exported)
		}
		if err != nil {
			return "", s.exportProblem(x, err)
		}
		if events++; events == limit || to.full() {
			if err := w.flush(); err != nil {
				return "", s.exportProblem(x, err)
			}
			return exported.Event.ID, nil
		}
	}
	if err := w.flush(); err != nil {
		return "", s.exportProblem(x, err)
	}
	return "", nil
}

const (
	// queueLargeBytes bounds the large events that are read at once, unless one is larger.
	queueLargeBytes = 1 << 20
	// queueBytes bounds the other events that wait for them, and queueEvents all of them.
	queueBytes  = 256 << 10
	queueEvents = 256
)

// exportQueue writes events in their order. It reads events that are too large for the
// stream some at a time, while those after them wait.
type exportQueue struct {
	s          *Server
	x          *exchange
	to         exportWriter
	filter     query.Filter
	embeddings bool

	waiting     []query.Exported
	large       []event.ID
	bytes       int // of the events that wait and are not large
	largeToRead int // bytes
}

func (w *exportQueue) add(e query.Exported) error {
	if e.LargeBytes == 0 && len(w.waiting) == 0 {
		return w.to.write(&e.Event)
	}
	if e.LargeBytes > 0 {
		if w.largeToRead+e.LargeBytes > queueLargeBytes {
			if err := w.flush(); err != nil {
				return err
			}
		}
		w.large, w.largeToRead = append(w.large, e.Key), w.largeToRead+e.LargeBytes
	} else {
		w.bytes += len(e.Event.Input.Data) + len(e.Event.Output.Data) + len(e.Event.Metadata) + len(e.Event.Error) +
			event.DimensionBytes*(e.Event.InputEmbeddings.Dimensions()+e.Event.OutputEmbeddings.Dimensions())
	}
	w.waiting = append(w.waiting, e)
	if w.bytes >= queueBytes || len(w.waiting) == queueEvents {
		return w.flush()
	}
	return nil
}

// flush writes all events that wait. A large one that no longer matches the
// filter is left out.
func (w *exportQueue) flush() error {
	if len(w.waiting) == 0 {
		return nil
	}
	read := make(map[string]*event.Event, len(w.large))
	if len(w.large) > 0 {
		err := w.x.readEvents(w.largeToRead+eventBytesFirst, func(ctx context.Context, bytesMax int) (int, error) {
			events, err := w.s.ports.Exports.ExportedEvents(ctx, w.filter, w.large, w.embeddings, bytesMax)
			for i := range events {
				read[events[i].ID] = &events[i]
			}
			return bytesMax, err
		})
		if err != nil {
			return err
		}
	}
	for i := range w.waiting {
		e := &w.waiting[i].Event
		if w.waiting[i].LargeBytes > 0 {
			if e = read[e.ID]; e == nil {
				continue
			}
		}
		if err := w.to.write(e); err != nil {
			return err
		}
	}
	w.x.keep(body.ForEvents, 0)
	clear(w.waiting)
	w.waiting, w.large, w.bytes, w.largeToRead = w.waiting[:0], w.large[:0], 0, 0
	return nil
}

// exportProblem says how an error of an export is answered, or logged if the answer has
// begun.
func (s *Server) exportProblem(x *exchange, err error) error {
	switch {
	case s.stopping():
		s.metrics.cut.WithLabelValues("stopping").Inc()
		if x.status != 0 {
			return fmt.Errorf("%w: the server stops", errGone)
		}
		return &problem{status: http.StatusServiceUnavailable, code: CodeUnavailable, detail: "the server stops"}
	case errors.Is(err, errGone):
		return err
	}
	return questionProblem(x.searchProblem(err))
}

// enterExport waits for a place among the exports, and for the memory of one. leave gives
// the place back.
func (s *Server) enterExport(x *exchange, parquet bool) (leave func(), err error) {
	begun := time.Now()
	timer := time.NewTimer(s.cfg.AnswerWait)
	defer timer.Stop()
	select {
	case s.exports <- struct{}{}:
	case <-timer.C:
		return nil, tooManyQueries("as many exports are being sent as may be; ask again later")
	case <-x.r.Context().Done(): // there is nobody to answer
		return nil, tooManyQueries("the caller has gone")
	}
	leave = func() { <-s.exports }
	bytes := int64(query.ExportBytes + queueBytes + sendBytes)
	if parquet {
		bytes += parquetBytes
		select {
		case s.parquetExport <- struct{}{}:
			leave = func() { <-s.parquetExport; <-s.exports }
		case <-timer.C:
			leave()
			return nil, tooManyQueries("another export as Parquet is being sent; ask again later")
		}
	}
	if err := x.waitAtMost(body.ForRows, bytes, s.cfg.AnswerWait-time.Since(begun)); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// exportPlace returns the place of the last event that the caller has.
func (s *Server) exportPlace(x *exchange, last event.Ref) (*event.ID, error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), s.cfg.QueryTimeout)
	defer cancel()
	id, ok, err := s.ports.Exports.Place(ctx, last)
	switch {
	case err != nil:
		return nil, storageProblem(err)
	case !ok:
		return nil, event.Errorf(event.CodeUnknownEvent, "cursor", "names no event that the server knows; begin again at its timestamp, with since")
	}
	return &id, nil
}

// ndjsonWriter writes one event a line.
type ndjsonWriter struct {
	x          *exchange
	embeddings bool
}

func (w *ndjsonWriter) write(e *event.Event) (err error) {
	x := w.x
	if x.out, err = e.SpillJSON(x.out, w.embeddings, x.spill); err != nil {
		return err
	}
	x.out = append(x.out, '\n')
	return nil
}

func (w *ndjsonWriter) full() bool { return false }

func (w *ndjsonWriter) close(string) error { return nil }
