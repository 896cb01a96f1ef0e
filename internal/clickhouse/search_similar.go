package clickhouse

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

const (
	// neighborsMore is how many neighbors are taken beside two for each event that is asked for.
	neighborsMore = 16
	// neighborsMax bounds how many vectors one step of a similarity search returns.
	neighborsMax = 1 << 20
	// candidatesPerNeighbor is how many candidates are found by their signs for each
	// neighbor that is asked for, among vectors of signsDimensions or more. There are two
	// neighbors for each event that is asked for.
	candidatesPerNeighbor = 5
	signsDimensions       = 256
	// signsDimensionsMin is the least number of dimensions whose signs tell enough. Fewer
	// dimensions are compared fast as they are.
	signsDimensionsMin = 128
	// filteredCandidatesMin is the least number of candidates among the events of a
	// filter. If the filter leaves fewer, all are compared.
	filteredCandidatesMin = 1024
	// candidateBytesMax bounds the memory of the candidates' vectors. A step that needs
	// more compares all vectors, which takes less memory.
	candidateBytesMax = 64 << 20
	// candidateTries is how often more candidates are asked for before all vectors are
	// compared.
	candidateTries = 3
)

// distanceError is more than the distance of ClickHouse, in float32, can be wrong.
const distanceError = 1e-5

// neighbor is a row of an embedding near the vector of a search.
type neighbor struct {
	fieldOf
	distance float32
	// signs is the number of dimensions in which the signs of the two vectors differ. It
	// is 0 if the signs were not compared.
	signs uint64
}

// SearchSimilar returns the events of the filter whose embeddings are nearest to the
// vector, the nearest first. The score of a hit is the cosine similarity, from -1 to 1.
//
// The answer is exact if the time range and the conversation of the filter have at most
// [conn.Config.SimilarExactRows] vectors, if the vectors are short, or if the search asks for
// it: then all vectors with as many dimensions are compared. Otherwise the signs of the
// vectors are compared first, which are a 32nd of their size, and the vectors of the
// candidates that are left. So a few of the nearest events may be missing.
//
// The nearest rows may be of old versions, of deleted events, or of events outside the
// filter. So each is checked, and more rows are taken if too few are left.
func (s *Store) SearchSimilar(ctx context.Context, q query.SimilarSearch) (query.Hits, error) {
	var hits query.Hits
	exact := q.Exact || len(q.Vector) < signsDimensionsMin
	if !exact {
		var err error
		if exact, err = s.fewVectors(ctx, q); err != nil {
			return hits, err
		}
	}
	filtered := false
	for rows := 2*q.LimitEvents + neighborsMore; ; rows = min(4*rows, neighborsMax) {
		neighbors, all, err := s.neighbors(ctx, q, rows, filtered, exact)
		if err != nil {
			return hits, err
		}
		scoreMin := -math.MaxFloat64
		if !all && len(neighbors) > 0 {
			// An event whose embedding was once near, and is now further than the last
			// neighbor, may come after events that are not among the neighbors.
			scoreMin = 1 - float64(neighbors[len(neighbors)-1].distance) - distanceError
		}
		similar, left, err := s.current(ctx, q, neighbors, scoreMin)
		if err != nil {
			return hits, err
		}
		enough := len(similar) >= q.LimitEvents
		if !exact && !filtered {
			// If the filter takes away many neighbors, it took away as large a share of the
			// candidates, so that they were too few to find the nearest events that it leaves.
			enough = enough && left >= q.LimitEvents+neighborsMore/2
		}
		if enough || all || rows == neighborsMax {
			return s.similarHits(ctx, q, similar[:min(len(similar), q.LimitEvents)])
		}
		// If so many rows were in vain, the filter is worth asking first. It costs a read of
		// all events, and more candidates cost little.
		filtered = filtered || exact || 8*left < len(neighbors)
	}
}

// similarRows returns the condition, in a PREWHERE, of the vectors that are compared.
func similarRows(q query.SimilarSearch, sel *selection) string {
	prewhere := "1" + sel.bounds + " AND deleted = 0"
	switch {
	case !q.Output:
		prewhere += " AND field = 'input'"
	case !q.Input:
		prewhere += " AND field = 'output'"
	}
	sel.params = sel.params.Int("dimensions", int64(len(q.Vector)))
	// The lengths of the vectors are a column of their own. length(vector) may read the vectors.
	return prewhere + " AND vector.size0 = {dimensions:UInt64}"
}

// fewVectors reports whether the time range and the conversation of the filter have so few
// vectors that all are compared. Old versions count.
func (s *Store) fewVectors(ctx context.Context, q query.SimilarSearch) (bool, error) {
	sel := s.selectEvents(q.Filter)
	prewhere := similarRows(q, &sel)
	var count proto.ColUInt64
	few := false
	err := s.db.Query(ctx, conn.RoleAnalytics, "similar_count", s.readTimeout(), ch.Query{
		Body:       "SELECT count() AS count FROM (SELECT 1 FROM event_embeddings PREWHERE " + prewhere + " LIMIT {limit:UInt64})",
		Parameters: sel.params.Int("limit", int64(s.cfg.SimilarExactRows)+1),
		Settings:   sel.settings,
		Result:     proto.Results{{Name: "count", Data: &count}},
		OnResult: func(context.Context, proto.Block) error {
			for _, n := range count {
				few = n <= uint64(s.cfg.SimilarExactRows)
			}
			return nil
		},
	})
	return few, err
}

// neighbors returns the nearest rows, at most limit, and whether these are all rows there
// are. filtered leaves out events that do not match the filter. exact compares all
// vectors, and not only those with the most similar signs.
func (s *Store) neighbors(ctx context.Context, q query.SimilarSearch, limit int, filtered, exact bool) (_ []neighbor, all bool, err error) {
	candidates := candidatesPerNeighbor * limit * max(signsDimensions, len(q.Vector)) / len(q.Vector)
	if filtered {
		candidates = max(candidates, filteredCandidatesMin)
	}
	for try := 0; !exact && try < candidateTries && candidates <= candidateBytesMax/(4*len(q.Vector)); try++ {
		found, err := s.candidates(ctx, q, candidates, filtered)
		if err != nil {
			return nil, false, err
		}
		all := len(found) < candidates
		// The signs of the candidates that were left out differ at least as much as those
		// of the worst candidate.
		var worst uint64
		for _, n := range found {
			worst = max(worst, n.signs)
		}
		found = slices.DeleteFunc(found, func(n neighbor) bool { return n.distance != n.distance })
		nearest := found[:min(q.LimitEvents, len(found))]
		// If one of the nearest is as bad a candidate as the worst, the signs tell too little
		// about these vectors for so few candidates. Otherwise the nearest do not depend on
		// which of the worst candidates were taken.
		if all || len(found) >= limit && !slices.ContainsFunc(nearest, func(n neighbor) bool { return n.signs == worst }) {
			return found[:min(limit, len(found))], all && len(found) <= limit, nil
		}
		candidates *= 4
	}
	found, err := s.nearest(ctx, q, limit, filtered)
	return found, len(found) < limit, err
}

// Expressions of a similarity search. The signs of a vector are those of the column signs.
const (
	distanceExpr = "toFloat32(cosineDistance(vector, {vector:Array(Float32)}))"
	signsExpr    = "bitHammingDistance(signs, unbin(reinterpret(arrayMap(x -> if(x < 0, 49, 48), {vector:Array(Float32)}), 'String')))"
)

// nearest returns the nearest rows, at most limit. It compares all vectors.
func (s *Store) nearest(ctx context.Context, q query.SimilarSearch, limit int, filtered bool) ([]neighbor, error) {
	sel := s.selectEvents(q.Filter)
	from := " FROM event_embeddings PREWHERE " + similarRows(q, &sel) + " WHERE " + similarFilter(&sel, filtered)
	return s.readNeighbors(ctx, q, &sel, limit, "SELECT id, CAST(field, 'Int8') AS field_number, "+distanceExpr+" AS distance, toUInt64(0) AS signs_distance"+
		from+" AND NOT isNaN(distance) ORDER BY distance, id LIMIT {limit:UInt64}")
}

// candidates returns the rows whose signs differ least from those of the vector, at most
// limit, the nearest first. The distance of vectors without a direction is NaN; these
// are last.
func (s *Store) candidates(ctx context.Context, q query.SimilarSearch, limit int, filtered bool) ([]neighbor, error) {
	sel := s.selectEvents(q.Filter)
	from := " FROM event_embeddings PREWHERE " + similarRows(q, &sel) + " WHERE " + similarFilter(&sel, filtered)
	// ClickHouse reads the vectors, and the ids, of the rows that are left after the limit alone. Of
	// rows whose signs differ as much, any may be left: see the worst candidate in neighbors.
	sel.settings = append(sel.settings, conn.Setting("query_plan_optimize_lazy_materialization", "1"), conn.Setting("query_plan_max_limit_for_lazy_materialization", "0"))
	return s.readNeighbors(ctx, q, &sel, limit, "SELECT id, CAST(field, 'Int8') AS field_number, "+distanceExpr+" AS distance, signs_distance"+
		" FROM (SELECT id, field, vector, toUInt64("+signsExpr+") AS signs_distance"+from+
		" ORDER BY signs_distance LIMIT {limit:UInt64}) ORDER BY distance, id")
}

// similarFilter returns the condition that leaves out events outside of the filter.
func similarFilter(sel *selection, filtered bool) string {
	if !filtered {
		return "1"
	}
	return "(timestamp, id) IN (SELECT timestamp, id" + sel.from() + ")"
}

// readNeighbors runs a query that returns neighbors.
func (s *Store) readNeighbors(ctx context.Context, q query.SimilarSearch, sel *selection, limit int, body string) ([]neighbor, error) {
	var (
		id        proto.ColUUID
		field     proto.ColInt8
		distance  proto.ColFloat32
		signs     proto.ColUInt64
		neighbors []neighbor
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "similar", s.readTimeout(), ch.Query{
		Body:       body,
		Parameters: sel.params.Floats("vector", q.Vector).Int("limit", int64(limit)),
		Settings:   append(sel.settings, conn.Setting("distributed_product_mode", "local")),
		Result: proto.Results{
			{Name: "id", Data: &id}, {Name: "field_number", Data: &field}, {Name: "distance", Data: &distance}, {Name: "signs_distance", Data: &signs},
		},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				neighbors = append(neighbors, neighbor{fieldOf{event.ID(id[i]), uint8(field[i])}, distance[i], signs[i]})
			}
			return nil
		},
	})
	return neighbors, err
}

// similarCore is the core row of a hit.
type similarCore struct {
	core  event.Core
	score float64
}

// current returns the nearest events of those of the neighbors, by their current
// embeddings. It leaves out events outside of the filter, and those with a lower score
// than scoreMin. left is the number of neighbors whose events are inside the filter.
func (s *Store) current(ctx context.Context, q query.SimilarSearch, neighbors []neighbor, scoreMin float64) (similar []similarCore, left int, err error) {
	var ids []event.ID
	rows := make(map[event.ID]int, len(neighbors))
	for _, n := range neighbors {
		if rows[n.id]++; rows[n.id] == 1 {
			ids = append(ids, n.id)
		}
	}
	except := q.Except.String()
	// Vectors are large, so few are in memory at once.
	for chunk := range slices.Chunk(ids, max(1, similarBytes/(16*len(q.Vector)))) {
		cores, err := s.listedCores(ctx, q.Filter, chunk, nil)
		if err != nil {
			return nil, 0, err
		}
		if len(cores) == 0 {
			continue
		}
		embeddings, err := s.embeddings(ctx, idsOf(cores), nil)
		if err != nil {
			return nil, 0, err
		}
		for _, core := range cores {
			left += rows[core.ID]
			if except == (event.Ref{ID: core.ID, Alias: core.Alias}).String() {
				continue
			}
			score := math.Inf(-1)
			for field, searched := range map[event.Field]bool{event.FieldInputEmbeddings: q.Input, event.FieldOutputEmbeddings: q.Output} {
				row, ok := embeddings[fieldOf{core.ID, fieldNumber(field)}]
				if !searched || !ok || row.Deleted || !row.Version.Counts(core.Created) {
					continue
				}
				if row.Vector.Dimensions() == len(q.Vector) {
					if c := cosine(row.Vector, q.Vector); !math.IsNaN(c) {
						score = max(score, c)
					}
				}
			}
			if score >= scoreMin {
				similar = append(similar, similarCore{core, score})
			}
		}
		slices.SortStableFunc(similar, func(a, b similarCore) int { return cmp.Compare(b.score, a.score) })
		similar = similar[:min(len(similar), q.LimitEvents)]
	}
	return similar, left, nil
}

// similarBytes bounds the memory of the vectors that are checked at once.
const similarBytes = 8 << 20

// similarHits reads the contents of the hits.
func (s *Store) similarHits(ctx context.Context, q query.SimilarSearch, similar []similarCore) (query.Hits, error) {
	var hits query.Hits
	r := &room{left: q.BytesMax, newest: true}
	cores := make([]event.Core, len(similar))
	scores := make(map[string]float64, len(similar))
	for i := range similar {
		cores[i] = similar[i].core
		r.takeCore(&cores[i])
		scores[event.Ref{ID: cores[i].ID, Alias: cores[i].Alias}.String()] = similar[i].score
	}
	events, err := s.assemble(ctx, cores, false, r)
	if isTooLarge(err) {
		sizes, err := s.sizes(ctx, idsOf(cores), false)
		if err != nil {
			return hits, err
		}
		total := 0
		for _, size := range sizes {
			total += size.bytes
		}
		return hits, &event.LargeError{Bytes: max(total, q.BytesMax+1)}
	}
	if err != nil {
		return hits, err
	}
	for _, e := range events {
		hits.Hits = append(hits.Hits, query.Hit{Event: e, Score: scores[e.ID]})
	}
	hits.Bytes = q.BytesMax - r.left
	return hits, nil
}

// cosine returns the cosine of the angle between two vectors of the same length; NaN if
// one of them is zero.
func cosine(a event.Vector, b []float32) float64 {
	var dot, lengthA, lengthB float64
	for i := range b {
		x, y := float64(a.At(i)), float64(b[i])
		dot, lengthA, lengthB = dot+x*y, lengthA+x*x, lengthB+y*y
	}
	return dot / math.Sqrt(lengthA) / math.Sqrt(lengthB)
}
