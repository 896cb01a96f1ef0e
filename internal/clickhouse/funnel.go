package clickhouse

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

// subject returns the expression of a subject, and the condition of events that have one.
func (v *values) subject(s query.Subject) (expression, condition string) {
	if s.MetadataKey == "" {
		return "conversation_id", "true"
	}
	expression = v.define("subject", v.group(s.MetadataKey))
	return expression, expression + " != 'null'"
}

// groupOf returns the expression of a group's value, and whether it is JSON.
func (v *values) groupOf(g query.Group) (expression string, isJSON bool) {
	switch g.By {
	case query.ByEventName:
		return "CAST(event_name, 'String')", false
	case query.ByConversation:
		return "conversation_id", false
	case query.ByMetadata:
		return v.group(g.MetadataKey), true
	}
	panic(fmt.Sprintf("BUG: group %d", g.By))
}

// condition returns the conditions of a filter on columns that an update changes, as a UInt8.
func (v *values) condition(f query.Filter) string {
	step := conditions{params: v.params, count: v.count}
	step.and("true")
	step.filter(f)
	v.params, v.count = step.params, step.count
	v.readsMetadata = v.readsMetadata || step.readsMetadata
	return "ifNull(" + step.sql.String() + ", 0)"
}

// Funnel returns how many subjects of each group reached each step. Without a group there is one row,
// of no subjects too.
func (s *Store) Funnel(ctx context.Context, q query.Funnel) ([]query.FunnelRow, error) {
	sel := s.selectEvents(q.Filter)
	v := values{conditions: sel.conditions()}
	bits := make([]string, len(q.Steps))
	for i, step := range q.Steps {
		bits[i] = "bitShiftLeft(toUInt16(" + v.condition(step) + "), " + strconv.Itoa(i) + ")"
	}
	subject, hasSubject := v.subject(q.Subject)
	group, isJSON := "''", true
	if q.GroupBy != nil {
		group, isJSON = v.groupOf(*q.GroupBy)
	}
	steps := v.define("steps", strings.Join(bits, " + "))
	sel.where += " AND " + hasSubject + " AND " + steps + " != 0"
	const micros = "toUnixTimestamp64Micro(timestamp)"
	// The events of each subject, in order. A subject without the first step reaches none.
	events := "WITH " + strings.Join(v.with, ", ") + " SELECT arraySort(groupArray((" + micros + ", id, " + steps + "))) AS events," +
		" argMinIf(" + group + ", (timestamp, id), bitTest(" + steps + ", 0)) AS grouped" + sel.from() +
		" GROUP BY " + subject + " HAVING countIf(bitTest(" + steps + ", 0)) > 0"
	series := "SELECT grouped, " + seriesColumns(len(q.Steps)) + " FROM (" + events + ")"

	var (
		groups   proto.ColStr
		subjects = make([]proto.ColUInt64, len(q.Steps))
		medians  = make([]proto.ColFloat64, len(q.Steps))
		rows     []query.FunnelRow
	)
	columns := []string{"grouped AS value"}
	result := proto.Results{{Name: "value", Data: &groups}}
	if q.GroupBy == nil {
		columns[0] = "'' AS value"
	}
	for i := range q.Steps {
		step := strconv.Itoa(i + 1)
		columns = append(columns, "countIf(reached >= "+step+") AS subjects_"+step)
		result = append(result, proto.ResultColumn{Name: "subjects_" + step, Data: &subjects[i]})
		if i > 0 {
			columns = append(columns, "quantileExactInclusiveIf(0.5)(times["+step+"] - times["+strconv.Itoa(i)+"], reached >= "+step+") AS median_"+step)
			result = append(result, proto.ResultColumn{Name: "median_" + step, Data: &medians[i]})
		}
	}
	sql := "SELECT " + strings.Join(columns, ", ") + " FROM (" + series + ")"
	if q.GroupBy != nil {
		sql += " GROUP BY value"
	}
	sel.take(&v.conditions)
	err := s.db.Query(ctx, conn.RoleAnalytics, "funnel", s.readTimeout(), ch.Query{
		Body:       sql + " ORDER BY subjects_1 DESC, value LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("window", q.WindowMicros).Int("limit", int64(q.LimitRows)),
		Settings:   append(sel.settings, answerSettings(q.BytesMax)...),
		Result:     result,
		OnResult: func(_ context.Context, block proto.Block) error {
			for i := range block.Rows {
				row := query.FunnelRow{Group: groups.Row(i), Steps: make([]query.FunnelStep, len(q.Steps))}
				if !isJSON {
					row.Group = quoteJSON(row.Group)
				}
				for j := range row.Steps {
					row.Steps[j] = query.FunnelStep{Subjects: subjects[j][i], MedianMicros: math.NaN()}
					if j > 0 {
						row.Steps[j].MedianMicros = medians[j][i]
					}
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}

// seriesColumns returns the columns of a subject's series in a funnel: reached, the number of its steps, and
// times, the times of its events.
//
// For step n, series_n has an element for each event of the subject: the times of the latest series of
// n steps that ends with the event, or zeros. latest_n repeats the last series. The events are
// in order, so that the latest series of n-1 steps before an event is also the one that begins last.
// If the window does not reach from that one to the event, it reaches from none.
func seriesColumns(steps int) string {
	var columns []string
	add := func(name string, n int, expression string) {
		columns = append(columns, expression+" AS "+name+"_"+strconv.Itoa(n))
	}
	var reached, times []string
	for n := 1; n <= steps; n++ {
		of := func(name string) string { return name + "_" + strconv.Itoa(n) }
		nothing := "[" + strings.TrimSuffix(strings.Repeat("toInt64(0), ", n), ", ") + "]"
		if n == 1 {
			add("series", n, "arrayMap(e -> [if(bitTest(e.3, 0), e.1, 0)], events)")
		} else {
			before := "latest_" + strconv.Itoa(n-1)
			add("series", n, "arrayMap((e, s) -> if(bitTest(e.3, "+strconv.Itoa(n-1)+") AND s[1] > 0 AND e.1 - s[1] <= {window:Int64}, arrayPushBack(s, e.1), "+nothing+"), "+
				"events, arrayPopBack(arrayPushFront("+before+", arrayPopBack("+nothing+"))))")
		}
		add("latest", n, "arrayFill(s -> s[1] > 0, "+of("series")+")")
		add("first", n, "arrayFirst(s -> s[1] > 0, "+of("series")+")")
		reached = append([]string{"notEmpty(" + of("first") + "), " + strconv.Itoa(n)}, reached...)
		times = append([]string{"notEmpty(" + of("first") + "), " + of("first")}, times...)
	}
	return strings.Join(columns, ", ") + ", multiIf(" + strings.Join(reached, ", ") + ", 0) AS reached, multiIf(" + strings.Join(times, ", ") + ", []) AS times"
}
