package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
	"github.com/sluicehq/sluice/tools/internal/enginedb"
)

const queryTimeout = 10 * time.Minute

// database is Sluice's schema in an engine of its own, which logs what becomes
// of each part.
type database struct{ *enginedb.DB }

// start starts an engine on a new directory. Close it.
func start(ctx context.Context, library, dir string, log *slog.Logger) (*database, error) {
	db, err := enginedb.Start(ctx, enginedb.Config{Library: library, Dir: dir, SystemLogs: true}, log)
	if err != nil {
		return nil, err
	}
	return &database{db}, nil
}

// query returns the rows of the answer, split into columns.
func (d *database) query(ctx context.Context, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return d.Query(ctx, sql)
}

// events makes the rows of creates, as the consumer would, and what the same
// creates take as JSON and as records.
type events struct {
	plan          *workload.Plan
	next          int
	body          []byte
	json, records int // bytes so far
}

// newEvents are n events of a month, of real conversations.
func newEvents(n int, e workload.Encoding, data string) (*events, error) {
	corpus, err := workload.OpenCorpus(data, e)
	if err != nil {
		return nil, err
	}
	return &events{plan: &workload.Plan{
		Corpus: corpus, Encoding: e, Run: "scale", Seed: 1, Events: n,
		Start: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), Span: 28 * day * time.Second,
	}}, nil
}

// rows are those of the next n events.
func (s *events) rows(n int) (*event.Rows, error) {
	parser := body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
	rows := new(event.Rows)
	for end := min(s.next+n, s.plan.Events); s.next < end; s.next++ {
		s.body = s.plan.AppendCreate(s.body[:0], s.next)
		w, err := parser.ParseCreate(bytes.Clone(s.body), time.Now())
		if err != nil {
			return nil, fmt.Errorf("create %d: %w", s.next, err)
		}
		s.json += len(s.body)
		s.records += len(record.AppendWrite(nil, &w))
		bench.AppendRows(rows, &w, int64(s.next))
	}
	return rows, nil
}

// insert inserts n events, so many at a time.
func (d *database) insert(ctx context.Context, from *events, block int) error {
	for from.next < from.plan.Events {
		rows, err := from.rows(block)
		if err != nil {
			return err
		}
		if err := d.Store.Insert(ctx, rows); err != nil {
			return err
		}
	}
	return nil
}

// cost is what an event takes in one table.
type cost struct {
	table                    string
	disk, raw, index         float64 // bytes an event: on disk once merged, as sent, of the primary index
	part                     float64 // bytes of a part of one event
	mergeBytes, mergeSeconds float64 // written by large merges, and their time
}

// blockEvents is how many events an insert has here: as many as a busy consumer
// of 10,000 a second flushes.
const blockEvents = 4000

// measure inserts the events and merges each table into one part.
func (d *database) measure(ctx context.Context, from *events, block int) ([]cost, error) {
	one, err := from.rows(1)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.Store.Insert(ctx, one), d.insert(ctx, from, block)); err != nil {
		return nil, err
	}
	for _, table := range []string{"events", "event_contents", "event_embeddings"} {
		if _, err := d.query(ctx, "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			return nil, err
		}
	}
	if _, err := d.query(ctx, "SYSTEM FLUSH LOGS part_log"); err != nil {
		return nil, err
	}
	rows, err := d.query(ctx, fmt.Sprintf(`SELECT table, sum(bytes_on_disk) / %[1]d, sum(data_uncompressed_bytes) / %[1]d, sum(primary_key_bytes_in_memory) / %[1]d, any(one), any(merged.1), any(merged.2)
		FROM system.parts AS p LEFT JOIN
		(
			SELECT table, minIf(size_in_bytes, event_type = 'NewPart') AS one,
				(sumIf(size_in_bytes, event_type = 'MergeParts' AND size_in_bytes > 1e7), sumIf(duration_ms, event_type = 'MergeParts' AND size_in_bytes > 1e7) / 1000) AS merged
			FROM system.part_log WHERE database = '%[2]s' GROUP BY table
		) AS m USING (table)
		WHERE active AND database = '%[2]s' AND table LIKE 'event%%' AND table != 'event_aliases' GROUP BY table ORDER BY table DESC`,
		from.plan.Events, conn.DefaultDatabase))
	if err != nil {
		return nil, err
	}
	var costs []cost
	for _, r := range rows {
		c := cost{table: r[0]}
		for i, to := range []*float64{&c.disk, &c.raw, &c.index, &c.part, &c.mergeBytes, &c.mergeSeconds} {
			if *to, err = strconv.ParseFloat(r[i+1], 64); err != nil {
				return nil, fmt.Errorf("costs of %s: %w", c.table, err)
			}
		}
		costs = append(costs, c)
	}
	return costs, nil
}
