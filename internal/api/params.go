package api

import (
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// timestampMaxMillis is the end of the year 9999.
const timestampMaxMillis = 253_402_300_799_999

// params reads a query string strictly: each parameter is taken once, and the
// first mistake is kept until finish tells it.
type params struct {
	values url.Values
	// pathID is the id in the path, empty where the resource takes it as a
	// parameter.
	pathID string
	err    error
}

func newParams(r *http.Request) (*params, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query string is not valid")
	}
	return &params{values: values, pathID: r.PathValue("id")}, nil
}

// finish returns the first mistake; a parameter that nobody took is one.
func (p *params) finish() error {
	if p.err != nil {
		return p.err
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range p.values {
			if !yield(name) {
				return
			}
		}
	}) {
		return event.Errorf(event.CodeUnknownField, name, "is not a parameter of this resource")
	}
	return nil
}

func (p *params) fail(code event.Code, field, format string, args ...any) {
	if p.err == nil {
		p.err = event.Errorf(code, field, format, args...)
	}
}

// id is the id in the path, or takes the parameter where the path has none.
// Proxies and clients may change a path: they decode %2F, and take the ids "."
// and ".." for steps.
func (p *params) id() string {
	if p.pathID != "" {
		return p.pathID
	}
	id, ok := p.one("id")
	if !ok || id == "" {
		p.fail(event.CodeRequired, "id", "is required, as a parameter or in the path")
	}
	return id
}

// many takes a parameter that may be repeated.
func (p *params) many(name string) []string {
	values := p.values[name]
	delete(p.values, name)
	return values
}

// one takes a parameter that may be there once.
func (p *params) one(name string) (value string, ok bool) {
	values := p.many(name)
	if len(values) > 1 {
		p.fail(event.CodeInvalidValue, name, "must be given once")
	}
	if len(values) == 0 {
		return "", false
	}
	return values[0], true
}

// text takes a parameter of 1 to bytesMax bytes; empty where it is absent.
func (p *params) text(name string, bytesMax int) string {
	value, ok := p.one(name)
	switch {
	case ok && value == "":
		p.fail(event.CodeInvalidValue, name, "must not be empty")
	case len(value) > bytesMax:
		p.fail(event.CodeTooLarge, name, "is longer than %d bytes", bytesMax)
	}
	return value
}

// count takes a whole number of 1 to most.
func (p *params) count(name string, absent, most int) int {
	value, ok := p.one(name)
	if !ok {
		return min(absent, most)
	}
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil || n < 1 || n > uint64(most) {
		p.fail(event.CodeInvalidValue, name, "must be a whole number from 1 to %d", most)
		return absent
	}
	return int(n)
}

// flag takes true or false.
func (p *params) flag(name string) bool {
	value, ok := p.one(name)
	if ok && value != "true" && value != "false" {
		p.fail(event.CodeInvalidValue, name, "must be true or false")
	}
	return value == "true"
}

// choice takes one of the words and returns its index.
func (p *params) choice(name string, words ...string) int {
	value, ok := p.one(name)
	if !ok {
		return 0
	}
	i := slices.Index(words, value)
	if i < 0 {
		p.fail(event.CodeInvalidValue, name, "must be one of %s", strings.Join(words, ", "))
		return 0
	}
	return i
}

// span takes a length of time such as 90s, 5m, 24h or 7d.
func (p *params) span(name string, absent time.Duration) time.Duration {
	value, ok := p.one(name)
	if !ok {
		return absent
	}
	d, ok := parseSpan(value)
	if !ok || d < time.Second {
		p.fail(event.CodeInvalidValue, name, "must be a number and a unit of s, m, h or d, such as 5m")
		return absent
	}
	return d
}

// moment takes a time, in Unix microseconds: a span before now, or what a
// timestamp of an event may be, RFC 3339 or Unix milliseconds.
func (p *params) moment(name string, absent int64, now time.Time) int64 {
	value, ok := p.one(name)
	if !ok {
		return absent
	}
	if d, ok := parseSpan(value); ok {
		return max(0, now.Add(-d).UnixMicro())
	}
	// Nobody asks about the first days of 1970, which seconds would be.
	hint := event.TimeUnitHint(value)
	if ms, err := strconv.ParseUint(value, 10, 63); err == nil && ms <= timestampMaxMillis && hint == "" {
		return int64(ms) * 1000
	}
	// An unescaped "+" of an offset arrives as a space.
	micros, ok := event.ParseRFC3339([]byte(strings.Replace(value, " ", "+", 1)))
	if ok && micros >= 0 && micros/1000 <= timestampMaxMillis {
		return micros
	}
	p.fail(event.CodeInvalidValue, name, "must be RFC 3339, Unix milliseconds, or a time before now such as 7d, 24h or 30m%s", hint)
	return absent
}

// quantiles takes the levels of q, and appends their texts, which name them in
// the answer.
func (p *params) quantiles(most int) (levels []float64, names []string) {
	values := p.many("q")
	if len(values) == 0 {
		values = []string{"0.95"}
	}
	if len(values) > most {
		p.fail(event.CodeTooLarge, "q", "is given more than %d times", most)
		return nil, nil
	}
	for _, value := range values {
		level, err := strconv.ParseFloat(value, 64)
		if err != nil || !(level > 0 && level < 1) {
			p.fail(event.CodeInvalidValue, "q", "must be a number above 0 and below 1")
			return nil, nil
		}
		if slices.Contains(levels, level) {
			p.fail(event.CodeInvalidValue, "q", "names one quantile twice")
		}
		levels = append(levels, level)
		names = append(names, strconv.FormatFloat(level, 'f', -1, 64))
	}
	return levels, names
}

// parseSpan reads digits and one of s, m, h, d.
func parseSpan(s string) (time.Duration, bool) {
	if len(s) < 2 {
		return 0, false
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 's':
		unit = time.Second
	case 'm':
		unit = time.Minute
	case 'h':
		unit = time.Hour
	case 'd':
		unit = 24 * time.Hour
	default:
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 63)
	if err != nil || n > uint64(math.MaxInt64/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}
