package clickhouse

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

// metadataSettings are the settings of a query with conditions on metadata.
//
//nolint:gochecknoglobals // constants
var metadataSettings = []ch.Setting{
	// simdjson gives up on a whole object for one integer of more than 64 bits.
	conn.Setting("allow_simdjson", "0"),
	conn.Setting("precise_float_parsing", "1"),
}

// quotedNumbers is the metadata with every number turned into a string, so that its
// digits can be read. The pattern takes strings whole, and a last number of ours
// keeps it from beginning in the middle of a string after the last number.
const quotedNumbers = `replaceRegexpAll(concat(metadata, '0'), '((?:"(?:[^"\\\\]|\\\\.)*"|[^"0-9-])*)(-?[0-9][0-9.eE+-]*)', '\\1"\\2"')`

// metadata adds a condition on a member of the metadata.
func (b *conditions) metadata(m query.MetadataFilter) {
	member := b.member(m.Key)
	switch m.Op {
	case query.Exists:
		b.and(member.likely + " AND JSONHas(metadata, " + member.key + ")")
	case query.Missing:
		b.and("NOT (" + member.likely + " AND JSONHas(metadata, " + member.key + "))")
	case query.Equal:
		b.and(member.likely + " AND (" + b.equal(member, m.Value) + ")")
	case query.NotEqual:
		b.and("NOT (" + member.likely + " AND (" + b.equal(member, m.Value) + "))")
	case query.Less:
		b.and(member.likely + " AND " + b.compare(member, m.Value, "<"))
	case query.LessOrEqual:
		b.and(member.likely + " AND " + b.compare(member, m.Value, "<="))
	case query.Greater:
		b.and(member.likely + " AND " + b.compare(member, m.Value, ">"))
	case query.GreaterOrEqual:
		b.and(member.likely + " AND " + b.compare(member, m.Value, ">="))
	default:
		panic(fmt.Sprintf("BUG: operator %d", m.Op))
	}
}

// member returns the expressions of a member.
func (b *conditions) member(key string) metadataMember {
	b.readsMetadata = true
	member := metadataMember{key: b.text(key)}
	// The metadata's text has the key as JSON, unless it has an escape. Most events without
	// the member are found out by that, without parsing.
	quoted, err := jsontext.AppendQuote(nil, key)
	if err == nil && !strings.Contains(string(quoted), `\`) {
		member.quoted = string(quoted)
		member.likely = "(position(metadata, " + b.text(member.quoted) + ") > 0 OR position(metadata, '\\\\') > 0)"
	} else {
		member.likely = "position(metadata, '\\\\') > 0"
	}
	return member
}

// metadataMember is a top-level member of the metadata in SQL.
type metadataMember struct {
	// key is the expression of its key.
	key string
	// likely is a cheap condition that holds for all metadata with the member.
	likely string
	// quoted is the key as JSON, if its JSON has no escape.
	quoted string
}

func (m metadataMember) call(function string) string { return function + "(metadata, " + m.key + ")" }

// isString holds for a member that is a string.
func (m metadataMember) isString() string { return m.call("JSONType") + " = 'String'" }

// digits returns the expression of a number as it is written.
func (m metadataMember) digits() string {
	return "JSONExtractString(left(" + quotedNumbers + ", -3), " + m.key + ")"
}

// equal returns the condition of a member that is equal to the value.
func (b *conditions) equal(m metadataMember, value string) string {
	sql := m.isString() + " AND " + m.call("JSONExtractString") + " = " + b.text(value)
	switch n, ok := parseNumber(value); {
	case ok:
		sql += " OR " + b.compareNumbers(m, n, "=")
	case value == "true", value == "false":
		sql += " OR " + m.call("JSONType") + " = 'Bool' AND " + m.call("JSONExtractBool") + " = " + value
	}
	return sql
}

// compare returns the condition of a member that compares with the value: a number
// with a number, otherwise a string with a string.
func (b *conditions) compare(m metadataMember, value, operator string) string {
	if n, ok := parseNumber(value); ok {
		return b.compareNumbers(m, n, operator)
	}
	return "(" + m.isString() + " AND " + m.call("JSONExtractString") + " " + operator + " " + b.text(value) + ")"
}

// number is a JSON number of a filter.
type number struct {
	// floor and ceil are the integers next to it, equal for an integer.
	floor, ceil *big.Int
	float       float64
}

// exponentMax bounds the exponent of a number, which big.Rat would write out.
const exponentMax = 400

// parseNumber parses a number in the grammar of JSON. It returns false for any other
// text, and for a number beyond float64.
func parseNumber(text string) (number, bool) {
	if text == "" || text[0] != '-' && (text[0] < '0' || text[0] > '9') || !json.Valid([]byte(text)) || strings.ContainsAny(text, " \t\r\n") {
		return number{}, false
	}
	float, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return number{}, false
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		if exponent, err := strconv.Atoi(text[i+1:]); err != nil || exponent < -exponentMax || exponent > exponentMax {
			return number{}, false
		}
	}
	exact, ok := new(big.Rat).SetString(text)
	if !ok {
		return number{}, false
	}
	// Div rounds to the floor for a positive divisor.
	n := number{floor: new(big.Int).Div(exact.Num(), exact.Denom()), float: float}
	n.ceil = n.floor
	if !exact.IsInt() {
		n.ceil = new(big.Int).Add(n.floor, big.NewInt(1))
	}
	return n, true
}

// Bounds of the integers that ClickHouse reads from JSON exactly.
//
//nolint:gochecknoglobals // constants
var (
	int64Min  = big.NewInt(-1 << 63)
	uint64Max = new(big.Int).SetUint64(1<<64 - 1)
)

// nearlyEqual is the relative distance within which the float64 that ClickHouse's JSON
// parser makes of a number may be wrong, with much to spare.
const nearlyEqual = 1e-12

// compareNumbers returns the condition of a member that is a number and compares with
// n.
func (b *conditions) compareNumbers(m metadataMember, n number, operator string) string {
	kind := m.call("JSONType")
	float := b.float(n.float)
	parsed := m.call("JSONExtractFloat")
	// Each of the three is -1, 0 or 1: the member is less than n, equal, or greater.
	integers := b.compareIntegers(m, n)
	digits := m.digits()
	exact := "sign(toFloat64OrZero(" + digits + ") - " + float + ")"
	if math.Abs(n.float) >= exactFloat {
		exact = "if(match(" + digits + ", '^-?[0-9]+$'), multiIf(" +
			b.compareDigits(digits, n.ceil) + " < 0, -1, " + b.compareDigits(digits, n.floor) + " > 0, 1, 0), " + exact + ")"
	}
	floats := "multiIf(abs(" + parsed + " - " + float + ") > " + strconv.FormatFloat(nearlyEqual, 'g', -1, 64) + " * abs(" + float + "), " +
		"sign(" + parsed + " - " + float + "), " + exact + ")"
	return "multiIf(" + kind + " IN ('Int64', 'UInt64'), (" + integers + ") " + operator + " 0, " +
		kind + " = 'Double', (" + floats + ") " + operator + " 0, false)"
}

// exactFloat is the smallest power of two from which on not every integer is a float64.
const exactFloat = 1 << 53

// compareDigits compares the digits of an integer with an integer of the same sign.
func (b *conditions) compareDigits(digits string, n *big.Int) string {
	text := n.String()
	// The one with more digits is further from zero.
	further, nearer := "1", "-1"
	if n.Sign() < 0 {
		further, nearer = nearer, further
	}
	length, value := strconv.Itoa(len(text)), b.text(text)
	return "multiIf(length(" + digits + ") > " + length + ", " + further + ", length(" + digits + ") < " + length + ", " + nearer + ", " +
		digits + " > " + value + ", " + further + ", " + digits + " < " + value + ", " + nearer + ", 0)"
}

// compareIntegers compares a member that is an integer of at most 64 bits.
func (b *conditions) compareIntegers(m metadataMember, n number) string {
	switch {
	case n.floor.Cmp(uint64Max) > 0:
		return "-1"
	case n.ceil.Cmp(int64Min) < 0:
		return "1"
	}
	value := "JSONExtract(metadata, " + m.key + ", 'Int128')"
	return "multiIf(" + value + " < toInt128(" + b.text(n.ceil.String()) + "), -1, " +
		value + " > toInt128(" + b.text(n.floor.String()) + "), 1, 0)"
}
