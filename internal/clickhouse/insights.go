package clickhouse

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

// insights builds the query of one question.
type insights struct {
	values
	columns []string
	result  proto.Results
	// quantiles are the levels that are wanted of each operand, with the column of their
	// values.
	quantiles []*quantileColumn
}

type quantileColumn struct {
	operand, name string
	levels        []float64
	data          *proto.ColArr[float64]
}

// measureColumn is a measure in the answer.
type measureColumn struct {
	// order is the expression by which rows are ordered.
	order string
	value func(row int) query.Number
}

func (b *insights) column(expression, name string, data proto.ColResult) {
	b.columns = append(b.columns, expression+" AS "+name)
	b.result = append(b.result, proto.ResultColumn{Name: name, Data: data})
}

// count adds a column of UInt64.
func (b *insights) count(expression, name string) measureColumn {
	var data proto.ColUInt64
	b.column(expression, name, &data)
	return measureColumn{name, func(row int) query.Number {
		return query.Number{Float: float64(data[row]), Digits: strconv.FormatUint(data[row], 10)}
	}}
}

// float adds a column of Float64.
func (b *insights) float(expression, name string) measureColumn {
	var data proto.ColFloat64
	b.column(expression, name, &data)
	return measureColumn{name, func(row int) query.Number { return query.Number{Float: data[row]} }}
}

// operand returns an expression of what a measure is about, a Nullable(Float64).
func (b *insights) operand(m query.Measure) string {
	if m.MetadataKey == "" {
		return "latency"
	}
	return b.number(m.MetadataKey).float
}

// measure adds the columns of measure i.
func (b *insights) measure(i int, m query.Measure) measureColumn {
	name := "measure_" + strconv.Itoa(i)
	switch m.Function {
	case query.CountEvents:
		return b.count("count()", name)
	case query.CountErrors:
		// error.null reads only the null map.
		return b.count("countIf(error.null = 0)", name)
	case query.ErrorRate:
		return b.float("if(count() = 0, 0., countIf(error.null = 0) / count())", name)
	case query.CountConversations:
		return b.count("uniqExact(conversation_id)", name)
	case query.Sum:
		return b.sum(m, name)
	case query.Average:
		return b.float("ifNull(avg("+b.operand(m)+"), nan)", name)
	case query.Minimum:
		return b.float("ifNull(min("+b.operand(m)+"), nan)", name)
	case query.Maximum:
		return b.float("ifNull(max("+b.operand(m)+"), nan)", name)
	case query.Quantile:
		return b.quantile(m, name)
	}
	panic(fmt.Sprintf("BUG: function %d", m.Function))
}

// sum adds the columns of a sum. Integers are added on their own, so that their sum is
// exact.
func (b *insights) sum(m query.Measure, name string) measureColumn {
	if m.MetadataKey == "" {
		return b.float("ifNull(sumKahan(latency), 0.)", name)
	}
	n := b.number(m.MetadataKey)
	var (
		digits proto.ColStr
		rest   proto.ColFloat64
		others proto.ColUInt64
	)
	integers := "sum(ifNull(" + n.integer + ", toInt128(0)))"
	notInteger := "if(" + n.integer + " IS NULL, " + n.float + ", NULL)"
	b.column("toString("+integers+")", name+"_integers", &digits)
	b.column("ifNull(sumKahan("+notInteger+"), 0.)", name+"_rest", &rest)
	b.column("count("+notInteger+")", name+"_others", &others)
	return measureColumn{"toFloat64(" + integers + ") + " + name + "_rest", func(row int) query.Number {
		// ParseFloat rounds digits of any number.
		float, _ := strconv.ParseFloat(digits.Row(row), 64)
		if others[row] > 0 {
			return query.Number{Float: float + rest[row]}
		}
		return query.Number{Float: float, Digits: digits.Row(row)}
	}}
}

// quantile adds a level to the quantiles of the measure's operand, which share the memory of all
// values.
func (b *insights) quantile(m query.Measure, name string) measureColumn {
	operand := b.operand(m)
	k := slices.IndexFunc(b.quantiles, func(q *quantileColumn) bool { return q.operand == operand })
	if k < 0 {
		k = len(b.quantiles)
		floats := new(proto.ColFloat64)
		b.quantiles = append(b.quantiles, &quantileColumn{operand: operand, name: name, data: floats.Array()})
	}
	q := b.quantiles[k]
	i := len(q.levels)
	q.levels = append(q.levels, m.Level)
	return measureColumn{q.name + "[" + strconv.Itoa(i+1) + "]", func(row int) query.Number { return query.Number{Float: q.data.Row(row)[i]} }}
}

// Insights returns measures of the filter's events, one row for each group and bucket that has
// events. Without groups and buckets there is one row, of no events too.
//
// Quantiles are those of [Store.Latency].
func (s *Store) Insights(ctx context.Context, q query.Insights) ([]query.InsightsRow, error) {
	sel := s.selectEvents(q.Filter)
	b := &insights{values: values{conditions: sel.conditions()}}
	var by []string
	var bucket proto.ColInt64
	if q.BucketSeconds != nil {
		b.params = b.params.Ints("buckets", q.BucketSeconds)
		// Unix seconds, because text of 10,000 buckets is long.
		b.column("roundDown(toUnixTimestamp64Second(timestamp), {buckets:Array(Int64)})", "bucket", &bucket)
		by = append(by, "bucket")
	}
	groups := make([]proto.ColStr, len(q.GroupBy))
	isJSON := make([]bool, len(q.GroupBy))
	onShards := false
	for i, g := range q.GroupBy {
		name := "group_" + strconv.Itoa(i)
		by = append(by, name)
		var expression string
		expression, isJSON[i] = b.groupOf(g)
		b.column(expression, name, &groups[i])
		onShards = onShards || g.By == query.ByConversation
	}
	measures := make([]measureColumn, len(q.Measures))
	for i, m := range q.Measures {
		if m.Function == query.Quantile {
			if err := checkLevels([]float64{m.Level}); err != nil {
				return nil, err
			}
		}
		measures[i] = b.measure(i, m)
	}
	for _, q := range b.quantiles {
		b.column("quantilesExactInclusiveIf"+quantileLevels(q.levels)+"(assumeNotNull("+q.operand+"), "+q.operand+" IS NOT NULL)", q.name, q.data)
	}
	sel.take(&b.conditions)
	if onShards {
		sel.settings = append(sel.settings, groupsOnShards)
	}
	var rows []query.InsightsRow
	err := s.db.Query(ctx, conn.RoleAnalytics, "insights", s.readTimeout(), ch.Query{
		Body:       b.sql(&sel, by) + " ORDER BY " + orderOf(q, measures, by) + " LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", int64(q.LimitRows)),
		Settings:   append(sel.settings, answerSettings(q.BytesMax)...),
		Result:     b.result,
		OnResult: func(_ context.Context, block proto.Block) error {
			for i := range block.Rows {
				row := query.InsightsRow{Groups: make([]string, len(groups)), Measures: make([]query.Number, len(measures))}
				if q.BucketSeconds != nil {
					row.Micros = bucket[i] * 1_000_000
				}
				for j := range groups {
					row.Groups[j] = groups[j].Row(i)
					if !isJSON[j] {
						row.Groups[j] = quoteJSON(row.Groups[j])
					}
				}
				for j, m := range measures {
					row.Measures[j] = m.value(i)
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}

// sql returns the query up to its GROUP BY clause.
func (b *insights) sql(sel *selection, by []string) string {
	sql := "SELECT " + strings.Join(b.columns, ", ") + sel.from()
	if len(b.with) > 0 {
		sql = "WITH " + strings.Join(b.with, ", ") + " " + sql
	}
	if len(by) > 0 {
		sql += " GROUP BY " + strings.Join(by, ", ")
	}
	return sql
}

// orderOf returns the order of the rows. ClickHouse puts NaN last in either direction.
func orderOf(q query.Insights, measures []measureColumn, by []string) string {
	direction := " ASC"
	if q.Descending {
		direction = " DESC"
	}
	first := "bucket"
	if q.OrderBy != query.OrderByTime {
		first = measures[q.OrderBy].order
	}
	return strings.Join(append([]string{first + direction + " NULLS LAST"}, by...), ", ")
}

// answerSettings are [resultSettings], or none if bytesMax is not set.
func answerSettings(bytesMax int) []ch.Setting {
	if bytesMax <= 0 {
		return nil
	}
	return resultSettings(bytesMax)
}

// quoteJSON returns text as a JSON string.
func quoteJSON(text string) string {
	quoted, err := jsontext.AppendQuote(nil, text)
	if err != nil { // not UTF-8, which no write can be
		quoted, _ = jsontext.AppendQuote(nil, strings.ToValidUTF8(text, "\uFFFD"))
	}
	return string(quoted)
}
