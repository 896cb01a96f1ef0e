package body

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/jsonscan"
)

// eventName reads the member event_name, which must be a string.
func (p *Parser) eventName(raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errType(memberEventName, "a string")
	}
	return p.Rules.EventName(jsonscan.Unquote(raw))
}

func parseMetadata(raw []byte, spaces int, finite bool) ([]byte, error) {
	if raw[0] != '{' {
		return nil, errType(memberMetadata, "an object")
	}
	if len(raw)-spaces > event.MetadataBytesMax {
		return nil, event.ErrMetadataTooLarge()
	}
	if !finite && !jsonscan.NumbersFinite(raw) {
		return nil, event.ErrMetadataNumber()
	}
	return jsonscan.Compact(raw, spaces), nil
}

func parseLatency(raw []byte) (float64, error) {
	if !jsonscan.StartsNumber(raw[0]) {
		return 0, errType(memberLatency, "a number of milliseconds")
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || v < 0 {
		return 0, event.Errorf(event.CodeInvalidValue, "latency", "must be a finite number, 0 or more")
	}
	if v == 0 {
		return 0, nil // -0 is no latency of its own
	}
	return v, nil
}

func parseContent(raw []byte, spaces int) event.Content {
	if raw[0] == '"' {
		return event.Content{Kind: event.KindString, Data: jsonscan.Unquote(raw)}
	}
	return event.Content{Kind: event.KindJSON, Data: jsonscan.Compact(raw, spaces)}
}

// parseTimestamp reads RFC 3339 text or Unix milliseconds into Unix
// microseconds. What is finer is cut off.
func parseTimestamp(raw []byte, now time.Time) (int64, error) {
	var micros int64
	switch {
	case raw[0] == '"':
		text := jsonscan.Unquote(raw)
		var ok bool
		if micros, ok = event.ParseRFC3339(text); !ok {
			if _, err := strconv.ParseFloat(string(text), 64); err == nil {
				return 0, event.Errorf(event.CodeInvalidValue, "timestamp", "is text; Unix milliseconds are a number, without quotation marks%s", event.TimeUnitHint(text))
			}
			return 0, event.Errorf(event.CodeInvalidValue, "timestamp", "is not RFC 3339, such as 2026-01-31T12:00:00.25Z")
		}
	case jsonscan.StartsNumber(raw[0]):
		if bytes.ContainsAny(raw, ".eE") {
			return 0, event.Errorf(event.CodeInvalidValue, "timestamp", "must be a whole number of Unix milliseconds%s", event.TimeUnitHint(raw))
		}
		ms, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || ms < event.TimestampMin/1000 || ms > math.MaxInt64/1000 || !event.InTimestampRange(ms*1000, now) {
			return 0, event.Errorf(event.CodeInvalidValue, "timestamp",
				"must lie between 2000-01-01T00:00:00Z and 24 h from now, in Unix milliseconds%s", event.TimeUnitHint(raw))
		}
		return ms * 1000, nil
	default:
		return 0, errType(memberTimestamp, "an RFC 3339 string or a whole number of Unix milliseconds")
	}
	if !event.InTimestampRange(micros, now) {
		return 0, event.Errorf(event.CodeInvalidValue, "timestamp", "must lie between 2000-01-01T00:00:00Z and 24 h from now")
	}
	return micros, nil
}
