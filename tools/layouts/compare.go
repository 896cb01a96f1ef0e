package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// spread is a number of measurements, in seconds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
	// CPU is the median of the server's CPU time, which other load on the
	// machine changes less than it does the time itself.
	CPU float64 `json:"cpu_median"`
	// Rows is the median of the rows read.
	Rows uint64 `json:"rows_read_median"`
}

// sample is one measurement.
type sample struct {
	elapsed, cpu time.Duration
	rows         uint64
}

func spreadOf(samples []sample) spread {
	if len(samples) == 0 {
		return spread{}
	}
	var elapsed, cpu []time.Duration
	var rows []uint64
	for _, s := range samples {
		elapsed, cpu, rows = append(elapsed, s.elapsed), append(cpu, s.cpu), append(rows, s.rows)
	}
	slices.Sort(elapsed)
	slices.Sort(cpu)
	slices.Sort(rows)
	return spread{
		Median: median(elapsed), Min: elapsed[0].Seconds(), Max: elapsed[len(elapsed)-1].Seconds(),
		N: len(samples), CPU: median(cpu), Rows: rows[len(rows)/2],
	}
}

// median is of sorted times, in seconds.
func median(d []time.Duration) float64 {
	return ((d[len(d)/2] + d[(len(d)-1)/2]) / 2).Seconds()
}

// result is what was measured on one layout.
type result struct {
	Name  string   `json:"name"`
	About string   `json:"about"`
	DDL   []string `json:"ddl"`
	Rows  uint64   `json:"rows"`
	// InsertRowsPerSecond is of events, over all the inserts that filled the
	// tables; Insert is the time of one of them, 2 at a time.
	InsertRowsPerSecond float64 `json:"insert_rows_per_second"`
	Insert              spread  `json:"insert_seconds"`
	// InsertCPUMicrosPerRow is the server's CPU time, reading the source included.
	InsertCPUMicrosPerRow float64 `json:"insert_cpu_microseconds_per_row"`
	// MergeSeconds is what merging those parts into one per partition took.
	MergeSeconds    float64 `json:"merge_seconds"`
	MergeCPUSeconds float64 `json:"merge_cpu_seconds"`
	// BytesPerRow is of all the layout's tables on disk, merged; ColumnBytes of
	// each column of the hot table.
	BytesPerRow       float64            `json:"bytes_per_row"`
	ColumnBytes       map[string]float64 `json:"column_bytes_per_row"`
	PrimaryIndexBytes uint64             `json:"primary_index_bytes_in_memory"`
	MarksBytes        uint64             `json:"marks_bytes_on_disk"`
	Parts             uint64             `json:"parts_merged"`
	PartsFresh        uint64             `json:"parts_with_fresh_writes"`
	// Update and Delete are the time of one of the inserts that updated or
	// deleted 1 % of the events.
	Update spread            `json:"fresh_update_insert_seconds"`
	Delete spread            `json:"fresh_delete_insert_seconds"`
	Clean  map[string]spread `json:"clean_seconds"`
	Fresh  map[string]spread `json:"fresh_seconds"`
}

// comparison runs all measurements.
type comparison struct {
	client  *client
	log     *slog.Logger
	plan    plan
	layouts []layout
	repeat  int
	results map[string]*result
	// answers holds the first answer to each question, which all layouts have
	// to give.
	answers map[string]string
}

func (c *comparison) run(ctx context.Context) error {
	c.results, c.answers = make(map[string]*result), make(map[string]string)
	for i := range c.layouts {
		l := &c.layouts[i]
		c.results[l.name] = &result{Name: l.name, About: l.about, DDL: l.create(), Clean: map[string]spread{}, Fresh: map[string]spread{}}
	}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	for i := range c.layouts {
		if err := c.fill(ctx, &c.layouts[i]); err != nil {
			return fmt.Errorf("layout %s: %w", c.layouts[i].name, err)
		}
	}
	if err := c.measure(ctx, "clean", false, func(r *result) map[string]spread { return r.Clean }); err != nil {
		return err
	}
	for i := range c.layouts {
		if err := c.sizes(ctx, &c.layouts[i]); err != nil {
			return err
		}
		if err := c.freshen(ctx, &c.layouts[i]); err != nil {
			return fmt.Errorf("layout %s: %w", c.layouts[i].name, err)
		}
	}
	if err := c.measure(ctx, "fresh", false, func(r *result) map[string]spread { return r.Fresh }); err != nil {
		return err
	}
	if err := c.measure(ctx, "write", true, func(r *result) map[string]spread { return r.Fresh }); err != nil {
		return err
	}
	// The queries once more, unmeasured: all layouts have to see the same deletes.
	c.repeat = 0
	return c.measure(ctx, "after", false, func(*result) map[string]spread { return nil })
}

// exec runs statements whose time is of no interest.
func (c *comparison) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := c.client.query(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// number runs a query that returns one.
func (c *comparison) number(ctx context.Context, sql string) (uint64, error) {
	a, err := c.client.query(ctx, sql)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(a.body), 10, 64)
}

// prepare makes the sources and the keys.
func (c *comparison) prepare(ctx context.Context) error {
	start := time.Now()
	if err := c.exec(ctx, createSource, fillSource(c.plan.rows, c.plan.seed)); err != nil {
		return err
	}
	if err := checkSource(ctx, c.client); err != nil {
		return err
	}
	shares := map[int]bool{}
	for i := range c.layouts {
		shares[c.layouts[i].share()] = true
	}
	if shares[wideShare] {
		if err := c.exec(ctx, createSourceWide, fillSourceWide()); err != nil {
			return err
		}
	}
	made := map[string]bool{}
	for i := range c.layouts {
		l := &c.layouts[i]
		for n := range freshInserts {
			for kind, sql := range map[string]string{
				"updates": freshUpdates(l.source(), n, c.plan.seed),
				"deletes": freshDeletes(l.source(), n, c.plan.seed),
			} {
				name := freshTable(l.source(), kind, n)
				if made[name] {
					continue
				}
				made[name] = true
				if err := c.exec(ctx, "CREATE TABLE "+name+" ENGINE = Memory AS "+sql); err != nil {
					return err
				}
			}
		}
		for _, keys := range []int{keysPerLookup / 10, keysPerLookup} {
			keys = min(keys, c.plan.lookupKeys)
			for set := range keySets {
				name := keysTable(l, keys, set)
				if made[name] {
					continue
				}
				made[name] = true
				if err := c.exec(ctx, createKeys(name, c.plan.rows, keys, l.share(), c.plan.seed)...); err != nil {
					return err
				}
			}
		}
	}
	c.log.InfoContext(ctx, "source generated", "rows", c.plan.rows, "seconds", time.Since(start).Seconds())
	return nil
}

const (
	// fillRows is the size of one insert, that of the consumer's largest block.
	fillRows = 256 << 10
	// fillConcurrency is how many are under way at once, as in the service.
	fillConcurrency = 2
)

// fill inserts all events, in the order of their arrival, and merges them.
func (c *comparison) fill(ctx context.Context, l *layout) error {
	r := c.results[l.name]
	if err := c.exec(ctx, r.DDL...); err != nil {
		return err
	}
	// Numbers go on across the share, so that an insert has as many rows.
	step := fillRows * l.share()
	inserts := (c.plan.rows + step - 1) / step
	times := make([]sample, inserts)
	cpuBefore, err := c.cpu(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fillConcurrency)
	for i := range inserts {
		g.Go(func() error {
			from := fmt.Sprintf("%s WHERE number >= %d AND number < %d", l.source(), i*step, (i+1)*step)
			for _, sql := range l.inserts(from, false) {
				a, err := c.client.query(gctx, sql, insertSettings()...)
				if err != nil {
					return err
				}
				times[i].elapsed += a.elapsed
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	elapsed := time.Since(start)
	cpuAfter, err := c.cpu(ctx)
	if err != nil {
		return err
	}
	if r.Rows, err = c.number(ctx, "SELECT count() FROM "+l.table()); err != nil {
		return err
	}
	r.InsertRowsPerSecond = float64(r.Rows) / elapsed.Seconds()
	r.InsertCPUMicrosPerRow = float64((cpuAfter - cpuBefore).Microseconds()) / float64(r.Rows)
	r.Insert = spreadOf(times)
	cpuBefore = cpuAfter
	start = time.Now()
	for _, table := range l.tables() {
		if err := c.exec(ctx, "OPTIMIZE TABLE "+table+" FINAL SETTINGS optimize_throw_if_noop = 0"); err != nil {
			return err
		}
	}
	r.MergeSeconds = time.Since(start).Seconds()
	if cpuAfter, err = c.cpu(ctx); err != nil {
		return err
	}
	r.MergeCPUSeconds = (cpuAfter - cpuBefore).Seconds()
	a, err := c.client.query(ctx, "SELECT count(), uniqExact(partition_id) FROM system.parts WHERE active AND database = currentDatabase() AND table = '"+l.table()+"'")
	if err != nil {
		return err
	}
	parts := strings.Fields(a.body)
	if len(parts) != 2 || parts[0] != parts[1] {
		return fmt.Errorf("parts and partitions after the merge: %q", a.body)
	}
	c.log.InfoContext(ctx, "layout filled", "layout", l.name, "rows", r.Rows,
		"insert_seconds", elapsed.Seconds(), "merge_seconds", r.MergeSeconds)
	return nil
}

// sizes reads what the merged layout takes.
func (c *comparison) sizes(ctx context.Context, l *layout) error {
	r := c.results[l.name]
	where := " FROM system.parts WHERE active AND database = currentDatabase() AND table "
	a, err := c.client.query(ctx, "SELECT sum(bytes_on_disk), sumIf(primary_key_bytes_in_memory, table = '"+l.table()+"'), sumIf(marks_bytes, table = '"+l.table()+"'), countIf(table = '"+l.table()+"')"+
		where+"IN ('"+strings.Join(l.tables(), "', '")+"')")
	if err != nil {
		return err
	}
	var bytes uint64
	if _, err := fmt.Sscan(a.body, &bytes, &r.PrimaryIndexBytes, &r.MarksBytes, &r.Parts); err != nil {
		return fmt.Errorf("sizes of %s: %w", l.name, err)
	}
	r.BytesPerRow = float64(bytes) / float64(r.Rows)
	a, err = c.client.query(ctx, "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns WHERE active AND database = currentDatabase() AND table = '"+l.table()+"' GROUP BY column")
	if err != nil {
		return err
	}
	r.ColumnBytes = map[string]float64{}
	for line := range strings.Lines(a.body) {
		var column string
		var n float64
		if _, err := fmt.Sscan(line, &column, &n); err != nil {
			return fmt.Errorf("columns of %s: %w", l.name, err)
		}
		r.ColumnBytes[column] = n / float64(r.Rows)
	}
	return nil
}

// freshen updates and deletes 1 % of the events each, in a few inserts.
func (c *comparison) freshen(ctx context.Context, l *layout) error {
	r := c.results[l.name]
	var updates, deletes []sample
	for i := range freshInserts {
		for _, kind := range []struct {
			from   string
			update bool
			times  *[]sample
		}{
			{freshTable(l.source(), "updates", i), true, &updates},
			{freshTable(l.source(), "deletes", i), false, &deletes},
		} {
			var sum sample
			for _, sql := range l.inserts(kind.from, kind.update) {
				_, one, err := c.sampled(ctx, sql, insertSettings())
				if err != nil {
					return err
				}
				sum.elapsed += one.elapsed
				sum.cpu += one.cpu
				sum.rows += one.rows
			}
			*kind.times = append(*kind.times, sum)
		}
	}
	r.Update, r.Delete = spreadOf(updates), spreadOf(deletes)
	var err error
	r.PartsFresh, err = c.number(ctx, "SELECT count() FROM system.parts WHERE active AND database = currentDatabase() AND table = '"+l.table()+"'")
	if err != nil {
		return err
	}
	c.log.InfoContext(ctx, "layout updated", "layout", l.name, "parts", r.PartsFresh)
	return nil
}

// measure runs every operation on every layout, in turns, so that what else
// the machine does hits all of them alike, and compares their answers.
func (c *comparison) measure(ctx context.Context, state string, write bool, into func(*result) map[string]spread) error {
	start := time.Now()
	ops := operations()
	times := map[[2]string][]sample{}
	for rep := range c.repeat + 1 {
		for _, op := range ops {
			if op.write != write || op.rare && rep > max(1, c.repeat/2) {
				continue
			}
			if op.rare && (rep == 0 || !write && state != "clean") {
				continue // too slow to warm up or to repeat much, and fresh writes change little
			}
			for n := range max(1, op.times) {
				for i := range c.layouts {
					// Every other time backwards.
					if rep%2 == 1 {
						i = len(c.layouts) - 1 - i
					}
					l := &c.layouts[i]
					if op.only != nil && !op.only(l) {
						continue
					}
					one, err := c.one(ctx, state, &op, l, rep*max(1, op.times)+n)
					if err != nil {
						return fmt.Errorf("%s of %s, %s: %w", op.name, l.name, state, err)
					}
					if rep > 0 { // the first time warms up
						times[[2]string{l.name, op.name}] = append(times[[2]string{l.name, op.name}], one)
					}
				}
			}
		}
	}
	for key, d := range times {
		into(c.results[key[0]])[key[1]] = spreadOf(d)
	}
	c.log.InfoContext(ctx, "measured", "state", state, "seconds", time.Since(start).Seconds())
	return nil
}

func (c *comparison) one(ctx context.Context, state string, op *operation, l *layout, n int) (sample, error) {
	settings := append(readSettings(), op.settings...)
	if op.write {
		settings = insertSettings()
	}
	a, measured, err := c.sampled(ctx, op.sql(l, &c.plan, n), settings)
	if err != nil {
		return sample{}, err
	}
	return measured, c.agree(fmt.Sprint(state, " ", op.name, " ", n, " share ", l.share()), a.body)
}

// sampled runs a statement while no other one does.
func (c *comparison) sampled(ctx context.Context, sql string, settings []string) (answer, sample, error) {
	before, err := c.cpu(ctx)
	if err != nil {
		return answer{}, sample{}, err
	}
	a, err := c.client.query(ctx, sql, settings...)
	if err != nil {
		return answer{}, sample{}, err
	}
	after, err := c.cpu(ctx)
	return a, sample{a.elapsed, after - before, a.rows}, err
}

// cpu is the CPU time that the server has spent on statements and merges.
func (c *comparison) cpu(ctx context.Context) (time.Duration, error) {
	us, err := c.number(ctx, "SELECT sum(value) FROM system.events WHERE event IN ('UserTimeMicroseconds', 'SystemTimeMicroseconds')")
	return time.Duration(us) * time.Microsecond, err
}

// agree remembers the first answer to a question, and refuses every other.
func (c *comparison) agree(question, answer string) error {
	first, asked := c.answers[question]
	if !asked {
		c.answers[question] = answer
	} else if first != answer {
		return fmt.Errorf("%s: the answer differs from that of another layout: %.300q instead of %.300q", question, answer, first)
	}
	return nil
}
