package event

import (
	"strconv"
	"time"
)

// InTimestampRange reports whether an event that is received now may have the
// timestamp, given in Unix microseconds.
func InTimestampRange(micros int64, now time.Time) bool {
	return micros >= TimestampMin && micros <= now.Add(TimestampAhead).UnixMicro()
}

// TimeUnitHint is the rest of an error about a time that should be Unix
// milliseconds. It asks whether the number is in another unit, where it would
// then be a time of this century, and is empty otherwise.
func TimeUnitHint[T ~string | ~[]byte](number T) string {
	v, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return ""
	}
	for _, unit := range [...]struct {
		name, change string
		micros       float64
	}{
		{"milliseconds", "", 1e3},
		{"seconds", "multiply it by 1,000", 1e6},
		{"microseconds", "divide it by 1,000", 1},
		{"nanoseconds", "divide it by 1,000,000", 1e-3},
	} {
		// 2000-01-01 to 2100-01-01.
		if at := v * unit.micros; at < float64(TimestampMin) || at >= 4_102_444_800e6 {
			continue
		}
		if unit.change == "" {
			return ""
		}
		return "; is it in " + unit.name + "? Then " + unit.change
	}
	return ""
}

// ParseRFC3339 reads a date-time of RFC 3339 §5.6 into Unix microseconds; what is
// finer is cut off. The letters T and Z may be lower-case. The time package is
// more lenient: it takes a comma for the point, and hours and offsets that the RFC
// does not. Leap seconds have no Unix time and are refused.
func ParseRFC3339(s []byte) (micros int64, ok bool) {
	const layout = "2006-01-02T15:04:05"
	if len(s) <= len(layout) || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	year, ok0 := digits(s[0:4])
	month, ok1 := digits(s[5:7])
	day, ok2 := digits(s[8:10])
	hour, ok3 := digits(s[11:13])
	minute, ok4 := digits(s[14:16])
	second, ok5 := digits(s[17:19])
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	if t.Month() != time.Month(month) || t.Day() != day {
		return 0, false // a day that the month does not have
	}
	micros = t.UnixMicro()
	s = s[len(layout):]
	if s[0] == '.' {
		n := 1
		for scale := int64(100_000); n < len(s) && s[n]-'0' <= 9; n++ {
			micros += int64(s[n]-'0') * scale
			scale /= 10
		}
		if n == 1 {
			return 0, false
		}
		s = s[n:]
	}
	if len(s) == 1 && s[0]|0x20 == 'z' {
		return micros, true
	}
	if len(s) != len("+00:00") || (s[0] != '+' && s[0] != '-') || s[3] != ':' {
		return 0, false
	}
	hour, ok0 = digits(s[1:3])
	minute, ok1 = digits(s[4:6])
	if !ok0 || !ok1 || hour > 23 || minute > 59 {
		return 0, false
	}
	offset := int64(hour*60+minute) * time.Minute.Microseconds()
	if s[0] == '-' {
		offset = -offset
	}
	return micros - offset, true
}

func digits(s []byte) (n int, ok bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
