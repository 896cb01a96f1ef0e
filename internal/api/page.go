package api

import (
	"context"
	"errors"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// sendPage sends a page of events in parts. Each part is read from the
// database, sent, and forgotten before the next one is read, so that a slow
// reader holds one part. Each part shows the events as they are when it is read. A
// page ends early, with a cursor, if it has taken too long, would take too much, or
// if there is no memory for its next part.
func (s *Server) sendPage(x *exchange, q list) error {
	begun := time.Now()
	left := q.LimitEvents
	pace := s.firstPace(left)
	var next *event.ID
	x.out = append(x.out, `{"events":[`...)
	for events := 0; ; {
		page, err := s.readPart(x, q.List, pace)
		switch {
		case err == nil:
		case events > 0 && canEndEarly(err):
			s.metrics.cut.WithLabelValues("overloaded").Inc()
			return x.endPage(q.After, q.scope)
		default:
			return err
		}
		sending := x.sending
		for i := range page.Events {
			if events++; events > 1 {
				x.out = append(x.out, ',')
			}
			if x.out, err = page.Events[i].SpillJSON(x.out, q.WithEmbeddings, x.spill); err != nil {
				return err
			}
		}
		x.keep(body.ForEvents, 0)
		left -= len(page.Events)
		next = page.Next
		if next == nil || left == 0 || x.sent+len(x.out) >= s.cfg.PageBytesMax {
			return x.endPage(next, q.scope)
		}
		if time.Since(begun) >= s.cfg.PageTimeout || s.stopping() {
			s.metrics.cut.WithLabelValues("long").Inc()
			return x.endPage(next, q.scope)
		}
		q.After = next
		pace = s.nextPace(pace, x.sending-sending, page, left)
	}
}

// readPart reads the next part of a page. Only a few parts are read at a time. The
// others wait before they take memory, and leave the database time for other reads.
func (s *Server) readPart(x *exchange, q query.List, p pace) (page query.Page, err error) {
	timer := time.NewTimer(s.cfg.AnswerWait)
	defer timer.Stop()
	select {
	case s.pageReads <- struct{}{}:
		defer func() { <-s.pageReads }()
	case <-timer.C:
		return page, errNoRoom
	case <-x.r.Context().Done():
		return page, errNoRoom
	}
	q.LimitEvents = p.events
	if q.ConversationID == "" {
		// To find the events is a question about many.
		leave, err := s.analytics.enter(x.r.Context())
		if err != nil {
			return page, err
		}
		defer leave()
	}
	err = x.readEvents(p.bytes, func(ctx context.Context, bytesMax int) (int, error) {
		q.BytesMax = bytesMax
		page, err = s.ports.Events.List(ctx, q)
		if q.ConversationID == "" {
			err = x.searchProblem(err)
		}
		return page.Bytes, err
	})
	return page, err
}

// canEndEarly reports whether a page can end before a part that could not be read for
// this error, because a later request for it may succeed.
func canEndEarly(err error) bool {
	var p *problem
	return errors.Is(err, errNoRoom) || errors.As(err, &p) && p.code == CodeTooManyQueries
}

// endPage ends the JSON of a page. If there is a next page, it begins after the
// event.
func (x *exchange) endPage(after *event.ID, scope string) error {
	x.out = appendNextCursor(x.out, eventPlace(after), scope)
	return x.end()
}

// pace is how much of a page is read at once.
type pace struct{ bytes, events int }

func (s *Server) firstPace(events int) pace {
	if s.budget[body.ForEvents].Plenty() {
		return pace{pageBytesFirst, events}
	}
	return pace{pageBytesLeast, min(events, pageBytesLeast/eventBytesGuess)}
}

// nextPace chooses the size of the next part so that the reader is busy with it
// for partTime. took is the time of the part before, left the number of events left.
func (s *Server) nextPace(p pace, took time.Duration, page query.Page, left int) pace {
	switch {
	case took < partTime/2 && s.budget[body.ForEvents].Plenty():
		p.bytes = min(2*p.bytes, pageBytesMost)
	case took > partTime:
		p.bytes = max(int(float64(p.bytes)*partTime.Seconds()/took.Seconds()), pageBytesLeast)
	}
	n := len(page.Events)
	if n == 0 || n == p.events {
		p.events = left
		return p
	}
	// The part was full before it had all events that were asked for. Events that do
	// not fit are read in vain, so ask for a little less than may fit, at least one.
	each := page.Bytes / n
	p.bytes = max(p.bytes, each+each/4)
	p.events = min(left, max(1, p.bytes/10*9/max(1, each)))
	return p
}

// stopping reports whether the server is being stopped.
func (s *Server) stopping() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}
