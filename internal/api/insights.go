package api

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // so that a host without time zones knows the same ones

	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// measuresMax bounds the measures of one question.
	measuresMax = 16
	// groupsMax bounds what one question groups by.
	groupsMax = 3
	// numberBytes is the memory of a measure in a row.
	numberBytes = 96
	// metadataGroupBytes is the memory that is assumed for the value of a member of the metadata.
	// Answers with longer values are refused if they do not fit into that of all rows.
	metadataGroupBytes = 256
	zoneBytesMax       = 64
)

func (s *Server) analyseInsights(x *exchange) error {
	p, f, after, err := s.analysis(x)
	if err != nil {
		return err
	}
	q := query.Insights{Filter: f}
	var measures, groups []string
	q.Measures, measures = p.measures()
	q.GroupBy, groups = p.groupsOf("group_by", groupsMax)
	zone := p.zone()
	absent := defaultRows
	if interval, ok := p.interval("interval"); ok {
		var within bool
		if q.BucketSeconds, _, within = interval.Buckets(f.SinceMicros, min(f.UntilMicros, query.MicrosMax), zone, s.cfg.BucketsMax); !within {
			p.fail(event.CodeInvalidValue, "interval", "makes more than %d buckets of the time asked for", s.cfg.BucketsMax)
		}
		absent = s.cfg.RowsMax
		if len(groups) == 0 {
			absent = max(1, len(q.BucketSeconds))
		}
	}
	limit := p.count("limit", absent, s.cfg.RowsMax)
	q.LimitRows = limit + 1 // one more tells whether rows were left out
	q.OrderBy, q.Descending = p.orderOf(measures, q.BucketSeconds != nil)
	rowBytes := rowBytesMin + numberBytes*len(measures)
	for _, g := range q.GroupBy {
		rowBytes += groupBytes(g)
	}
	q.BytesMax = q.LimitRows * rowBytes
	var rows []query.InsightsRow
	truncated := false
	return s.ask(x, p, after, question{
		rowsMax: q.LimitRows, rowBytes: rowBytes,
		ask: func(ctx context.Context) (int, error) {
			var err error
			rows, err = s.ports.Analytics.Insights(ctx, q)
			truncated = len(rows) > limit
			return min(len(rows), limit), err
		},
		begin: `{"rows":[`,
		row: func(i int) {
			row := &rows[i]
			separator := byte('{')
			member := func(name string) {
				x.out = append(appendString(append(x.out, separator), name), ':')
				separator = ','
			}
			if q.BucketSeconds != nil {
				member("time")
				x.out = appendTime(x.out, row.Micros)
			}
			for j, name := range groups {
				member(name)
				x.out = append(x.out, row.Groups[j]...)
			}
			for j, name := range measures {
				member(name)
				x.out = appendNumber(x.out, row.Measures[j])
			}
			x.out = append(x.out, '}')
		},
		tail: func() { x.out = appendTruncated(x.out, truncated) },
	})
}

// appendTruncated appends the end of an answer that says whether rows were left out.
func appendTruncated(b []byte, truncated bool) []byte {
	b = strconv.AppendBool(append(b, `],"truncated":`...), truncated)
	return append(b, "}\n"...)
}

// groupBytes is the memory of a group's value in a row.
func groupBytes(g query.Group) int {
	switch g.By {
	case query.ByEventName:
		return event.EventNameBytesMax
	case query.ByConversation:
		return event.ConversationIDBytesMax
	case query.ByMetadata:
	}
	return metadataGroupBytes
}

// measures takes measure, which may be repeated, and returns the texts too, which name the measures
// in the answer.
func (p *params) measures() ([]query.Measure, []string) {
	texts := p.many("measure")
	switch {
	case len(texts) == 0:
		p.fail(event.CodeRequired, "measure", "is required, such as measure=events")
	case len(texts) > measuresMax:
		p.fail(event.CodeTooLarge, "measure", "is given more than %d times", measuresMax)
		return nil, nil
	}
	var measures []query.Measure
	for i, text := range texts {
		m, ok := parseMeasure(text)
		if !ok {
			p.fail(event.CodeInvalidValue, "measure", "must be events, errors, error_rate, conversations, or sum, avg, min, max or a quantile such as p95 "+
				"of latency or of a member of the metadata, such as sum(metadata.tokens)")
			return nil, nil
		}
		if slices.Contains(texts[:i], text) {
			p.fail(event.CodeInvalidValue, "measure", "names one measure twice")
		}
		measures = append(measures, m)
	}
	return measures, texts
}

func parseMeasure(text string) (query.Measure, bool) {
	switch text {
	case "events":
		return query.Measure{Function: query.CountEvents}, true
	case "errors":
		return query.Measure{Function: query.CountErrors}, true
	case "error_rate":
		return query.Measure{Function: query.ErrorRate}, true
	case "conversations":
		return query.Measure{Function: query.CountConversations}, true
	}
	function, operand, ok := strings.Cut(text, "(")
	operand, closed := strings.CutSuffix(operand, ")")
	var m query.Measure
	if operand != "latency" {
		var isMember bool
		m.MetadataKey, isMember = metadataKey(operand)
		ok = ok && isMember
	}
	switch function {
	case "sum":
		m.Function = query.Sum
	case "avg":
		m.Function = query.Average
	case "min":
		m.Function = query.Minimum
	case "max":
		m.Function = query.Maximum
	default:
		percent, isQuantile := strings.CutPrefix(function, "p")
		// A percentage is read as a decimal, because 99.9 / 100 may not be 0.999.
		level, err := strconv.ParseFloat(percent+"e-2", 64)
		if !isQuantile || err != nil || strings.Trim(percent, "0123456789.") != "" || !(level > 0 && level < 1) {
			return m, false
		}
		m.Function, m.Level = query.Quantile, level
	}
	return m, ok && closed
}

// metadataKey returns the key of a member that is written as metadata.KEY.
func metadataKey(text string) (key string, ok bool) {
	key, ok = strings.CutPrefix(text, metadataPrefix)
	return key, ok && isMetadataKey(key)
}

// isMetadataKey reports whether a member with the key can be asked for. ClickHouse would
// look for the member that is named by what comes before U+0000.
func isMetadataKey(key string) bool { return key != "" && !strings.Contains(key, "\x00") }

// groupsOf takes what rows are grouped by, which may be repeated up to most times. It returns
// the names of the groups in the answer too.
func (p *params) groupsOf(name string, most int) ([]query.Group, []string) {
	texts := p.many(name)
	if len(texts) > most {
		p.fail(event.CodeTooLarge, name, "is given more than %d times", most)
		return nil, nil
	}
	var groups []query.Group
	names := slices.Clone(texts)
	for i, text := range texts {
		g := query.Group{By: query.ByMetadata}
		ok := true
		switch text {
		case "event_name":
			g.By = query.ByEventName
		case "conversation":
			g.By, names[i] = query.ByConversation, "conversation_id"
		default:
			g.MetadataKey, ok = metadataKey(text)
		}
		switch {
		case !ok:
			p.fail(event.CodeInvalidValue, name, "must be event_name, conversation, or a member of the metadata such as metadata.plan")
		case slices.Contains(texts[:i], text):
			p.fail(event.CodeInvalidValue, name, "names one group twice")
		}
		groups = append(groups, g)
	}
	return groups, names
}

// orderOf takes the order of rows: the index of a measure, or [query.OrderByTime].
func (p *params) orderOf(measures []string, byTime bool) (index int, descending bool) {
	if byTime {
		index = query.OrderByTime
	}
	if value, ok := p.one("order_by"); ok {
		index = slices.Index(measures, value)
		if index < 0 && (!byTime || value != "time") {
			p.fail(event.CodeInvalidValue, "order_by", "must be one of the measures, or time where there is an interval")
			index = 0
		}
	}
	// Times ascend and measures descend, if it is not said otherwise.
	if index == query.OrderByTime {
		return index, p.choice("order", "asc", "desc") == 1
	}
	return index, p.choice("order", "desc", "asc") == 0
}

// zone takes the time zone.
func (p *params) zone() *time.Location {
	name, ok := p.one("tz")
	if !ok {
		return time.UTC
	}
	// "Local" would be the zone of this host.
	if name != "" && name != "Local" && len(name) <= zoneBytesMax {
		if zone, err := time.LoadLocation(name); err == nil {
			return zone
		}
	}
	p.fail(event.CodeInvalidValue, "tz", "must be the name of a time zone, such as Europe/Berlin or Asia/Kolkata")
	return time.UTC
}

// interval takes the length of a bucket, such as 5m, 1h, 1d, 1w or 1mo.
func (p *params) interval(name string) (i query.Interval, ok bool) {
	value, ok := p.one(name)
	if !ok {
		return query.Interval{Unit: query.Hour, Count: 1}, false
	}
	for _, u := range [...]struct {
		text string
		unit query.Unit
	}{{"mo", query.Month}, {"s", query.Second}, {"m", query.Minute}, {"h", query.Hour}, {"d", query.Day}, {"w", query.Week}} {
		digits, isUnit := strings.CutSuffix(value, u.text)
		if count, err := strconv.ParseUint(digits, 10, 29); isUnit && err == nil && count > 0 {
			return query.Interval{Unit: u.unit, Count: int64(count)}, true
		}
	}
	p.fail(event.CodeInvalidValue, name, "must be a number and a unit of s, m, h, d, w or mo, such as 1d")
	return query.Interval{Unit: query.Hour, Count: 1}, false
}

// appendNumber appends a number, or null where there is none.
func appendNumber(b []byte, n query.Number) []byte {
	switch {
	case n.Digits != "":
		return append(b, n.Digits...)
	case math.IsNaN(n.Float) || math.IsInf(n.Float, 0):
		return append(b, "null"...)
	}
	return jsontext.AppendFloat(b, n.Float, 64)
}
