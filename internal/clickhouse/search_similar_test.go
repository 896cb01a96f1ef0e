package clickhouse_test

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// realVectors returns the embeddings of the real conversations that come with Sluice: 384
// dimensions each.
func realVectors(t *testing.T) [][]float32 {
	t.Helper()
	file, err := os.Open("../bench/workload/corpus/embedded.ndjson.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors [][]float32
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Input  []byte `json:"input_embeddings"`
			Output []byte `json:"output_embeddings"`
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{e.Input, e.Output} {
			vector := make([]float32, len(data)/4)
			for i := range vector {
				vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
			}
			vectors = append(vectors, vector)
		}
	}
	if err := lines.Err(); err != nil || len(vectors) == 0 {
		t.Fatalf("%d vectors, error %v", len(vectors), err)
	}
	return vectors
}

// similarWorld is a history of events with embeddings, and what is left of it.
type similarWorld struct {
	rows event.Rows
	live map[string]*similarEvent
}

type similarEvent struct {
	conversation, name string
	micros             int64
	input, output      []float32
}

// score returns the cosine similarity to the nearer one of the embeddings.
func (e *similarEvent) score(q *query.SimilarSearch) (float64, bool) {
	best, found := math.Inf(-1), false
	for _, v := range [...]struct {
		vector   []float32
		searched bool
	}{{e.input, q.Input}, {e.output, q.Output}} {
		if !v.searched || len(v.vector) != len(q.Vector) {
			continue
		}
		var dot, a, b float64
		for i, x := range q.Vector {
			y := v.vector[i]
			dot, a, b = dot+float64(x)*float64(y), a+float64(x)*float64(x), b+float64(y)*float64(y)
		}
		if score := dot / math.Sqrt(a*b); !math.IsNaN(score) {
			best, found = max(best, score), true
		}
	}
	return best, found
}

// newSimilarWorld makes n events with the embeddings that next returns. Some events are
// updated, and some deleted.
func newSimilarWorld(t *testing.T, r *rand.Rand, n int, next func() []float32) *similarWorld {
	t.Helper()
	w := &similarWorld{live: make(map[string]*similarEvent)}
	first := clickhousetest.At(t, "2026-01-20T00:00:00Z")
	offset := int64(0)
	for i := range n {
		e := &similarEvent{
			conversation: fmt.Sprint("conversation ", r.IntN(50)), name: []string{"event_a", "event_b", "rare"}[min(r.IntN(40)/18, 2)],
			micros: first + int64(i)*200_000_000, input: next(),
		}
		if r.IntN(2) == 0 {
			e.output = next()
		}
		id := event.NewID(e.micros, e.conversation)
		write := func(class event.Class, input, output []float32) {
			offset++
			position := event.MakePosition(1, offset)
			version := event.MakeVersion(class, position)
			core := event.Core{ID: id, ConversationID: e.conversation, EventName: e.name, Created: position, Version: version}
			embed := func(field event.Field, vector []float32) {
				w.rows.Embeddings = append(w.rows.Embeddings, event.EmbeddingRow{ID: id, Field: field, Vector: event.VectorOf(vector...), Version: version, Deleted: class == event.ClassDelete})
			}
			if class == event.ClassDelete {
				core = event.Core{ID: id, Version: version, Deleted: true}
			}
			if class != event.ClassUpdate {
				w.rows.Cores = append(w.rows.Cores, core)
			}
			if input != nil || class == event.ClassDelete {
				embed(event.FieldInputEmbeddings, input)
			}
			if output != nil || class == event.ClassDelete {
				embed(event.FieldOutputEmbeddings, output)
			}
		}
		write(event.ClassCreate, e.input, e.output)
		switch r.IntN(10) {
		case 0:
			e.input = next()
			write(event.ClassUpdate, e.input, nil)
		case 1:
			write(event.ClassDelete, nil, nil)
			continue
		}
		w.live[id.String()] = e
	}
	return w
}

// check compares the nearest events with those of the model, and returns how many of the
// nearest were found, of how many. Whatever is found must be right.
func (w *similarWorld) check(t *testing.T, store *clickhouse.Store, q query.SimilarSearch, matches func(*similarEvent) bool) (found, of int) {
	t.Helper()
	var scores []float64
	for _, e := range w.live {
		if score, ok := e.score(&q); ok && matches(e) {
			scores = append(scores, score)
		}
	}
	slices.SortFunc(scores, func(a, b float64) int { return cmp.Compare(b, a) })
	scores = scores[:min(len(scores), q.LimitEvents)]
	q.BytesMax = 8 << 20
	hits, err := store.SearchSimilar(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if len(hits.Hits) != len(scores) {
		t.Fatalf("%d events, want %d", len(hits.Hits), len(scores))
	}
	seen := make(map[string]bool)
	for i, h := range hits.Hits {
		e := w.live[h.Event.ID]
		if e == nil || !matches(e) || seen[h.Event.ID] {
			t.Fatalf("%q is found, which is not live, not in the filter, or found twice", h.Event.ID)
		}
		seen[h.Event.ID] = true
		if score, _ := e.score(&q); math.Abs(h.Score-score) > 1e-9 {
			t.Fatalf("%q has the score %v, want %v", h.Event.ID, h.Score, score)
		}
		if i > 0 && h.Score > hits.Hits[i-1].Score {
			t.Fatalf("place %d has a higher score than the one before", i)
		}
		if h.Score >= scores[len(scores)-1]-1e-9 {
			found++
		}
	}
	return found, len(scores)
}

// similarFilter is a filter, and what it matches.
type similarFilter struct {
	name    string
	filter  query.Filter
	matches func(*similarEvent) bool
}

func similarFilters(t *testing.T) []similarFilter {
	t.Helper()
	all := query.Filter{UntilMicros: query.MicrosMax}
	since, until := clickhousetest.At(t, "2026-01-24T00:00:00Z"), clickhousetest.At(t, "2026-01-29T12:00:00Z")
	days, common, rare, one := all, all, all, all
	days.SinceMicros, days.UntilMicros = since, until
	common.EventNames, rare.EventNames, one.ConversationID = []string{"event_a"}, []string{"rare"}, "conversation 7"
	return []similarFilter{
		{"everything", all, func(*similarEvent) bool { return true }},
		{"days", days, func(e *similarEvent) bool { return e.micros >= since && e.micros < until }},
		{"a common name", common, func(e *similarEvent) bool { return e.name == "event_a" }},
		{"a rare name", rare, func(e *similarEvent) bool { return e.name == "rare" }},
		{"one conversation", one, func(e *similarEvent) bool { return e.conversation == "conversation 7" }},
	}
}

// bySigns returns the configuration of a store that compares signs first, however few vectors there are.
func bySigns(server *enginetest.Instance, database string) clickhouse.Config {
	cfg := clickhousetest.Config(server, database)
	cfg.SimilarExactRows = 1
	return cfg
}

// TestSimilarBySigns searches embeddings of real conversations, recombined, among them some without a direction and of
// other lengths. What is found by the signs first is nearly all; by all vectors, all.
func TestSimilarBySigns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 16))
	vectors := realVectors(t)
	mixed := func() []float32 {
		vector := make([]float32, len(vectors[0]))
		for range 3 { // so that no vector is much nearer than all others
			other, share := pick(r, vectors), r.Float32()
			for i := range vector {
				vector[i] += share * other[i]
			}
		}
		return vector
	}
	w := newSimilarWorld(t, r, 5000, func() []float32 {
		switch r.IntN(40) {
		case 0:
			return make([]float32, len(vectors[0])) // no direction
		case 1:
			vector := slices.Clone(pick(r, vectors))
			vector[r.IntN(len(vector))] = float32(math.NaN())
			return vector
		case 2:
			return pick(r, vectors)[:383] // as many bytes of signs as 384
		case 3:
			return []float32{r.Float32() - 0.5, r.Float32() - 0.5, 1}
		}
		return mixed()
	})
	exact, server, database := clickhousetest.Migrated(t)
	single := clickhousetest.Open(t, bySigns(server, database))
	clickhousetest.Insert(t, single, w.rows)
	stores, cluster, spread := clickhousetest.Spread(t)
	clickhousetest.Insert(t, stores[0], w.rows)
	onCluster := clickhousetest.Open(t, bySigns(cluster.Servers[1], spread))
	if _, err := onCluster.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*clickhouse.Store{"one server": single, "two shards": onCluster} {
		t.Run(name, func(t *testing.T) {
			r = rand.New(rand.NewPCG(4, 16))
			total, totalOf := 0, 0
			for _, f := range similarFilters(t) {
				found, of := 0, 0
				for i := range 12 {
					q := query.SimilarSearch{Filter: f.filter, Vector: mixed(), Input: i%3 != 1, Output: i%3 != 2, LimitEvents: 10}
					if i%4 == 0 {
						q.Vector = pick(r, vectors)[:383+i%8/4]
					}
					n, m := w.check(t, store, q, f.matches)
					found, of = found+n, of+m
				}
				t.Logf("%s: %d of %d found", f.name, found, of)
				total, totalOf = total+found, totalOf+of
				q := query.SimilarSearch{Filter: f.filter, Vector: mixed(), Input: true, Output: true, LimitEvents: 25, Exact: true}
				if found, of := w.check(t, store, q, f.matches); found != of {
					t.Errorf("%s, exact: %d of %d found", f.name, found, of)
				}
				q.Vector, q.Exact = []float32{0.5, -0.25, 1}, false
				if found, of := w.check(t, store, q, f.matches); found != of {
					t.Errorf("%s, of 3 dimensions: %d of %d found", f.name, found, of)
				}
			}
			if 100*total < 98*totalOf {
				t.Errorf("%d of %d found, want 98 %%", total, totalOf)
			}
		})
	}
	for _, f := range similarFilters(t) {
		q := query.SimilarSearch{Filter: f.filter, Vector: mixed(), Input: true, Output: true, LimitEvents: 100}
		if found, of := w.check(t, exact, q, f.matches); found != of {
			t.Errorf("%s, fewer vectors than are compared one by one: %d of %d found", f.name, found, of)
		}
	}
}

// TestSimilarWhereSignsTellNothing has vectors without a negative dimension. All have the same signs, so all are compared.
func TestSimilarWhereSignsTellNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 16))
	positive := func() []float32 {
		vector := make([]float32, 128)
		for i := range vector {
			vector[i] = r.Float32()
		}
		return vector
	}
	w := newSimilarWorld(t, r, 8000, positive)
	_, server, database := clickhousetest.Migrated(t)
	store := clickhousetest.Open(t, bySigns(server, database))
	clickhousetest.Insert(t, store, w.rows)
	for _, f := range similarFilters(t) {
		q := query.SimilarSearch{Filter: f.filter, Vector: positive(), Input: true, Output: true, LimitEvents: 10}
		if found, of := w.check(t, store, q, f.matches); found != of {
			t.Errorf("%s: %d of %d found", f.name, found, of)
		}
	}
}

// TestSimilarUnderOldVersions has the nearest vectors in old versions and deleted events, many times as many as one step takes.
func TestSimilarUnderOldVersions(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 16))
	vectors := realVectors(t)
	target := vectors[0]
	near := func() []float32 {
		vector := slices.Clone(target)
		for i := range vector {
			vector[i] += float32(r.NormFloat64()) * 0.001
		}
		return vector
	}
	w := newSimilarWorld(t, r, 1500, func() []float32 { return pick(r, vectors[1:]) })
	moved := newSimilarWorld(t, r, 0, nil)
	first := clickhousetest.At(t, "2026-01-25T00:00:00.000001Z")
	for i := range int64(800) {
		e := &similarEvent{conversation: "moved", name: "event_a", micros: first + i, input: pick(r, vectors[1:])}
		id := event.NewID(e.micros, e.conversation)
		position, version := clickhousetest.Created(100_000 + i)
		moved.rows.Cores = append(moved.rows.Cores, event.Core{ID: id, ConversationID: e.conversation, EventName: e.name, Created: position, Version: version})
		moved.rows.Embeddings = append(moved.rows.Embeddings,
			event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(near()...), Version: version})
		if i%2 == 0 {
			moved.rows.Embeddings = append(moved.rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Vector: event.VectorOf(e.input...), Version: clickhousetest.Updated(200_000 + i)})
			w.live[id.String()] = e
			continue
		}
		moved.rows.Cores = append(moved.rows.Cores, event.Core{ID: id, Version: clickhousetest.Deleted(200_000 + i), Deleted: true})
		moved.rows.Embeddings = append(moved.rows.Embeddings, event.EmbeddingRow{ID: id, Field: event.FieldInputEmbeddings, Version: clickhousetest.Deleted(200_000 + i), Deleted: true})
	}
	_, server, database := clickhousetest.Migrated(t)
	store := clickhousetest.Open(t, bySigns(server, database))
	server.Query(t, "SYSTEM STOP MERGES "+database+".event_embeddings")
	clickhousetest.Insert(t, store, w.rows)
	clickhousetest.Insert(t, store, moved.rows)
	for _, f := range similarFilters(t) {
		q := query.SimilarSearch{Filter: f.filter, Vector: target, Input: true, LimitEvents: 10}
		if found, of := w.check(t, store, q, f.matches); 100*found < 98*of {
			t.Errorf("%s: %d of %d found", f.name, found, of)
		}
	}
}
