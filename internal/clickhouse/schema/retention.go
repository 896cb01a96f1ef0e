package schema

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// Forever is the retention that keeps all events.
const Forever time.Duration = 0

// The bounds of any other retention. Events are not older than the year 2000, so a
// retention above the upper bound would keep all events.
const (
	RetentionMin = day
	RetentionMax = 10_000 * day
)

const (
	day = 24 * time.Hour
	// dropMargin is how much longer rows are kept than they are visible, because
	// clocks differ.
	dropMargin = day
)

// ParseRetention reads a retention: days, such as 90d; a duration of Go, such as
// 2160h; "forever" or 0.
func ParseRetention(text string) (time.Duration, error) {
	if text == "forever" {
		return Forever, nil
	}
	var keep time.Duration
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number of days", text)
		}
		keep = time.Duration(n) * day
	} else {
		var err error
		if keep, err = time.ParseDuration(text); err != nil {
			return 0, fmt.Errorf("%q is neither days, such as 90d, nor a duration, such as 2160h, nor forever", text)
		}
	}
	return keep, checkRetention(keep)
}

func checkRetention(keep time.Duration) error {
	switch {
	case keep == Forever:
		return nil
	case keep < RetentionMin || keep > RetentionMax:
		return fmt.Errorf("a retention of %s is not within %d and %d days", keep, RetentionMin/day, RetentionMax/day)
	case keep%time.Second != 0:
		return errors.New("a retention is of whole seconds")
	}
	return nil
}

// retention is the retention in the definition of a table.
type retention struct {
	// keep is how long events are visible. floor is the Unix time, in seconds, before
	// which no event is visible, whatever keep is. Only the table events has both.
	keep  time.Duration
	floor int64
	// dropDays is the TTL of a partition, in days after the end of its month; 0 for
	// none.
	dropDays int
	// stores says that the table stores rows, and is not a Distributed table.
	stores bool
}

// visible returns the expression of the column events.visible.
func (r retention) visible() string {
	var bounds []string
	if r.keep != Forever {
		bounds = append(bounds, "now() - toIntervalSecond("+strconv.FormatInt(int64(r.keep/time.Second), 10)+")")
	}
	if r.floor > 0 {
		bounds = append(bounds, "toDateTime("+strconv.FormatInt(r.floor, 10)+")")
	}
	switch len(bounds) {
	case 0:
		return "1"
	case 1:
		return "timestamp >= " + bounds[0]
	}
	return "timestamp >= greatest(" + strings.Join(bounds, ", ") + ")"
}

// horizon returns the Unix time, in seconds, before which nothing is visible now.
func (r retention) horizon(now int64) int64 {
	if r.keep == Forever {
		return r.floor
	}
	return max(r.floor, now-int64(r.keep/time.Second))
}

//nolint:gochecknoglobals // constant tables
var (
	keepPattern  = regexp.MustCompile(`toIntervalSecond\((\d+)\)`)
	floorPattern = regexp.MustCompile(`toDateTime\((\d+)\)`)
	dropPattern  = regexp.MustCompile(` TTL .*toIntervalDay\((\d+)\)`)

	// months has the expression of the first day of a row's month, by table. All rows
	// of a partition have one TTL, so that a merge drops the whole partition or
	// nothing. An alias has the month of its event, which follows from the id. The
	// tombstone of an alias that never existed has no event, and stays.
	months = map[string]string{
		TableEvents:     "toStartOfMonth(timestamp)",
		TableContents:   "toStartOfMonth(timestamp)",
		TableEmbeddings: "toStartOfMonth(timestamp)",
		TableAliases:    "if(toUInt128(id) = 0, toDate('2149-01-01'), toStartOfMonth(toDate(intDiv(toUInt64(bitShiftRight(toUInt128(id), 80)), 86400000))))",
	}
)

// SetRetention hides events whose timestamp is longer ago than keep from readers,
// from now on and to the second. It has ClickHouse drop the rows of a month once
// all of them have been hidden for a day. [Forever] ends both. It reports whether
// anything had to be changed.
//
// A hidden event stays hidden: its tombstone may be dropped before the row under
// it, and a longer retention must not bring the row back. For the same reason no
// row is dropped that a reader can see: a shorter retention hides events first, on
// all replicas, and a longer one shows them last.
//
// SetRetention changes the tables of one database on one host. It may be called
// again after any error.
func (s *Schema) SetRetention(ctx context.Context, keep time.Duration) (changed bool, err error) {
	if err := checkRetention(keep); err != nil {
		return false, err
	}
	tables, now, err := s.retentions(ctx)
	if err != nil {
		return false, err
	}
	events, ok := tables[TableEvents]
	if !ok {
		return false, fmt.Errorf("set retention: %s has no table %s; migrate it first", s.cfg.Database, TableEvents)
	}
	want := retention{keep: keep, floor: events.floor}
	grows := events.keep != Forever && (keep == Forever || keep > events.keep)
	if grows {
		want.floor = events.horizon(now)
	}
	if keep != Forever {
		want.dropDays = int((keep + dropMargin + day - 1) / day)
	}
	hide := func() error {
		if keep == events.keep {
			return nil
		}
		changed = true
		return s.alter(ctx, TableEvents, "MODIFY COLUMN visible UInt8 ALIAS "+want.visible(), "2")
	}
	if !grows {
		if err := hide(); err != nil {
			return changed, err
		}
	}
	for _, name := range []string{TableEvents, TableContents, TableEmbeddings, TableAliases} {
		table := tables[name]
		if !table.stores || table.dropDays == want.dropDays {
			continue
		}
		action := "REMOVE TTL"
		if want.dropDays > 0 {
			action = "MODIFY TTL " + months[name] + " + toIntervalMonth(1) + toIntervalDay(" + strconv.Itoa(want.dropDays) + ")"
		}
		changed = true
		// Old parts get the TTL in the background.
		if err := s.alter(ctx, name, action, "0"); err != nil {
			return changed, err
		}
	}
	if grows {
		return changed, hide()
	}
	return changed, nil
}

// alter changes a table. sync is 2 to wait for all replicas, or 0 for none.
func (s *Schema) alter(ctx context.Context, table, action, sync string) error {
	if err := s.define(ctx, "ALTER TABLE "+table+" "+action+" SETTINGS alter_sync = "+sync); err != nil {
		return fmt.Errorf("set the retention of %s: %w", table, err)
	}
	return nil
}

// retentions returns the retention of each existing table, and the server's time.
func (s *Schema) retentions(ctx context.Context) (tables map[string]retention, now int64, err error) {
	var (
		name, engine, visible proto.ColStr
		stores                proto.ColUInt8
		clock                 proto.ColUInt32
	)
	tables = make(map[string]retention)
	err = s.db.Query(ctx, conn.RoleAdmin, "retention", s.cfg.QueryTimeout, ch.Query{
		Body: `SELECT t.name AS name, t.engine_full AS engine, endsWith(t.engine, 'MergeTree') AS stores, c.default_expression AS visible, toUInt32(now()) AS clock
			FROM system.tables AS t
			LEFT JOIN (
				SELECT table, default_expression FROM system.columns
				WHERE database = {database:String} AND name = 'visible'
			) AS c ON c.table = t.name
			WHERE t.database = {database:String} AND t.name IN ('events', 'event_contents', 'event_embeddings', 'event_aliases')`,
		Parameters: conn.Parameters{}.Text("database", s.cfg.Database),
		Result: proto.Results{
			{Name: "name", Data: &name},
			{Name: "engine", Data: &engine},
			{Name: "stores", Data: &stores},
			{Name: "visible", Data: &visible},
			{Name: "clock", Data: &clock},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range clock {
				var r retention
				r.keep = time.Duration(number(keepPattern, visible.Row(i))) * time.Second
				r.floor = number(floorPattern, visible.Row(i))
				r.dropDays = int(number(dropPattern, engine.Row(i)))
				r.stores = stores[i] != 0
				tables[name.Row(i)], now = r, int64(clock[i])
			}
			return nil
		},
	})
	return tables, now, err
}

// number returns the number that the group of the pattern matches, or 0 if there is
// no match.
func number(pattern *regexp.Regexp, text string) int64 {
	m := pattern.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // digits alone
	return n
}
