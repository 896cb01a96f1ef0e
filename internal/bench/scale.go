package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/event"
)

const (
	// monthDays is the time that the changes before the second measurement of
	// the queries are made in, and changeShare their share of it, 1 in so many.
	monthDays   = 30
	changeShare = 100
	// scaleRounds is how often a kind of write is measured, after a round that
	// does not count. Each round has other events.
	scaleRounds = 3
	// queryRuns is how often a query is measured.
	queryRuns = 5
	// fillRows is the most rows of one statement that fills.
	fillRows = 10_000_000
	// mergeConcurrency is how many months are merged at a time.
	mergeConcurrency = 2

	scaleBatch       = 1000
	scaleConnections = 4

	// latencyMark is below the latencies that updates set: no row has such a
	// one by itself.
	latencyMark = 1_000_000_000
	// firstUpdateVersion is the lowest version of an update.
	firstUpdateVersion = uint64(event.ClassUpdate) << 62
)

// ScaleConfig says what is measured at which sizes.
type ScaleConfig struct {
	// System is what is started for each size, in a directory of its own in
	// System.Dir, which is removed afterwards.
	System SystemConfig
	// Rows are the sizes: a run for each.
	Rows []int
	// Days is the time before the run that the rows are spread over.
	Days int
	// Writes is the number of writes of a round.
	Writes int
	// Seed of the choice of events.
	Seed uint64
	// Progress gets a line per step. Default: discarded.
	Progress io.Writer
}

// Validate reports every mistake, naming the fields.
func (c ScaleConfig) Validate() error {
	var v validation
	v.check(len(c.Rows) > 0, "Rows", "must not be empty")
	v.check(c.Writes > 0, "Writes", "must be positive")
	for _, rows := range c.Rows {
		// Random deletes and cold updates are of different events, and those
		// of the rounds should be few of all.
		v.check(rows >= 4*c.Writes*(1+scaleRounds), "Rows", fmt.Sprintf("%d are too few for rounds of %d writes", rows, c.Writes))
	}
	v.check(c.Days >= monthDays && c.Days <= 3650, "Days", fmt.Sprintf("must be from %d to 3650", monthDays))
	return v.err()
}

// Scale measures writes and queries on tables of several sizes. The error wraps
// [workload.ErrDifferent] when ClickHouse does not have what was sent.
func Scale(ctx context.Context, cfg ScaleConfig, log *slog.Logger) ([]ScaleSize, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	var sizes []ScaleSize
	for _, rows := range cfg.Rows {
		size, err := scaleSize(ctx, cfg, rows, log)
		if err != nil {
			return sizes, fmt.Errorf("%d rows: %w", rows, err)
		}
		sizes = append(sizes, *size)
	}
	return sizes, nil
}

func scaleSize(ctx context.Context, cfg ScaleConfig, rows int, log *slog.Logger) (_ *ScaleSize, err error) {
	cfg.System.Dir = filepath.Join(cfg.System.Dir, "rows-"+strconv.Itoa(rows))
	defer func() { err = errors.Join(err, os.RemoveAll(cfg.System.Dir)) }()
	system, err := Start(ctx, cfg.System, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, system.Close()) }()
	to, err := system.Serve(ctx)
	if err != nil {
		return nil, err
	}
	r := &scaleRun{
		cfg: cfg, system: system, to: to,
		verify: &workload.Verifier{To: to, HTTP: &http.Client{Timeout: queryTimeout}},
		rows:   newScaleRows(rows, cfg.Days, time.Now()),
		random: rand.New(rand.NewPCG(cfg.Seed, uint64(rows))),
		taken:  make(map[int]struct{}),
		size:   ScaleSize{Rows: rows},
	}
	for _, step := range []func(context.Context) error{
		r.fill, r.merge, r.measureClean, r.change, r.measureChanged, r.measureDeletes, r.measureRecent, r.measureCold,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return &r.size, nil
}

// scaleRun is the run of one size.
type scaleRun struct {
	cfg    ScaleConfig
	system *System
	to     workload.Target
	verify *workload.Verifier
	rows   scaleRows
	random *rand.Rand
	// taken are the rows that a write was or will be made to.
	taken map[int]struct{}
	// marks counts the updates' rounds, each of which sets another latency, and
	// tombstones the events that were deleted.
	marks, tombstones int
	size              ScaleSize
}

// step runs a part of the run and reports its time.
func (r *scaleRun) step(name string, do func() (note string, err error)) error {
	start := time.Now()
	note, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = fmt.Fprintf(r.cfg.Progress, "%11d rows  %-24s %7.2f s  %s\n", r.size.Rows, name, time.Since(start).Seconds(), note)
	return err
}

// fill fills the hot table in, in parts that are merged only afterwards, each
// month's at once.
func (r *scaleRun) fill(ctx context.Context) error {
	if err := r.exec(ctx, "ALTER TABLE events MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1"); err != nil {
		return err
	}
	for from := 0; from < r.rows.rows; from += fillRows {
		to := min(from+fillRows, r.rows.rows)
		err := r.step("fill", func() (string, error) {
			start := time.Now()
			err := r.exec(ctx, r.rows.insert(from, to))
			r.size.FillSeconds += time.Since(start).Seconds()
			return fmt.Sprintf("to %d", to), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// merge merges each month into one part, which is where ClickHouse's own
// merges get to sooner or later.
func (r *scaleRun) merge(ctx context.Context) error {
	months, err := r.system.Query(ctx, r.system.database,
		"SELECT partition_id FROM system.parts WHERE active AND database = currentDatabase() AND table = 'events' GROUP BY partition_id ORDER BY partition_id")
	if err != nil {
		return err
	}
	for some := range slices.Chunk(strings.Fields(months), mergeConcurrency) {
		err := r.step("merge", func() (string, error) {
			start := time.Now()
			g, ctx := errgroup.WithContext(ctx)
			for _, month := range some {
				g.Go(func() error {
					return r.exec(ctx, "OPTIMIZE TABLE events PARTITION ID '"+month+"' SETTINGS optimize_throw_if_noop = 0, optimize_skip_merged_partitions = 1")
				})
			}
			err := g.Wait()
			r.size.MergeSeconds += time.Since(start).Seconds()
			return strings.Join(some, ", "), err
		})
		if err != nil {
			return err
		}
	}
	if err := r.exec(ctx, "ALTER TABLE events RESET SETTING max_bytes_to_merge_at_max_space_in_pool"); err != nil {
		return err
	}
	const parts = " FROM system.parts WHERE active AND database = currentDatabase() AND table = 'events'"
	for _, figure := range []struct {
		sql  string
		into func(float64)
	}{
		{"SELECT sum(bytes_on_disk)" + parts, func(n float64) { r.size.DiskBytes = int64(n) }},
		{"SELECT count()" + parts, func(n float64) { r.size.Parts = int(n) }},
	} {
		n, err := r.system.Number(ctx, figure.sql)
		if err != nil {
			return err
		}
		figure.into(n)
	}
	return r.count(ctx, "rows", "SELECT count() FROM events", r.rows.rows)
}

func (r *scaleRun) exec(ctx context.Context, sql string) error {
	_, err := r.system.Query(ctx, r.system.database, sql)
	return err
}

// count compares a number in ClickHouse with what was sent.
func (r *scaleRun) count(ctx context.Context, what, sql string, want int) error {
	got, err := r.system.Number(ctx, sql)
	if err == nil && int(got) != want {
		err = fmt.Errorf("%w: %d %s, want %d", workload.ErrDifferent, int(got), what, want)
	}
	return err
}

// take chooses n random rows from one number to another, each only once in the
// whole run.
func (r *scaleRun) take(n, from, to int) []int {
	chosen := make([]int, 0, n)
	for len(chosen) < n {
		row := from + r.random.IntN(to-from)
		if _, ok := r.taken[row]; !ok {
			r.taken[row] = struct{}{}
			chosen = append(chosen, row)
		}
	}
	return chosen
}

// lastMonth is the number of the first row of the last 30 days.
func (r *scaleRun) lastMonth() int { return r.rows.rows - r.rows.rows*monthDays/r.cfg.Days }

// change updates and deletes a share of the last month's rows.
func (r *scaleRun) change(ctx context.Context) error {
	first := r.lastMonth()
	n := (r.rows.rows - first) / changeShare
	r.size.ChangedUpdates, r.size.ChangedDeletes = n, n
	updates, deletes := r.ids(r.take(n, first, r.rows.rows)), r.ids(r.take(n, first, r.rows.rows))
	if err := r.step("change: update", func() (string, error) { return r.note(r.update(ctx, updates)) }); err != nil {
		return err
	}
	return r.step("change: delete", func() (string, error) { return r.note(r.delete(ctx, deletes)) })
}

func (r *scaleRun) ids(rows []int) []event.ID {
	ids := make([]event.ID, len(rows))
	for i, n := range rows {
		ids[i] = r.rows.id(n)
	}
	return ids
}

func (r *scaleRun) measureDeletes(ctx context.Context) error {
	return r.measure(ScaleDelete, func(int) (*ScaleWrite, error) {
		return r.delete(ctx, r.ids(r.take(r.cfg.Writes, 0, r.rows.rows)))
	})
}

func (r *scaleRun) measureRecent(ctx context.Context) error {
	return r.measure(ScaleUpdateRecent, func(round int) (*ScaleWrite, error) {
		ids, err := r.create(ctx, round)
		if err != nil {
			return nil, err
		}
		return r.update(ctx, ids)
	})
}

func (r *scaleRun) measureCold(ctx context.Context) error {
	return r.measure(ScaleUpdateCold, func(int) (*ScaleWrite, error) {
		return r.update(ctx, r.ids(r.take(r.cfg.Writes, 0, r.rows.rows)))
	})
}

// measure runs a round that does not count, then those that do.
func (r *scaleRun) measure(name string, round func(i int) (*ScaleWrite, error)) error {
	var rounds []*ScaleWrite
	for i := range 1 + scaleRounds {
		err := r.step(name, func() (string, error) {
			w, err := round(i)
			if i > 0 && err == nil {
				rounds = append(rounds, w)
			}
			return r.note(w, err)
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(rounds, func(a, b *ScaleWrite) int { return cmp.Compare(a.VisibleSeconds, b.VisibleSeconds) })
	median := *rounds[len(rounds)/2]
	median.Name = name
	for _, w := range rounds {
		median.RoundSeconds = append(median.RoundSeconds, w.VisibleSeconds)
	}
	r.size.Writes = append(r.size.Writes, median)
	return nil
}

func (r *scaleRun) note(w *ScaleWrite, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d writes, visible %.3f s, %.0f/s, lookups %.3f s", w.Writes, w.VisibleSeconds, w.WritesPerSecond(), w.LookupSeconds), nil
}

// create creates events of now, and returns their ids.
func (r *scaleRun) create(ctx context.Context, round int) ([]event.ID, error) {
	conversation := func(i int) string {
		return fmt.Sprintf("recent-%d-%d", round, i/conversationEvents)
	}
	now := time.Now().Add(-time.Second).UnixMicro()
	ids := make([]event.ID, r.cfg.Writes)
	for i := range ids {
		ids[i] = event.MakeID(now+int64(i), event.ConversationHash(conversation(i)), mix(uint64(i)))
	}
	_, err := r.send(ctx, ids, func(b []byte, i int) []byte {
		return fmt.Appendf(b, `{"id":"%s","conversation_id":"%s","conversation_metadata":{"app":"web","plan":"free"},"event_name":"event_a","latency":%d}`,
			ids[i], conversation(i), i%1000)
	})
	return ids, err
}

// update sets the events' latency and error, and counts the rows that show it.
func (r *scaleRun) update(ctx context.Context, ids []event.ID) (*ScaleWrite, error) {
	r.marks++
	mark := latencyMark + r.marks
	w, err := r.send(ctx, ids, func(b []byte, i int) []byte {
		return fmt.Appendf(b, `{"op":"update","id":"%s","latency":%d,"error":null}`, ids[i], mark)
	})
	if err != nil {
		return nil, err
	}
	sql := fmt.Sprintf("SELECT uniqExact(id) FROM events PREWHERE version >= %d WHERE latency = %d AND deleted = 0 AND conversation_id != ''", firstUpdateVersion, mark)
	return w, r.count(ctx, "updated events", sql, len(ids))
}

// delete deletes the events, and counts the tombstones.
func (r *scaleRun) delete(ctx context.Context, ids []event.ID) (*ScaleWrite, error) {
	w, err := r.send(ctx, ids, func(b []byte, i int) []byte {
		return fmt.Appendf(b, `{"op":"delete","id":"%s"}`, ids[i])
	})
	if err != nil {
		return nil, err
	}
	r.tombstones += len(ids)
	return w, r.count(ctx, "tombstones", "SELECT uniqExact(id) FROM events WHERE deleted = 1", r.tombstones)
}

// send sends a write for each of the events, and waits until all are applied.
func (r *scaleRun) send(ctx context.Context, ids []event.ID, item func(b []byte, i int) []byte) (*ScaleWrite, error) {
	before, err := r.lookups(ctx)
	if err != nil {
		return nil, err
	}
	requests := (len(ids) + scaleBatch - 1) / scaleBatch
	sent, err := workload.Send(ctx, r.to, scaleConnections, requests, func(q *workload.Request, i int) {
		batch(q, i*scaleBatch, min(len(ids), (i+1)*scaleBatch), item)
	})
	if err != nil {
		return nil, err
	}
	if err := r.applied(ctx, sent.Last); err != nil {
		return nil, err
	}
	visible := time.Since(sent.Begun)
	after, err := r.lookups(ctx)
	if err != nil {
		return nil, err
	}
	return &ScaleWrite{
		Writes: len(ids), AckedSeconds: sent.Acked.Sub(sent.Begun).Seconds(), VisibleSeconds: visible.Seconds(),
		LookupSeconds: after.seconds - before.seconds, LookupQueries: after.queries - before.queries,
	}, nil
}

// applied waits until a read would show the writes of the receipts. It reads an
// event that there is none of by its alias, which costs little at every size
// and looks up no core row.
func (r *scaleRun) applied(ctx context.Context, last []event.Receipt) error {
	after := make(url.Values)
	for _, receipt := range last {
		after.Add("after", receipt.String())
	}
	for {
		status, err := r.verify.Get(ctx, "/event/none?"+after.Encode(), new(any))
		switch {
		case err != nil:
			return err
		case status == http.StatusNotFound:
			return nil
		case status != http.StatusServiceUnavailable: // that is: not yet
			return fmt.Errorf("wait for writes: status %d", status)
		}
	}
}

// lookupCost is what the consumer's queries for core rows took since its start.
type lookupCost struct{ seconds, queries float64 }

func (r *scaleRun) lookups(ctx context.Context) (c lookupCost, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.to.URL.String()+"/metrics", nil)
	if err != nil {
		return c, err
	}
	answer, err := r.verify.HTTP.Do(q)
	if err != nil {
		return c, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		var into *float64
		switch name {
		case `sluice_clickhouse_query_seconds_sum{query="core_states"}`, `sluice_clickhouse_query_seconds_sum{query="cores"}`:
			into = &c.seconds
		case `sluice_clickhouse_query_seconds_count{query="core_states"}`, `sluice_clickhouse_query_seconds_count{query="cores"}`:
			into = &c.queries
		default:
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return c, fmt.Errorf("metric %s: %w", name, err)
		}
		*into += n
	}
	return c, lines.Err()
}

func (r *scaleRun) measureClean(ctx context.Context) error {
	return r.measureQueries(ctx, func(q *ScaleQuery) *ScaleTimes { return &q.Clean })
}

func (r *scaleRun) measureChanged(ctx context.Context) error {
	return r.measureQueries(ctx, func(q *ScaleQuery) *ScaleTimes { return &q.Changed })
}

// measureQueries runs the four queries some times each, after once that does
// not count, the sessions other ones each time.
func (r *scaleRun) measureQueries(ctx context.Context, into func(*ScaleQuery) *ScaleTimes) error {
	for i, q := range []struct {
		name string
		path func() string
	}{
		{ScaleErrors, func() string { return "/analytics/errors?event_name=event_a&since=7d" }},
		{ScaleLatency, func() string { return "/analytics/latency?q=0.95&group_by=conversation,event_name&since=1d" }},
		{ScaleSession, func() string {
			return "/conversations/" + r.rows.conversation(r.random.IntN(r.rows.rows)) + "/events"
		}},
		{ScaleTop, func() string { return "/analytics/conversations?order_by=error_rate&min_events=5&since=7d" }},
	} {
		if len(r.size.Queries) == i {
			r.size.Queries = append(r.size.Queries, ScaleQuery{Name: q.name})
		}
		err := r.step(q.name, func() (string, error) {
			times, err := r.ask(ctx, q.path)
			*into(&r.size.Queries[i]) = times
			return fmt.Sprintf("best %.1f ms, median %.1f ms", times.BestMillis, times.MedianMillis), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *scaleRun) ask(ctx context.Context, path func() string) (ScaleTimes, error) {
	var times []time.Duration
	for i := range 1 + queryRuns {
		p := path()
		start := time.Now()
		status, err := r.verify.Get(ctx, p, new(any))
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s: status %d", p, status)
		}
		if err != nil {
			return ScaleTimes{}, err
		}
		if i > 0 {
			times = append(times, time.Since(start))
		}
	}
	slices.Sort(times)
	return ScaleTimes{BestMillis: millis(times[0]), MedianMillis: millis(times[len(times)/2])}, nil
}
