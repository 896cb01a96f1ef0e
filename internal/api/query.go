package api

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	defaultRows     = 100
	defaultInterval = time.Hour
	// lookTimeout is longer than the pause between two looks at what is applied.
	lookTimeout = 400 * time.Millisecond
)

func (s *Server) getEvent(x *exchange) error {
	p, err := newParams(x.r)
	if err != nil {
		return err
	}
	id, after := p.id(), s.after(p)
	if err := p.finish(); err != nil {
		return err
	}
	ref, err := event.ParseRef(id, s.cfg.Now())
	if err != nil {
		return err
	}
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	var e *event.Event
	err = x.readEvents(eventBytesFirst, func(ctx context.Context, bytesMax int) (int, error) {
		var err error
		e, err = s.ports.Events.Event(ctx, ref, bytesMax)
		return bytesMax, err
	})
	if err != nil {
		return err
	}
	if e == nil {
		return event.Errorf(event.CodeUnknownEvent, "id", "names no event, or one that was deleted")
	}
	if x.out, err = e.SpillJSON(x.out, true, x.spill); err != nil {
		return err
	}
	x.out = append(x.out, '\n')
	return x.end()
}

// analysis reads what all analytics have in common.
func (s *Server) analysis(x *exchange) (*params, query.Filter, []event.Receipt, error) {
	p, err := newParams(x.r)
	if err != nil {
		return nil, query.Filter{}, nil, err
	}
	return p, s.filter(p, false), s.after(p), nil
}

// question is one of analytics.
type question struct {
	// rowsMax and rowBytes bound the rows of the answer, and the memory of each.
	rowsMax, rowBytes int
	// ask runs the query and returns the number of rows.
	ask func(ctx context.Context) (rows int, err error)
	// begin, row and end append the answer's JSON to x.out. row, for row i, may be nil.
	begin, end string
	row        func(i int)
	// tail appends what comes after end, if it is not nil.
	tail func()
}

// rowBytesMin is what a row takes beside its texts and quantiles.
const rowBytesMin = 128

// ask runs a query once its parameters are in order and its receipts applied,
// and sends its answer.
func (s *Server) ask(x *exchange, p *params, after []event.Receipt, q question) error {
	if err := p.finish(); err != nil {
		return err
	}
	if err := s.waitForReceipts(x, after); err != nil {
		return err
	}
	rows, err := s.askAdmitted(x, q)
	if err != nil {
		return err
	}
	x.keep(body.ForRows, int64(rows)*int64(q.rowBytes)+sendBytes)
	x.out = append(x.out, q.begin...)
	for i := range rows {
		if i > 0 {
			x.out = append(x.out, ',')
		}
		q.row(i)
		if err := x.full(); err != nil {
			return err
		}
	}
	x.out = append(x.out, q.end...)
	if q.tail != nil {
		q.tail()
	}
	return x.end()
}

// askAdmitted runs the query when there is memory for its answer, and it is its
// turn. It waits for the memory first, because slow readers may keep that for
// long, and nobody should wait for a place that is not used meanwhile.
func (s *Server) askAdmitted(x *exchange, q question) (rows int, err error) {
	if err := x.waitFor(body.ForRows, readFactor*int64(q.rowsMax)*int64(q.rowBytes)+sendBytes); err != nil {
		return 0, err
	}
	leave, err := s.analytics.enter(x.r.Context())
	if err != nil {
		return 0, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(x.r.Context(), s.cfg.QueryTimeout)
	defer cancel()
	if rows, err = q.ask(ctx); err != nil {
		return 0, questionProblem(err)
	}
	return rows, nil
}

func (s *Server) analyseErrors(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	var count query.ErrorCount
	return s.ask(x, p, after, question{
		rowsMax: 1, rowBytes: rowBytesMin,
		ask: func(ctx context.Context) (rows int, err error) {
			count, err = s.ports.Analytics.Errors(ctx, f)
			return 1, err
		},
		row: func(int) {
			x.out = appendMember(x.out, '{', "event_name")
			if len(f.EventNames) == 1 {
				x.out = appendString(x.out, f.EventNames[0])
			} else {
				x.out = append(x.out, "null"...)
			}
			x.out = appendCount(append(x.out, ','), count)
			x.out = appendTime(appendMember(x.out, ',', "since"), f.SinceMicros)
			x.out = appendTime(appendMember(x.out, ',', "until"), f.UntilMicros)
		},
		end: "}\n",
	})
}

func (s *Server) analyseLatency(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	q := query.Latency{Filter: f}
	var names []string
	q.Quantiles, names = p.quantiles(s.cfg.QuantilesMax)
	q.LimitRows = p.count("limit", defaultRows, s.cfg.RowsMax)
	q.ByConversation, q.ByEventName = p.groups()
	var rows []query.LatencyRow
	return s.ask(x, p, after, question{
		rowsMax:  q.LimitRows,
		rowBytes: rowBytesMin + event.ConversationIDBytesMax + event.EventNameBytesMax + 8*len(names),
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.Latency(ctx, q)
			return len(rows), err
		},
		begin: `{"rows":[`, end: "]}\n",
		row: func(i int) {
			row := &rows[i]
			x.out = appendMember(x.out, '{', "conversation_id")
			x.out = appendGroup(x.out, row.ConversationID, q.ByConversation)
			x.out = appendMember(x.out, ',', "event_name")
			x.out = appendGroup(x.out, row.EventName, q.ByEventName)
			x.out = appendMember(x.out, ',', "events")
			x.out = strconv.AppendUint(x.out, row.Events, 10)
			x.out = appendQuantiles(append(x.out, ','), names, row.Quantiles)
			x.out = append(x.out, '}')
		},
	})
}

// groups takes group_by: conversation, event_name, or both, which is the default.
func (p *params) groups() (byConversation, byEventName bool) {
	value, ok := p.one("group_by")
	if !ok {
		return true, true
	}
	for word := range strings.SplitSeq(value, ",") {
		switch {
		case word == "conversation" && !byConversation:
			byConversation = true
		case word == "event_name" && !byEventName:
			byEventName = true
		default:
			p.fail(event.CodeInvalidValue, "group_by", "must be conversation, event_name, or both with a comma")
		}
	}
	return byConversation, byEventName
}

func (s *Server) analyseConversations(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	orders := [...]query.Order{query.OrderByErrorRate, query.OrderByErrors, query.OrderByEvents}
	q := query.Conversations{
		Filter:    f,
		OrderBy:   orders[p.choice("order_by", "error_rate", "errors", "events")],
		EventsMin: uint64(p.count("min_events", 1, math.MaxInt)),
		LimitRows: p.count("limit", defaultRows, s.cfg.RowsMax),
	}
	var rows []query.ConversationRow
	return s.ask(x, p, after, question{
		rowsMax: q.LimitRows, rowBytes: rowBytesMin + event.ConversationIDBytesMax,
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.Conversations(ctx, q)
			return len(rows), err
		},
		begin: `{"rows":[`, end: "]}\n",
		row: func(i int) {
			row := &rows[i]
			x.out = appendMember(x.out, '{', "conversation_id")
			x.out = appendString(x.out, row.ConversationID)
			x.out = appendCount(append(x.out, ','), row.ErrorCount)
			x.out = appendTime(appendMember(x.out, ',', "first"), row.FirstMicros)
			x.out = appendTime(appendMember(x.out, ',', "last"), row.LastMicros)
			x.out = append(x.out, '}')
		},
	})
}

func (s *Server) analyseTimeSeries(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	q := query.TimeSeries{Filter: f, IntervalMicros: p.span("interval", defaultInterval).Microseconds()}
	var names []string
	q.Quantiles, names = p.quantiles(s.cfg.QuantilesMax)
	// The first bucket begins at a multiple of the interval, so before since.
	buckets := (f.UntilMicros-1)/q.IntervalMicros - f.SinceMicros/q.IntervalMicros + 1
	if buckets > int64(s.cfg.BucketsMax) {
		p.fail(event.CodeInvalidValue, "interval", "makes more than %d buckets of the time asked for", s.cfg.BucketsMax)
	}
	var rows []query.TimeSeriesRow
	return s.ask(x, p, after, question{
		rowsMax: int(buckets), rowBytes: rowBytesMin + 8*len(names),
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.TimeSeries(ctx, q)
			return len(rows), err
		},
		begin: `{"rows":[`, end: "]}\n",
		row: func(i int) {
			row := &rows[i]
			x.out = appendTime(appendMember(x.out, '{', "time"), row.Micros)
			x.out = appendCount(append(x.out, ','), row.ErrorCount)
			x.out = appendQuantiles(append(x.out, ','), names, row.Quantiles)
			x.out = append(x.out, '}')
		},
	})
}

// after takes the receipts that a read waits for.
func (s *Server) after(p *params) []event.Receipt {
	texts := p.many("after")
	if len(texts) > s.cfg.ReceiptsMax {
		p.fail(event.CodeTooLarge, "after", "is given more than %d times", s.cfg.ReceiptsMax)
		return nil
	}
	var receipts []event.Receipt
	for _, text := range texts {
		r, err := event.ParseReceipt(text)
		if err != nil {
			p.fail(event.CodeInvalidValue, "after", "is not a receipt of this server")
		}
		receipts = append(receipts, r)
	}
	return receipts
}

// waitForReceipts waits until the writes of the receipts are applied. One that
// was refused is nothing to wait for.
func (s *Server) waitForReceipts(x *exchange, receipts []event.Receipt) error {
	if len(receipts) == 0 {
		return nil
	}
	wait, preferred := s.preferredWait(x.r.Header)
	if !preferred {
		wait = s.cfg.AfterWait
	}
	// Not to wait at all still means to look once.
	ctx, cancel := s.waitContext(x.r.Context(), max(wait, lookTimeout))
	defer cancel()
	err := s.ports.Applied.Wait(ctx, receipts)
	var impossible *event.Error
	switch {
	case err == nil:
		if preferred {
			x.w.Header()["Preference-Applied"] = preferenceApplied(wait)
		}
		return nil
	case errors.As(err, &impossible):
		return event.Errorf(impossible.Code, "after", "%s", impossible.Message)
	case ctx.Err() == nil:
		return &problem{
			status: http.StatusServiceUnavailable, code: CodeUnavailable,
			detail: "the log does not say whether the write is applied", cause: err,
		}
	}
	x.log().LogAttrs(ctx, slog.LevelDebug, "write not yet applied", slog.Duration("waited", wait))
	return &problem{
		status: http.StatusServiceUnavailable, code: CodeNotYetApplied, field: "after",
		detail: "the write is acknowledged but not applied yet; read again later",
	}
}

func appendMember(b []byte, before byte, name string) []byte {
	b = append(b, before, '"')
	b = append(b, name...)
	return append(b, `":`...)
}

func appendGroup(b []byte, value string, grouped bool) []byte {
	if !grouped {
		return append(b, "null"...)
	}
	return appendString(b, value)
}

func appendCount(b []byte, c query.ErrorCount) []byte {
	b = append(b, `"events":`...)
	b = strconv.AppendUint(b, c.Events, 10)
	b = append(b, `,"errors":`...)
	b = strconv.AppendUint(b, c.Errors, 10)
	b = append(b, `,"error_rate":`...)
	return jsontext.AppendFloat(b, c.Rate(), 64)
}

func appendQuantiles(b []byte, names []string, values []float64) []byte {
	b = append(b, `"quantiles":`...)
	for i, name := range names {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		b = appendMember(b, separator, name)
		b = appendNumber(b, query.Number{Float: values[i]}) // the quantile of nothing is null
	}
	return append(b, '}')
}

// appendTime appends a time, given in Unix microseconds, as RFC 3339 in UTC.
func appendTime(b []byte, micros int64) []byte {
	b = append(b, '"')
	b = time.UnixMicro(micros).UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}
