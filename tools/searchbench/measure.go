package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fulltext"
	"github.com/sluicehq/sluice/internal/query"
	"github.com/sluicehq/sluice/tools/internal/enginedb"
)

const (
	// A question is asked once unmeasured, and then so many times.
	repeatsMin = 5
	repeatsMax = 50
	// realQueries is how many searches among the real embeddings are compared.
	realQueries = 200
	// nearest is how many events a search for similar ones asks for.
	nearest = 10
	// pageEvents is how many events a list or a search for text asks for.
	pageEvents = 50
)

// result is what was measured at one size.
type result struct {
	size
	events, contents, index, vectors, signs int64 // bytes on disk
	merged, words, signsTime                time.Duration
	// clean and changed have the median of each question, in the order of questions.
	clean, changed []time.Duration
	// load is the load average of the machine over a minute, before the first and after the
	// last question. More than the number of cores says that others used them too.
	load [2]string
	// recall is the share of the nearest events that are found, of recombined embeddings.
	recall float64
}

// results are those of all sizes.
type results struct {
	sizes []result
	// realVectors is the number of real embeddings, and realRecall the share of the
	// nearest among them that are found.
	realVectors int
	realRecall  float64
	texts       int
}

// measure calls done with the results so far after each size.
func (s *suite) measure(ctx context.Context, done func(*results) error) error {
	c, err := readCorpus(s.texts, s.embeddings)
	if err != nil {
		return err
	}
	all := &results{realVectors: len(c.vectors), texts: c.texts}
	if all.realRecall, err = s.measureReal(ctx, c); err != nil {
		return err
	}
	for _, size := range s.sizes {
		r, err := s.measureSize(ctx, c, size)
		if err != nil {
			return err
		}
		all.sizes = append(all.sizes, r)
		if err := done(all); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) say(format string, args ...any) {
	fmt.Fprintf(s.progress, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}

func (s *suite) measureSize(ctx context.Context, c *corpus, size size) (r result, err error) {
	r.size = size
	db, err := enginedb.Start(ctx, enginedb.Config{Dir: s.dir}, s.log)
	if err != nil {
		return r, err
	}
	d := &database{DB: db, size: size, corpus: c}
	defer func() { err = errors.Join(err, d.Close()) }()
	s.say("filling %d contents and %d vectors", size.contents, size.vectors)
	if r.merged, err = d.fill(ctx); err != nil {
		return r, err
	}
	s.say("building the index of words and the signs")
	if r.words, r.signsTime, err = d.build(ctx); err != nil {
		return r, err
	}
	if err := d.disk(ctx, &r); err != nil {
		return r, err
	}
	r.load[0] = loadAverage()
	if r.clean, err = s.ask(ctx, d, "clean"); err != nil {
		return r, err
	}
	s.say("comparing %d searches with the exact answers", s.queries)
	if r.recall, err = recall(ctx, d.Store, searches(c, s.queries, true)); err != nil {
		return r, err
	}
	if err := d.change(ctx); err != nil {
		return r, err
	}
	r.changed, err = s.ask(ctx, d, "after changes")
	r.load[1] = loadAverage()
	return r, err
}

// loadAverage returns the load average of the machine over a minute. It is only known on Linux.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(text), " ")
	return cmp.Or(load, "not known")
}

// disk reads what the merged tables take.
func (d *database) disk(ctx context.Context, r *result) error {
	rows, err := d.Query(ctx, `SELECT
		(SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'events'),
		(SELECT sum(bytes_on_disk - secondary_indices_compressed_bytes) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'event_contents'),
		(SELECT sum(secondary_indices_compressed_bytes) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'event_contents'),
		(SELECT sum(column_bytes_on_disk) FROM system.parts_columns WHERE active AND database = currentDatabase() AND table = 'event_embeddings' AND column != 'signs'),
		(SELECT sum(column_bytes_on_disk) FROM system.parts_columns WHERE active AND database = currentDatabase() AND table = 'event_embeddings' AND column = 'signs')`)
	if err != nil {
		return err
	}
	for i, to := range []*int64{&r.events, &r.contents, &r.index, &r.vectors, &r.signs} {
		if *to, err = strconv.ParseInt(rows[0][i], 10, 64); err != nil {
			return fmt.Errorf("bytes on disk: %w", err)
		}
	}
	return nil
}

// question is a read that is measured.
type question struct {
	name string
	// targets are the milliseconds that its median is to take, clean and after changes: for
	// texts and lists at 100 million. Empty where there are none.
	targets string
	// mayBeEmpty says that a small database may have nothing to find.
	mayBeEmpty bool
	ask        func(ctx context.Context, store *clickhouse.Store, c *corpus) (found int, err error)
}

// questions are in the order of the report.
func questions() []question {
	all := query.Filter{UntilMicros: query.MicrosMax}
	text := func(words func(c *corpus) string) func(context.Context, *clickhouse.Store, *corpus) (int, error) {
		return func(ctx context.Context, store *clickhouse.Store, c *corpus) (int, error) {
			parsed, err := fulltext.Parse(words(c))
			if err != nil {
				return 0, err
			}
			hits, err := store.SearchText(ctx, query.TextSearch{Filter: all, Text: parsed, Fields: query.SearchFields{Input: true, Output: true, Error: true}, LimitEvents: pageEvents, BytesMax: 8 << 20})
			return len(hits.Hits), err
		}
	}
	similar := func(f query.Filter, exact bool) func(context.Context, *clickhouse.Store, *corpus) (int, error) {
		return func(ctx context.Context, store *clickhouse.Store, c *corpus) (int, error) {
			hits, err := store.SearchSimilar(ctx, query.SimilarSearch{Filter: f, Vector: c.vectors[0], Input: true, Output: true, LimitEvents: nearest, BytesMax: 8 << 20, Exact: exact})
			return len(hits.Hits), err
		}
	}
	list := func(f query.Filter) func(context.Context, *clickhouse.Store, *corpus) (int, error) {
		return func(ctx context.Context, store *clickhouse.Store, _ *corpus) (int, error) {
			page, err := store.List(ctx, query.List{Filter: f, Newest: true, LimitEvents: pageEvents})
			return len(page.Events), err
		}
	}
	latency := 999.0
	named, failed, slow, pro, one := all, all, all, all, all
	named.EventNames, failed.Errors, slow.LatencyMin = []string{"event_b"}, query.WithError, &latency
	pro.Metadata, one.ConversationID = []query.MetadataFilter{{Key: "plan", Value: "pro"}}, "c7"
	return []question{
		{"text: a word that 5 events have", "100 · 300", false, text(func(*corpus) string { return rareWord })},
		{"text: two words", "", true, text(func(c *corpus) string { return c.few[0] + " " + c.few[1] })},
		{"text: newest 50 with the most common word", "150 · 300", false, text(func(c *corpus) string { return c.common })},
		{"nearest 10", "100 for 1 M, 700 for 10 M", false, similar(all, false)},
		{"nearest 10 of half of the events", "", false, similar(pro, false)},
		{"nearest 10 of a 97th of the events", "", false, similar(failed, false)},
		{"nearest 10, exact", "", false, similar(all, true)},
		{"newest 50 events", "100 · 250", false, list(all)},
		{"… of a name", "100 · 250", false, list(named)},
		{"… with an error", "100 · 250", false, list(failed)},
		{"… of a plan in the metadata", "100 · 250", false, list(pro)},
		{"… with a high latency", "100 · 250", false, list(slow)},
		{"… of a conversation", "100 · 250", false, list(one)},
		{"newest 50 conversations, with the beginnings of their texts", "", false, func(ctx context.Context, store *clickhouse.Store, _ *corpus) (int, error) {
			rows, err := store.ConversationList(ctx, query.ConversationList{Filter: all, LimitRows: pageEvents, PreviewChars: 200})
			return len(rows), err
		}},
	}
}

// ask asks each question, and returns the median times.
func (s *suite) ask(ctx context.Context, d *database, state string) ([]time.Duration, error) {
	var medians []time.Duration
	for _, q := range questions() {
		var times []time.Duration
		for begun := time.Now(); len(times) <= repeatsMax && (len(times) <= repeatsMin || time.Since(begun) < s.repeat); {
			start := time.Now()
			found, err := q.ask(ctx, d.Store, d.corpus)
			if err == nil && found == 0 && !q.mayBeEmpty {
				err = errors.New("nothing was found")
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", q.name, err)
			}
			times = append(times, time.Since(start))
		}
		m := median(times[1:])
		s.say("%s, %s: %v", q.name, state, m.Round(100*time.Microsecond))
		medians = append(medians, m)
	}
	return medians, nil
}

// median returns the middle of the times, which it sorts.
func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// searches returns vectors to search for: real ones, or every second made of three real ones.
func searches(c *corpus, n int, mixed bool) [][]float32 {
	r := rand.New(rand.NewPCG(1, 14))
	vectors := make([][]float32, n)
	for i := range vectors {
		vectors[i] = c.vectors[r.IntN(len(c.vectors))]
		if mixed && i%2 == 1 {
			vectors[i] = slices.Clone(vectors[i])
			for range 2 {
				other, share := c.vectors[r.IntN(len(c.vectors))], r.Float32()
				for j := range vectors[i] {
					vectors[i][j] += share * other[j]
				}
			}
		}
	}
	return vectors
}

// recall returns the share of the nearest events by all vectors that a search finds. An event
// that is as near as the last of the nearest counts.
func recall(ctx context.Context, store *clickhouse.Store, vectors [][]float32) (float64, error) {
	found, of := 0, 0
	for _, vector := range vectors {
		q := query.SimilarSearch{Filter: query.Filter{UntilMicros: query.MicrosMax}, Vector: vector, Input: true, Output: true, LimitEvents: nearest, BytesMax: 8 << 20, Exact: true}
		want, err := store.SearchSimilar(ctx, q)
		if err != nil {
			return 0, err
		}
		q.Exact = false
		got, err := store.SearchSimilar(ctx, q)
		if err != nil {
			return 0, err
		}
		if len(want.Hits) == 0 {
			return 0, errors.New("an exact search found nothing")
		}
		last := want.Hits[len(want.Hits)-1].Score
		of += len(want.Hits)
		for _, h := range got.Hits {
			if h.Score >= last-1e-9 {
				found++
			}
		}
	}
	return float64(found) / float64(of), nil
}

// measureReal returns the recall among the real embeddings alone, by their signs.
func (s *suite) measureReal(ctx context.Context, c *corpus) (_ float64, err error) {
	db, err := enginedb.Start(ctx, enginedb.Config{Dir: s.dir}, s.log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	store, err := db.Open(ctx, clickhouse.Config{SimilarExactRows: 1})
	if err != nil {
		return 0, err
	}
	defer store.Close()
	var rows event.Rows
	for i, vector := range c.vectors {
		id := event.NewID(firstMicros+int64(i), "real")
		position := event.MakePosition(1, int64(i+1))
		version := event.MakeVersion(event.ClassCreate, position)
		rows.Cores = append(rows.Cores, event.Core{ID: id, ConversationID: "real", EventName: "event_a", Created: position, Version: version})
		rows.Embeddings = append(rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(vector...), Version: version})
	}
	if err := store.Insert(ctx, &rows); err != nil {
		return 0, err
	}
	s.say("comparing %d searches of %d real embeddings with the exact answers", realQueries, len(c.vectors))
	return recall(ctx, store, searches(c, realQueries, false))
}
