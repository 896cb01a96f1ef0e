package api

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	defaultSince   = 7 * 24 * time.Hour
	metadataPrefix = "metadata."
	existsSuffix   = ".exists"
	// filterNamesMax bounds the event names of one filter.
	filterNamesMax = 100
)

// filter takes the parameters that narrow a read. A read of lists is about all times, if it
// does not say otherwise; one of analytics about the last seven days.
func (s *Server) filter(p *params, list bool) query.Filter {
	now := s.cfg.Now()
	since, until := now.Add(-defaultSince).UnixMicro(), now.UnixMicro()
	if list {
		since, until = 0, query.MicrosMax
	}
	f := query.Filter{
		SinceMicros:    p.moment("since", since, now),
		UntilMicros:    p.moment("until", until, now),
		ConversationID: p.text("conversation_id", event.ConversationIDBytesMax),
		EventNames:     p.eventNames(),
		LatencyMin:     p.latency("latency_min"),
		LatencyMax:     p.latency("latency_max"),
	}
	if f.SinceMicros >= f.UntilMicros {
		p.fail(event.CodeInvalidValue, "since", "must be before until")
	}
	if f.LatencyMin != nil && f.LatencyMax != nil && *f.LatencyMin > *f.LatencyMax {
		p.fail(event.CodeInvalidValue, "latency_min", "must not be above latency_max")
	}
	if _, ok := p.values["error"]; ok {
		f.Errors = query.WithoutError
		if p.flag("error") {
			f.Errors = query.WithError
		}
	}
	f.Metadata = p.metadata(s.cfg.MetadataFiltersMax)
	return f
}

// eventNames takes event_name, which may be repeated.
func (p *params) eventNames() []string {
	names := p.many("event_name")
	if len(names) > filterNamesMax {
		p.fail(event.CodeTooLarge, "event_name", "is given more than %d times", filterNamesMax)
		return nil
	}
	for _, name := range names {
		switch {
		case name == "":
			p.fail(event.CodeInvalidValue, "event_name", "must not be empty")
		case len(name) > event.EventNameBytesMax:
			p.fail(event.CodeTooLarge, "event_name", "is longer than %d bytes", event.EventNameBytesMax)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// latency takes a bound of the latency; nil where it is absent.
func (p *params) latency(name string) *float64 {
	value, ok := p.one(name)
	if !ok {
		return nil
	}
	ms, err := strconv.ParseFloat(value, 64)
	if err != nil || ms < 0 || math.IsInf(ms, 0) || math.IsNaN(ms) {
		p.fail(event.CodeInvalidValue, name, "must be a number of milliseconds, at least 0")
		return nil
	}
	return &ms
}

// metadata takes the conditions on members of the metadata. They are written as they
// are read: metadata.plan=pro, metadata.plan!=free, metadata.tokens>100,
// metadata.tokens<=100, metadata.plan.exists=true. The query string is split at the
// first "=", so that an operator is the end of the name, or in the middle of a name
// without a value.
func (p *params) metadata(most int) []query.MetadataFilter {
	var names []string
	for name := range p.values {
		if strings.HasPrefix(name, metadataPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names) // so that one request always becomes one query
	var filters []query.MetadataFilter
	for _, name := range names {
		values := p.many(name)
		for _, value := range values {
			f := metadataFilter(name[len(metadataPrefix):], value)
			switch {
			case f.Key == "":
				p.fail(event.CodeInvalidValue, name, "must name a member of the metadata after the dot")
			case strings.Contains(f.Key, "\x00"):
				// ClickHouse would look for the member that is named by what comes before it.
				p.fail(event.CodeInvalidValue, name, "names a member with U+0000 in its name, which no filter finds")
			case f.Op != query.NotEqual && len(values) > 1:
				p.fail(event.CodeInvalidValue, name, "must be given once")
			}
			filters = append(filters, f)
		}
	}
	if len(filters) > most {
		p.fail(event.CodeTooLarge, "metadata", "has more than %d filters", most)
	}
	return filters
}

// metadataFilter returns the condition of a parameter, whose name is given without its
// prefix.
func metadataFilter(name, value string) query.MetadataFilter {
	if key, ok := strings.CutSuffix(name, existsSuffix); ok && (value == "true" || value == "false") {
		op := query.Exists
		if value == "false" {
			op = query.Missing
		}
		return query.MetadataFilter{Key: key, Op: op}
	}
	for _, o := range inclusive {
		// The "=" may be the one at which the query string was split, or be escaped.
		for _, text := range []string{o.text, o.text[:1]} {
			if key, ok := strings.CutSuffix(name, text); ok {
				return query.MetadataFilter{Key: key, Op: o.op, Value: value}
			}
		}
	}
	if value == "" {
		for i := range len(name) {
			for _, o := range slices.Concat(inclusive, strict) {
				if rest, ok := strings.CutPrefix(name[i:], o.text); ok {
					return query.MetadataFilter{Key: name[:i], Op: o.op, Value: rest}
				}
			}
		}
	}
	return query.MetadataFilter{Key: name, Value: value}
}

// operator is an operator of a condition on metadata, as it is written.
type operator struct {
	text string
	op   query.Op
}

// The operators beside "=": those that end in "=", and the others, which begin those.
//
//nolint:gochecknoglobals // constant tables
var (
	inclusive = []operator{{"!=", query.NotEqual}, {">=", query.GreaterOrEqual}, {"<=", query.LessOrEqual}}
	strict    = []operator{{">", query.Greater}, {"<", query.Less}}
)
