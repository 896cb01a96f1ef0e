package api

import (
	"context"
	"strconv"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// periodsMax bounds the periods of one question.
const periodsMax = 366

func (s *Server) analyseRetention(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	q := query.Retention{Filter: f, Subject: p.subject()}
	did, ok := p.one("did")
	if !ok {
		p.fail(event.CodeRequired, "did", "is required, such as did=event_a")
	}
	q.Did = s.step(p, "did", did)
	q.Returned = q.Did
	if returned, ok := p.one("returned"); ok {
		q.Returned = s.step(p, "returned", returned)
	}
	zone := p.zone()
	interval, ok := p.interval("interval")
	switch {
	case !ok:
		interval = query.Interval{Unit: query.Day, Count: 1}
	case interval.Unit < query.Day:
		p.fail(event.CodeInvalidValue, "interval", "must be days, weeks or months, such as 1w")
	}
	until := min(f.UntilMicros, query.MicrosMax)
	starts, end, ok := interval.Buckets(f.SinceMicros, until, zone, periodsMax)
	if !ok {
		p.fail(event.CodeInvalidValue, "interval", "makes more than %d periods of the time asked for", periodsMax)
		starts = []int64{0}
	}
	q.PeriodSeconds = starts
	// A part of a period would count fewer than the others.
	q.SinceMicros = max(0, starts[0]*1_000_000)
	known := min(until, s.cfg.Now().UnixMicro())
	var rows []query.RetentionRow
	return s.ask(x, p, after, question{
		rowsMax: len(starts), rowBytes: rowBytesMin + 8*len(starts),
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.Retention(ctx, q)
			return len(rows), err
		},
		begin: `{"rows":[`, end: "]}\n",
		row: func(i int) {
			ends := end
			if i+1 < len(starts) {
				ends = starts[i+1]
			}
			x.out = appendTime(appendMember(x.out, '{', "time"), starts[i]*1_000_000)
			x.out = strconv.AppendBool(appendMember(x.out, ',', "complete"), ends*1_000_000 <= known)
			x.out = strconv.AppendUint(appendMember(x.out, ',', "subjects"), rows[i].Subjects, 10)
			x.out = append(appendMember(x.out, ',', "returned"), '[')
			for j, n := range rows[i].Returned {
				if j > 0 {
					x.out = append(x.out, ',')
				}
				x.out = strconv.AppendUint(x.out, n, 10)
			}
			x.out = append(x.out, "]}"...)
		},
	})
}
