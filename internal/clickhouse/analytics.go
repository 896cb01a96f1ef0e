package clickhouse

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// TimeSeriesRowsMax is the most buckets that one time series can span.
const TimeSeriesRowsMax = 10_000

// groupsOnShards is a setting only for queries that group by conversation. A
// conversation is on one shard, so each shard computes whole groups and sends the
// first of them, instead of states to be merged.
var groupsOnShards = conn.Setting("distributed_group_by_no_merge", "2") //nolint:gochecknoglobals // a constant

// Errors counts the filter's events and those with an error.
func (s *Store) Errors(ctx context.Context, f query.Filter) (query.ErrorCount, error) {
	sel := s.selectEvents(f)
	// error.null reads only the null map. With FINAL, "error IS NOT NULL" would read the
	// texts too.
	var events, errs proto.ColUInt64
	var count query.ErrorCount
	err := s.db.Query(ctx, conn.RoleAnalytics, "errors", s.readTimeout(), ch.Query{
		Body:       "SELECT count() AS events, countIf(error.null = 0) AS errors" + sel.from(),
		Parameters: sel.params,
		Settings:   sel.settings,
		Result:     proto.Results{{Name: "events", Data: &events}, {Name: "errors", Data: &errs}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				count = query.ErrorCount{Events: events[i], Errors: errs[i]}
			}
			return nil
		},
	})
	return count, err
}

// quantileLevels returns the levels as the parameter list of an aggregate function. It
// consists of numbers only; not all versions of ClickHouse take query parameters
// there.
func quantileLevels(levels []float64) string {
	texts := make([]string, len(levels))
	for i, level := range levels {
		texts[i] = strconv.FormatFloat(level, 'f', -1, 64)
	}
	return "(" + strings.Join(texts, ", ") + ")"
}

func checkLevels(levels []float64) error {
	for _, level := range levels {
		if !(level > 0 && level < 1) {
			return event.Errorf(event.CodeInvalidValue, "q", "must lie between 0 and 1")
		}
	}
	return nil
}

// Latency returns quantiles per group, the group with the highest first
// quantile first, and of equal ones in order of conversation, then event name.
//
// Quantiles are exact: of n sorted values v[0..n-1], level q is at place
// q·(n-1), linear between its neighbours, as by numpy and PERCENTILE.INC.
func (s *Store) Latency(ctx context.Context, q query.Latency) ([]query.LatencyRow, error) {
	if err := checkLevels(q.Quantiles); err != nil {
		return nil, err
	}
	if len(q.Quantiles) == 0 {
		return nil, event.Errorf(event.CodeRequired, "q", "is required")
	}
	sel := s.selectEvents(q.Filter)
	sel.where += " AND latency IS NOT NULL"
	var (
		conversation, name proto.ColStr
		events             proto.ColUInt64
		values             proto.ColFloat64
		quantiles          = values.Array()
		rows               []query.LatencyRow
	)
	sql := "SELECT count() AS events, quantilesExactInclusive" + quantileLevels(q.Quantiles) + "(assumeNotNull(latency)) AS quantiles"
	result := proto.Results{{Name: "events", Data: &events}, {Name: "quantiles", Data: quantiles}}
	var groups []string
	if q.ByConversation {
		sql += ", conversation_id"
		groups = append(groups, "conversation_id")
		result = append(result, proto.ResultColumn{Name: "conversation_id", Data: &conversation})
	}
	if q.ByEventName {
		sql += ", CAST(event_name, 'String') AS name"
		groups = append(groups, "name")
		result = append(result, proto.ResultColumn{Name: "name", Data: &name})
	}
	sql += sel.from()
	if q.ByConversation {
		sel.settings = append(sel.settings, groupsOnShards)
	}
	if len(groups) > 0 {
		sql += " GROUP BY " + strings.Join(groups, ", ")
	}
	sql += " HAVING events > 0 ORDER BY quantiles[1] DESC"
	for _, g := range groups {
		sql += ", " + g
	}
	err := s.db.Query(ctx, conn.RoleAnalytics, "latency", s.readTimeout(), ch.Query{
		Body:       sql + " LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("limit", int64(q.LimitRows)),
		Settings:   sel.settings,
		Result:     result,
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				row := query.LatencyRow{Events: events[i], Quantiles: slices.Clone(quantiles.Row(i))}
				if q.ByConversation {
					row.ConversationID = conversation.Row(i)
				}
				if q.ByEventName {
					row.EventName = name.Row(i)
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}

// Conversations returns the top conversations. Equal ones come in the order of their
// ids.
func (s *Store) Conversations(ctx context.Context, q query.Conversations) ([]query.ConversationRow, error) {
	var order string
	switch q.OrderBy {
	case query.OrderByErrors:
		order = "errors"
	case query.OrderByEvents:
		order = "events"
	case query.OrderByErrorRate:
		order = "errors / events"
	}
	sel := s.selectEvents(q.Filter)
	sel.settings = append(sel.settings, groupsOnShards)
	var (
		conversation proto.ColStr
		events, errs proto.ColUInt64
		first, last  proto.ColInt64
		rows         []query.ConversationRow
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "conversations", s.readTimeout(), ch.Query{
		Body: "SELECT conversation_id, count() AS events, countIf(error.null = 0) AS errors," +
			" toUnixTimestamp64Micro(min(timestamp)) AS first, toUnixTimestamp64Micro(max(timestamp)) AS last" + sel.from() +
			" GROUP BY conversation_id HAVING events >= {events_min:UInt64} ORDER BY " + order +
			" DESC, conversation_id LIMIT {limit:UInt64}",
		Parameters: sel.params.Uint("events_min", q.EventsMin).Int("limit", int64(q.LimitRows)),
		Settings:   sel.settings,
		Result: proto.Results{
			{Name: "conversation_id", Data: &conversation},
			{Name: "events", Data: &events},
			{Name: "errors", Data: &errs},
			{Name: "first", Data: &first},
			{Name: "last", Data: &last},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				rows = append(rows, query.ConversationRow{
					ConversationID: conversation.Row(i),
					ErrorCount:     query.ErrorCount{Events: events[i], Errors: errs[i]},
					FirstMicros:    first[i],
					LastMicros:     last[i],
				})
			}
			return nil
		},
	})
	return rows, err
}

// TimeSeries returns the buckets that have events, in order of time. A range
// of more than [TimeSeriesRowsMax] buckets is an [*event.Error] that names the
// field "interval". Quantiles are those of [Store.Latency].
func (s *Store) TimeSeries(ctx context.Context, q query.TimeSeries) ([]query.TimeSeriesRow, error) {
	if q.IntervalMicros <= 0 {
		return nil, event.Errorf(event.CodeInvalidValue, "interval", "must be positive")
	}
	if (q.UntilMicros-q.SinceMicros)/q.IntervalMicros >= TimeSeriesRowsMax {
		return nil, event.Errorf(event.CodeInvalidValue, "interval", "divides the time into more than %d buckets", TimeSeriesRowsMax)
	}
	if err := checkLevels(q.Quantiles); err != nil {
		return nil, err
	}
	sel := s.selectEvents(q.Filter)
	var (
		micros       proto.ColInt64
		events, errs proto.ColUInt64
		values       proto.ColFloat64
		quantiles    = values.Array()
		rows         []query.TimeSeriesRow
	)
	sql := "SELECT intDiv(toUnixTimestamp64Micro(timestamp), {interval:Int64}) * {interval:Int64} AS bucket," +
		" count() AS events, countIf(error.null = 0) AS errors"
	result := proto.Results{{Name: "bucket", Data: &micros}, {Name: "events", Data: &events}, {Name: "errors", Data: &errs}}
	if len(q.Quantiles) > 0 {
		sql += ", quantilesExactInclusiveIf" + quantileLevels(q.Quantiles) + "(assumeNotNull(latency), latency IS NOT NULL) AS quantiles"
		result = append(result, proto.ResultColumn{Name: "quantiles", Data: quantiles})
	}
	err := s.db.Query(ctx, conn.RoleAnalytics, "timeseries", s.readTimeout(), ch.Query{
		Body:       sql + sel.from() + " GROUP BY bucket ORDER BY bucket",
		Parameters: sel.params.Int("interval", q.IntervalMicros),
		Settings:   sel.settings,
		Result:     result,
		OnResult: func(context.Context, proto.Block) error {
			for i := range events {
				row := query.TimeSeriesRow{Micros: micros[i], ErrorCount: query.ErrorCount{Events: events[i], Errors: errs[i]}}
				if len(q.Quantiles) > 0 {
					row.Quantiles = slices.Clone(quantiles.Row(i))
				}
				rows = append(rows, row)
			}
			return nil
		},
	})
	return rows, err
}
