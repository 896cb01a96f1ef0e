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

// neighborsMax bounds how many vectors one step of a similarity search returns.
const neighborsMax = 1 << 20

// distanceError is more than the distance of ClickHouse, in float32, can be wrong.
const distanceError = 1e-5

// neighbor is a row of an embedding near the vector of a search.
type neighbor struct {
	fieldOf
	distance float32
}

// SearchSimilar returns the events of the filter whose embeddings are nearest to the
// vector, the nearest first. The score of a hit is the cosine similarity, from -1 to 1. The answer is
// exact: every vector of the time range with as many dimensions is compared.
//
// The nearest rows may be of old versions, of deleted events, or of events outside the
// filter. So each is checked, and more rows are taken if too few are left.
func (s *Store) SearchSimilar(ctx context.Context, q query.SimilarSearch) (query.Hits, error) {
	var hits query.Hits
	filtered := false
	for rows := 2*q.LimitEvents + 16; ; rows = min(4*rows, neighborsMax) {
		neighbors, err := s.neighbors(ctx, q, rows, filtered)
		if err != nil {
			return hits, err
		}
		scoreMin := -math.MaxFloat64
		all := len(neighbors) < rows
		if !all {
			// An event whose embedding was once near, and is now further than the last
			// neighbor, may come after events that are not among the neighbors.
			scoreMin = 1 - float64(neighbors[rows-1].distance) - distanceError
		}
		similar, err := s.current(ctx, q, neighbors, scoreMin)
		if err != nil {
			return hits, err
		}
		if len(similar) >= q.LimitEvents || all || rows == neighborsMax {
			return s.similarHits(ctx, q, similar[:min(len(similar), q.LimitEvents)])
		}
		filtered = true // so many rows were in vain that the filter is worth asking first
	}
}

// neighbors returns the nearest rows, at most limit. filtered leaves out events that do
// not match the filter.
func (s *Store) neighbors(ctx context.Context, q query.SimilarSearch, limit int, filtered bool) ([]neighbor, error) {
	sel := s.selectEvents(q.Filter)
	prewhere := "1" + sel.bounds + " AND deleted = 0"
	switch {
	case !q.Output:
		prewhere += " AND field = 'input'"
	case !q.Input:
		prewhere += " AND field = 'output'"
	}
	where := "length(vector) = {dimensions:UInt64}"
	if filtered {
		where += " AND (timestamp, id) IN (SELECT timestamp, id" + sel.from() + ")"
	}
	var (
		id        proto.ColUUID
		field     proto.ColInt8
		distance  proto.ColFloat32
		neighbors []neighbor
	)
	err := s.db.Query(ctx, conn.RoleAnalytics, "similar", s.readTimeout(), ch.Query{
		Body: "SELECT id, CAST(field, 'Int8') AS field_number, toFloat32(cosineDistance(vector, {vector:Array(Float32)})) AS distance" +
			" FROM event_embeddings PREWHERE " + prewhere + " WHERE " + where + " AND NOT isNaN(distance)" +
			" ORDER BY distance, id LIMIT {limit:UInt64}",
		Parameters: sel.params.Int("dimensions", int64(len(q.Vector))).Floats("vector", q.Vector).Int("limit", int64(limit)),
		Settings:   append(sel.settings, conn.Setting("distributed_product_mode", "local")),
		Result:     proto.Results{{Name: "id", Data: &id}, {Name: "field_number", Data: &field}, {Name: "distance", Data: &distance}},
		OnResult: func(context.Context, proto.Block) error {
			for i := range id {
				neighbors = append(neighbors, neighbor{fieldOf{event.ID(id[i]), uint8(field[i])}, distance[i]})
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
// than scoreMin.
func (s *Store) current(ctx context.Context, q query.SimilarSearch, neighbors []neighbor, scoreMin float64) ([]similarCore, error) {
	var ids []event.ID
	seen := make(map[event.ID]bool, len(neighbors))
	for _, n := range neighbors {
		if !seen[n.id] {
			seen[n.id] = true
			ids = append(ids, n.id)
		}
	}
	var similar []similarCore
	except := q.Except.String()
	// Vectors are large, so few are in memory at once.
	for chunk := range slices.Chunk(ids, max(1, similarBytes/(16*len(q.Vector)))) {
		cores, err := s.listedCores(ctx, q.Filter, chunk, nil)
		if err != nil {
			return nil, err
		}
		if len(cores) == 0 {
			continue
		}
		embeddings, err := s.embeddings(ctx, idsOf(cores), nil)
		if err != nil {
			return nil, err
		}
		for _, core := range cores {
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
	return similar, nil
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
