package clickhouse

import (
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// from returns the FROM clause of an analytics query. Columns that never change go into
// PREWHERE, which is fast and correct before FINAL. Columns that an update or a
// tombstone changes go into WHERE, which is applied after FINAL. conversation_id
// belongs to these, because a tombstone has none.
func (s *Store) from(f query.Filter, more string) (sql string, params conn.Parameters, settings []ch.Setting) {
	var b strings.Builder
	const since, until = "fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
	// The primary key begins with toDate(timestamp), which ClickHouse does not derive
	// from a condition on timestamp.
	b.WriteString(" FROM events FINAL PREWHERE visible AND timestamp >= " + since + " AND timestamp < " + until +
		" AND indexHint(toDate(timestamp) >= toDate(" + since + ") AND toDate(timestamp) <= toDate(" + until + "))")
	params = conn.Parameters{}.Int("since", f.SinceMicros).Int("until", f.UntilMicros)
	if f.ConversationID != "" {
		b.WriteString(" AND conversation_hash = {hash:UInt32}")
		params = params.Uint("hash", uint64(event.ConversationHash(f.ConversationID)))
	}
	b.WriteString(" WHERE deleted = 0" + more)
	if f.ConversationID != "" {
		b.WriteString(" AND conversation_id = {conversation_id:String}")
		params = params.Text("conversation_id", f.ConversationID)
	}
	if f.EventName != "" {
		b.WriteString(" AND event_name = {event_name:String}")
		params = params.Text("event_name", f.EventName)
	}
	settings = s.readSettings()
	for i, m := range f.Metadata {
		key, value := "metadata_key_"+strconv.Itoa(i), "metadata_value_"+strconv.Itoa(i)
		k, v := "{"+key+":String}", "{"+value+":String}"
		params = params.Text(key, m.Key).Text(value, m.Value)
		b.WriteString(" AND (JSONType(metadata, " + k + ") = 'String' AND JSONExtractString(metadata, " + k + ") = " + v)
		if isJSONScalar(m.Value) {
			// Both sides through the same function, which writes 1.50 as 1.5.
			b.WriteString(" OR JSONType(metadata, " + k + ") IN ('Int64', 'UInt64', 'Double', 'Bool') AND JSONExtractRaw(metadata, " + k + ") = JSONExtractRaw(concat('{\"v\":', " + v + ", '}'), 'v')")
		}
		b.WriteString(")")
	}
	if len(f.Metadata) > 0 {
		// simdjson gives up on a whole object for one integer of more than 64 bits.
		settings = append(settings, conn.Setting("allow_simdjson", "0"))
	}
	return b.String(), params, settings
}

// isJSONScalar reports whether text is a JSON number, true or false.
func isJSONScalar(text string) bool {
	if text == "true" || text == "false" {
		return true
	}
	// This is the grammar of RFC 8259; strconv accepts more.
	rest := strings.TrimPrefix(text, "-")
	digits := func() bool {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		rest = rest[n:]
		return n > 0
	}
	if after, ok := strings.CutPrefix(rest, "0"); ok {
		rest = after
	} else if !digits() {
		return false
	}
	if after, ok := strings.CutPrefix(rest, "."); ok {
		if rest = after; !digits() {
			return false
		}
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		rest = rest[1:]
		if rest != "" && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		if !digits() {
			return false
		}
	}
	return rest == ""
}
