package clickhouse

import (
	"context"
	"strings"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/query"
)

// Retention returns a row for each of the question's periods.
func (s *Store) Retention(ctx context.Context, q query.Retention) ([]query.RetentionRow, error) {
	sel := s.selectEvents(q.Filter)
	v := values{conditions: sel.conditions()}
	did := v.define("did", v.condition(q.Did))
	returned := v.define("returned", v.condition(q.Returned))
	subject, hasSubject := v.subject(q.Subject)
	period := v.define("period", "roundDown(toUnixTimestamp64Second(timestamp), {periods:Array(Int64)})")
	sel.where += " AND " + hasSubject + " AND (" + did + " OR " + returned + ")"
	sel.take(&v.conditions)
	// The periods of each subject. Each of its cohorts has a pair with each period in which it
	// returned, and one with the second before the cohort, which counts the cohort itself.
	periods := "WITH " + strings.Join(v.with, ", ") + " SELECT groupUniqArrayIf(" + period + ", " + did + ") AS cohorts, " +
		"groupUniqArrayIf(" + period + ", " + returned + ") AS returns" + sel.from() + " GROUP BY " + subject + " HAVING notEmpty(cohorts)"
	cells := "SELECT arrayJoin(cohorts) AS cohort, arrayJoin(arrayPushFront(arrayFilter(r -> r >= cohort, returns), cohort - 1)) AS return FROM (" + periods + ")"
	index := make(map[int64]int, len(q.PeriodSeconds))
	rows := make([]query.RetentionRow, len(q.PeriodSeconds))
	for i, seconds := range q.PeriodSeconds {
		index[seconds] = i
		rows[i].Returned = make([]uint64, len(q.PeriodSeconds)-i)
	}
	var (
		cohorts, returns proto.ColInt64
		subjects         proto.ColUInt64
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "retention", s.readTimeout(), ch.Query{
		Body:       "SELECT cohort, return, count() AS subjects FROM (" + cells + ") GROUP BY cohort, return",
		Parameters: sel.params.Ints("periods", q.PeriodSeconds),
		Settings:   sel.settings,
		Result:     proto.Results{{Name: "cohort", Data: &cohorts}, {Name: "return", Data: &returns}, {Name: "subjects", Data: &subjects}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range cohorts {
				cohort := index[cohorts[i]]
				if returns[i] < cohorts[i] {
					rows[cohort].Subjects = subjects[i]
				} else {
					rows[cohort].Returned[index[returns[i]]-cohort] = subjects[i]
				}
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}
