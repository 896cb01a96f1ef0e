package clickhouse

import (
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// selection selects the events of a filter. Columns that never change go into prewhere,
// which is fast, and correct before FINAL. Columns that an update or a tombstone changes
// go into where, which is applied after FINAL. conversation_id belongs to these,
// because a tombstone has none.
type selection struct {
	prewhere, where string
	params          conn.Parameters
	settings        []ch.Setting
	// names is how many names of parameters are taken.
	names int
}

// conditions returns a builder of more expressions, whose parameters have other names than those
// of the selection. The caller puts its parameters into the selection.
func (sel *selection) conditions() conditions {
	return conditions{params: sel.params, count: sel.names}
}

// from returns the FROM clause. It has a WHERE clause at its end.
func (sel *selection) from() string {
	return " FROM events FINAL PREWHERE " + sel.prewhere + " WHERE " + sel.where
}

// Expressions of the bounds of a selection.
const (
	sinceExpr = "fromUnixTimestamp64Micro({since:Int64}, 'UTC')"
	untilExpr = "fromUnixTimestamp64Micro({until:Int64}, 'UTC')"
)

// selectEvents returns the selection of a filter.
func (s *Store) selectEvents(f query.Filter) selection {
	var b conditions
	sel := selection{prewhere: "visible", settings: s.readSettings()}
	since, until := clampMicros(f.SinceMicros), clampMicros(f.UntilMicros)
	if since > 0 || until < query.MicrosMax {
		// The primary key begins with toDate(timestamp), which ClickHouse does not derive
		// from a condition on timestamp.
		sel.prewhere += " AND timestamp >= " + sinceExpr + " AND timestamp < " + untilExpr +
			" AND indexHint(toDate(timestamp) >= toDate(" + sinceExpr + ") AND toDate(timestamp) <= toDate(" + untilExpr + "))"
		b.params = b.params.Int("since", since).Int("until", until)
	}
	b.and("deleted = 0")
	if f.ConversationID != "" {
		sel.prewhere += " AND conversation_hash = {hash:UInt32}"
		b.params = b.params.Uint("hash", uint64(event.ConversationHash(f.ConversationID)))
		b.and("conversation_id = " + b.text(f.ConversationID))
	}
	b.filter(f)
	if len(f.Metadata) > 0 {
		sel.settings = append(sel.settings, metadataSettings...)
	}
	sel.where, sel.params, sel.names = b.sql.String(), b.params, b.count
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
}

// filter adds the conditions of a filter on columns that an update changes.
func (b *conditions) filter(f query.Filter) {
	switch len(f.EventNames) {
	case 0:
	case 1:
		b.and("event_name = " + b.text(f.EventNames[0]))
	default:
		names := make([]string, len(f.EventNames))
		for i, name := range f.EventNames {
			names[i] = b.text(name)
		}
		b.and("event_name IN (" + strings.Join(names, ", ") + ")")
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

// float returns an expression of the number.
func (b *conditions) float(value float64) string {
	// Go's shortest text of a float64 is read as the same number again.
	return "toFloat64(" + b.text(strconv.FormatFloat(value, 'g', -1, 64)) + ")"
}
