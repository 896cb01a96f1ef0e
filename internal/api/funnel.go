package api

import (
	"context"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	stepsMin      = 2
	stepsMax      = 10
	stepBytesMax  = 2 << 10
	defaultWindow = 24 * time.Hour
	windowMax     = 366 * 24 * time.Hour
	// stepBytes is the memory of a step in a row.
	stepBytes = 64
)

func (s *Server) analyseFunnel(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	q := query.Funnel{Filter: f, Subject: p.subject()}
	var names []string
	for i, text := range p.many("step") {
		if i == stepsMax {
			p.fail(event.CodeTooLarge, "step", "is given more than %d times", stepsMax)
			break
		}
		step := s.step(p, "step", text)
		q.Steps = append(q.Steps, step)
		names = append(names, step.EventNames...)
	}
	if len(q.Steps) < stepsMin {
		p.fail(event.CodeRequired, "step", "is required, at least %d times", stepsMin)
	}
	window := p.span("window", defaultWindow)
	if window > windowMax {
		p.fail(event.CodeTooLarge, "window", "is longer than 366 days")
	}
	q.WindowMicros = window.Microseconds()
	groups, groupNames := p.groupsOf("group_by", 1)
	limit := p.count("limit", defaultRows, s.cfg.RowsMax)
	q.LimitRows = limit + 1
	rowBytes := rowBytesMin + stepBytes*len(q.Steps)
	if len(groups) > 0 {
		q.GroupBy = &groups[0]
		rowBytes += groupBytes(groups[0])
	} else {
		q.LimitRows = 1
	}
	q.BytesMax = q.LimitRows * rowBytes
	var rows []query.FunnelRow
	truncated := false
	return s.ask(x, p, after, question{
		rowsMax: q.LimitRows, rowBytes: rowBytes,
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.Funnel(ctx, q)
			truncated = len(rows) > limit
			return min(len(rows), limit), err
		},
		begin: `{"rows":[`,
		row: func(i int) {
			x.out = append(x.out, '{')
			if q.GroupBy != nil {
				x.out = append(appendString(x.out, groupNames[0]), ':')
				x.out = append(append(x.out, rows[i].Group...), ',')
			}
			x.out = append(x.out, `"steps":[`...)
			for j, step := range rows[i].Steps {
				if j > 0 {
					x.out = append(x.out, ',')
				}
				x.out = appendStep(x.out, names[j], rows[i].Steps, j, step)
			}
			x.out = append(x.out, "]}"...)
		},
		tail: func() { x.out = appendTruncated(x.out, truncated) },
	})
}

// appendStep appends step i of a row.
func appendStep(b []byte, name string, steps []query.FunnelStep, i int, step query.FunnelStep) []byte {
	b = appendString(appendMember(b, '{', "event_name"), name)
	b = strconv.AppendUint(appendMember(b, ',', "subjects"), step.Subjects, 10)
	b = appendNumber(appendMember(b, ',', "conversion"), share(step.Subjects, steps[0].Subjects))
	b = appendNumber(appendMember(b, ',', "conversion_from_previous"), share(step.Subjects, steps[max(0, i-1)].Subjects))
	b = appendNumber(appendMember(b, ',', "median_ms_from_previous"), query.Number{Float: step.MedianMicros / 1000})
	return append(b, '}')
}

// share returns part of whole, which is no number if whole is nothing.
func share(part, whole uint64) query.Number {
	if whole == 0 {
		return query.Number{Float: math.NaN()}
	}
	return query.Number{Float: float64(part) / float64(whole)}
}

// subject takes whom events are counted for.
func (p *params) subject() query.Subject {
	value, ok := p.one("per")
	if !ok || value == "conversation" {
		return query.Subject{}
	}
	key, ok := metadataKey(value)
	if !ok {
		p.fail(event.CodeInvalidValue, "per", "must be conversation, or a member of the metadata such as metadata.user")
	}
	return query.Subject{MetadataKey: key}
}

// step reads an event name with filters, such as event_b;error=true;metadata.plan=pro. The parts are those of a query
// string, so that a ";" of a value is written %3B. They are separated by ";" or "&".
func (s *Server) step(p *params, name, text string) query.Filter {
	if len(text) > stepBytesMax {
		p.fail(event.CodeTooLarge, name, "is longer than %d bytes", stepBytesMax)
		return query.Filter{}
	}
	eventName, filters, _ := strings.Cut(strings.ReplaceAll(text, "&", ";"), ";")
	eventName, err := url.QueryUnescape(eventName)
	if err != nil {
		p.fail(event.CodeInvalidValue, name, "has an event name whose percent-encoding is not valid")
		return query.Filter{}
	}
	values, err := url.ParseQuery(strings.ReplaceAll(filters, ";", "&"))
	if err != nil {
		p.fail(event.CodeInvalidValue, name, "has filters whose percent-encoding is not valid")
		return query.Filter{}
	}
	for _, other := range []string{"since", "until", "conversation_id", "event_name"} {
		if values.Has(other) {
			p.fail(event.CodeInvalidValue, name, "must not have %s, which narrows the whole question", other)
			return query.Filter{}
		}
	}
	values["event_name"] = []string{eventName}
	own := &params{values: values}
	f := s.filter(own, true)
	if err, ok := own.finish().(*event.Error); ok { //nolint:errorlint // finish wraps nothing
		p.fail(err.Code, name, "has a filter %s that %s", err.Field, err.Message)
	}
	return query.Filter{EventNames: f.EventNames, Errors: f.Errors, LatencyMin: f.LatencyMin, LatencyMax: f.LatencyMax, Metadata: f.Metadata}
}
