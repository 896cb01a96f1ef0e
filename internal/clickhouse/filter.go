package clickhouse

import (
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// selection selects the events of a filter. Columns that never change go into bounds,
// and so into PREWHERE, which is fast, and correct before FINAL. Columns that an update
// or a tombstone changes go into where, which is applied after FINAL. conversation_id
// belongs to these, because a tombstone has none.
type selection struct {
	// bounds has conditions on the time and the conversation, each with AND before it. All
	// tables of events have their columns.
	bounds   string
	where    string
	params   conn.Parameters
	settings []ch.Setting
	// names is how many names of parameters are taken.
	names int
}

// conditions returns a builder of more expressions. Its parameters have other names than
// those of the selection, which gets them by [selection.take].
func (sel *selection) conditions() conditions {
	return conditions{params: sel.params, count: sel.names}
}

// take takes over what the expressions of the builder need: their parameters and
// settings.
func (sel *selection) take(b *conditions) {
	sel.params, sel.names = b.params, b.count
	if b.readsMetadata {
		sel.settings = append(sel.settings, metadataSettings...)
	}
}

// from returns the FROM clause. It has a WHERE clause at its end.
func (sel *selection) from() string {
	return " FROM events FINAL PREWHERE visible" + sel.bounds + " WHERE " + sel.where
}

// Expressions of the bounds of a selection.
const (
	sinceExpr = "fromUnixTimestamp64Micro({since:Int64}, 'UTC')"
	untilExpr = "fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
	// lastExpr is the latest time before until, which may be of the day before.
	lastExpr = "fromUnixTimestamp64Micro(greatest({until:Int64} - 1, 0), 'UTC')"
)

// selectEvents returns the selection of a filter.
func (s *Store) selectEvents(f query.Filter) selection {
	var b conditions
	sel := selection{settings: s.readSettings()}
	since, until := clampMicros(f.SinceMicros), clampMicros(f.UntilMicros)
	if since > 0 || until < query.MicrosMax {
		// The primary key begins with toDate(timestamp), which ClickHouse does not derive
		// from a condition on timestamp.
		sel.bounds += " AND timestamp >= " + sinceExpr + " AND timestamp < " + untilExpr +
			" AND indexHint(toDate(timestamp) >= toDate(" + sinceExpr + ") AND toDate(timestamp) <= toDate(" + lastExpr + "))"
		b.params = b.params.Int("since", since).Int("until", until)
	}
	b.and("deleted = 0")
	if f.ConversationID != "" {
		sel.bounds += " AND conversation_hash = {hash:UInt32}"
		b.params = b.params.Uint("hash", uint64(event.ConversationHash(f.ConversationID)))
		b.and("conversation_id = " + b.text(f.ConversationID))
	}
	b.filter(f)
	sel.take(&b)
	sel.where = b.sql.String()
	return sel
}

// clampMicros brings a time into the range of the tables' sort key. Later times would
// wrap around.
func clampMicros(micros int64) int64 { return min(max(micros, 0), query.MicrosMax) }

// conditions builds a conjunction, and the parameters of its values.
type conditions struct {
	sql    strings.Builder
	params conn.Parameters
	count  int
	// readsMetadata says that an expression parses the metadata.
	readsMetadata bool
}

// filter adds the conditions of a filter on columns that an update changes.
func (b *conditions) filter(f query.Filter) {
	switch len(f.EventNames) {
	case 0:
	case 1:
		b.and("event_name = " + b.text(f.EventNames[0]))
	default:
		b.and("event_name IN (" + b.texts(f.EventNames) + ")")
	}
	switch f.Errors {
	case query.AnyErrors:
	case query.WithError:
		b.and("error.null = 0")
	case query.WithoutError:
		b.and("error.null = 1")
	}
	if f.LatencyMin != nil {
		b.and("latency >= " + b.float(*f.LatencyMin))
	}
	if f.LatencyMax != nil {
		b.and("latency <= " + b.float(*f.LatencyMax))
	}
	for _, m := range f.Metadata {
		b.metadata(m)
	}
}

func (b *conditions) and(condition string) {
	if b.sql.Len() > 0 {
		b.sql.WriteString(" AND ")
	}
	b.sql.WriteString(condition)
}

// name returns a new name of a parameter.
func (b *conditions) name() string {
	b.count++
	return "filter_" + strconv.Itoa(b.count)
}

// text returns an expression of the text.
func (b *conditions) text(value string) string {
	name := b.name()
	b.params = b.params.Text(name, value)
	return "{" + name + ":String}"
}

// texts returns expressions of the texts, with commas between them.
func (b *conditions) texts(values []string) string {
	expressions := make([]string, len(values))
	for i, value := range values {
		expressions[i] = b.text(value)
	}
	return strings.Join(expressions, ", ")
}

// float returns an expression of the number.
func (b *conditions) float(value float64) string {
	// Go's shortest text of a float64 is read as the same number again.
	return "toFloat64(" + b.text(strconv.FormatFloat(value, 'g', -1, 64)) + ")"
}
