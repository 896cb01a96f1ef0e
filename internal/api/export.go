package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"net/url"
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

// headerNDJSON is the Content-Type of an export; net/http only reads it.
//
//nolint:gochecknoglobals // never written
var headerNDJSON = []string{"application/x-ndjson"}

// Exports reads all events of a filter.
type Exports interface {
	// Export returns the events, ordered by timestamp, then by id, until the first error.
	// It holds at most [query.ExportBytes], besides the event that it has returned.
	Export(ctx context.Context, q query.Export) iter.Seq2[query.Exported, error]
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
func (s *Server) sendExport(x *exchange, q query.Export, limit int, w exportWriter) (next string, err error) {
	ctx, cancel := context.WithCancel(x.r.Context())
	defer cancel()
	go func() {
		select {
		case <-s.draining:
			cancel()
		case <-ctx.Done():
		}
	}()
	events := 0
	for exported, err := range s.ports.Exports.Export(ctx, q) {
		if err == nil && exported.Large {
			var e *event.Event
			if e, err = s.readLarge(x, exported.Event.ID); e == nil && err == nil {
				continue // deleted meanwhile
			}
			if err == nil {
				exported.Event = *e
			}
		}
		if err == nil {
			err = w.write(&exported.Event)
		}
		if err != nil {
			return "", s.exportProblem(x, err)
		}
		x.keep(body.ForEvents, 0)
		if events++; events == limit || w.full() {
			return exported.Event.ID, nil
		}
	}
	return "", nil
}

// exportProblem says how an error of an export is answered, or logged if the answer has
// begun.
func (s *Server) exportProblem(x *exchange, err error) error {
	switch {
	case errors.Is(err, errGone):
		return err
	case s.stopping():
		s.metrics.cut.WithLabelValues("stopping").Inc()
		if x.status != 0 {
			return fmt.Errorf("%w: the server stops", errGone)
		}
		return &problem{status: http.StatusServiceUnavailable, code: CodeUnavailable, detail: "the server stops"}
	}
	return questionProblem(x.searchProblem(err))
}

// readLarge reads an event that is too large for the stream; nil if it was deleted.
func (s *Server) readLarge(x *exchange, id string) (e *event.Event, err error) {
	ref, err := event.ParseRef(id, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("read an event of an export: %w", err)
	}
	err = x.readEvents(eventBytesFirst, func(ctx context.Context, bytesMax int) (int, error) {
		var err error
		e, err = s.ports.Events.Event(ctx, ref, bytesMax)
		return bytesMax, err
	})
	return e, err
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
	bytes := int64(query.ExportBytes + sendBytes)
	if parquet {
		bytes += parquetBytes
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
