package clickhouse

import "strconv"

// values names the values of members of the metadata for the rest of a query. Each member is
// parsed once for each event.
type values struct {
	conditions
	// with are the definitions of the names.
	with    []string
	members map[string]memberValue
	numbers map[string]memberNumber
}

// memberValue has the names of the values of one member.
type memberValue struct {
	metadataMember
	// raw is the member as compact JSON; empty where it is absent. A number that is not an integer may be wrong by
	// [nearlyEqual].
	raw string
	// integer is the value as Nullable(Int128), for an integer of at most 64 bits.
	integer string
}

// memberNumber has the names of the values of a member as a number.
type memberNumber struct {
	memberValue
	// float is the value as Nullable(Float64).
	float string
}

// define names an expression.
func (v *values) define(kind, expression string) string {
	name := kind + "_" + strconv.Itoa(len(v.with)+1)
	v.with = append(v.with, expression+" AS "+name)
	return name
}

// value returns the values of a member.
func (v *values) value(key string) memberValue {
	if m, ok := v.members[key]; ok {
		return m
	}
	m := memberValue{metadataMember: v.member(key)}
	m.raw = v.define("raw", "if("+m.likely+", JSONExtractRaw(metadata, "+m.key+"), '')")
	// Text of more than 64 bits is NULL for both.
	m.integer = v.define("integer", "ifNull(toInt128(toInt64OrNull("+m.raw+")), toInt128(toUInt64OrNull("+m.raw+")))")
	if v.members == nil {
		v.members, v.numbers = make(map[string]memberValue), make(map[string]memberNumber)
	}
	v.members[key] = m
	return m
}

// number returns the values of a member as a number.
func (v *values) number(key string) memberNumber {
	m := v.value(key)
	if n, ok := v.numbers[key]; ok {
		return n
	}
	parsed := "toFloat64OrNull(" + m.raw + ")"
	exact := "toFloat64OrNull(" + m.digits() + ")"
	if m.quoted != "" {
		// The digits after the first text that looks like the member are nearly always those of the member.
		// They are, if they make nearly the same number.
		found := v.text(m.quoted + ":")
		first := "toFloat64OrNull(extract(substring(metadata, position(metadata, " + found + ") + " + strconv.Itoa(len(m.quoted)+1) + ", 64), '^[0-9.eE+-]+'))"
		exact = "if(abs(" + first + " - " + parsed + ") <= " + strconv.FormatFloat(nearlyEqual, 'g', -1, 64) + " * abs(" + parsed + "), " + first + ", " + exact + ")"
	}
	// A string begins with a quote, and null, true, an object or an array is no number either.
	n := memberNumber{memberValue: m}
	n.float = v.define("float", "multiIf("+m.integer+" IS NOT NULL, toFloat64("+m.integer+"), "+parsed+" IS NOT NULL, "+exact+", NULL)")
	v.numbers[key] = n
	return n
}

// group returns an expression of the member as JSON, which is the same for equal values; "null" where the member is
// absent.
func (v *values) group(key string) string {
	n := v.number(key)
	return "ifNull(multiIf(" + n.integer + " IS NOT NULL, toString(" + n.integer + "), " + n.float + " IS NOT NULL, toString(" + n.float + "), " +
		n.raw + " = '', 'null', " + n.raw + "), 'null')"
}
