package clickhouse

import (
	"context"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// fieldOf is one field of one event.
type fieldOf struct {
	id    event.ID
	field uint8
}

// assemble reads the contents of the core rows, and the embeddings if asked, and
// returns the events in the order of the core rows. It leaves out events that were
// deleted since the core rows were read.
func (s *Store) assemble(ctx context.Context, cores []event.Core, withEmbeddings bool, r *room) ([]event.Event, error) {
	events := make([]event.Event, 0, len(cores))
	if len(cores) == 0 {
		return events, nil
	}
	ids := make([]event.ID, len(cores))
	for i := range cores {
		ids[i] = cores[i].ID
	}
	contents, err := s.contents(ctx, ids, r)
	if err != nil {
		return nil, err
	}
	var embeddings map[fieldOf]event.EmbeddingRow
	if withEmbeddings {
		if embeddings, err = s.embeddings(ctx, ids, r); err != nil {
			return nil, err
		}
	}
	for i := range cores {
		if e, ok := assembleOne(&cores[i], contents, embeddings); ok {
			events = append(events, e)
		}
	}
	return events, nil
}

func assembleOne(core *event.Core, contents map[fieldOf]event.ContentRow, embeddings map[fieldOf]event.EmbeddingRow) (event.Event, bool) {
	e := event.Event{
		ID:             event.Ref{ID: core.ID, Alias: core.Alias}.String(),
		ConversationID: core.ConversationID,
		EventName:      core.EventName,
		Micros:         core.ID.Micros(),
		Metadata:       core.Metadata,
		Error:          core.Error,
	}
	if core.HasLatency {
		latency := core.Latency
		e.Latency = &latency
	}
	for field, content := range map[event.Field]*event.Content{event.FieldInput: &e.Input, event.FieldOutput: &e.Output} {
		row := contents[fieldOf{core.ID, fieldNumber(field)}]
		if row.Deleted {
			return event.Event{}, false
		}
		if row.Version.Counts(core.Created) {
			*content = row.Content
		}
	}
	for field, vector := range map[event.Field]*event.Vector{event.FieldInputEmbeddings: &e.InputEmbeddings, event.FieldOutputEmbeddings: &e.OutputEmbeddings} {
		row := embeddings[fieldOf{core.ID, fieldNumber(field)}]
		if row.Deleted {
			return event.Event{}, false
		}
		if row.Version.Counts(core.Created) {
			*vector = row.Vector
		}
	}
	return e, true
}

// contents returns the row with the highest version of each field.
func (s *Store) contents(ctx context.Context, ids []event.ID, r *room) (map[fieldOf]event.ContentRow, error) {
	rows := make(map[fieldOf]event.ContentRow, 2*len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "contents", s.readTimeout(), ids, func(byKey string) ch.Query {
		var (
			id            proto.ColUUID
			field         proto.ColInt8
			kind, deleted proto.ColUInt8
			content       proto.ColStr
			version       proto.ColUInt64
		)
		return ch.Query{
			Body:     "SELECT id, CAST(field, 'Int8') AS field_number, kind, content, version, deleted FROM event_contents" + r.final() + byKey,
			Settings: append(s.readSettings(), r.settings()...),
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "field_number", Data: &field},
				{Name: "kind", Data: &kind},
				{Name: "content", Data: &content},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				for i := range id {
					key := fieldOf{event.ID(id[i]), uint8(field[i])}
					if old, ok := rows[key]; !ok || event.Version(version[i]) > old.Version {
						row := event.ContentRow{ID: key.id, Version: event.Version(version[i]), Deleted: deleted[i] != 0}
						if row.Content.Kind = event.Kind(kind[i]); row.Content.Kind != event.KindNull {
							row.Content.Data = content.RowBytes(i)
						}
						rows[key] = row
					}
				}
				r.take(len(content.Buf))
				content.Buf = nil // the rows keep the buffer; the next block gets another
				return r.check()
			},
		}
	})
	return rows, err
}

// embeddings returns the row with the highest version of each field.
func (s *Store) embeddings(ctx context.Context, ids []event.ID, r *room) (map[fieldOf]event.EmbeddingRow, error) {
	rows := make(map[fieldOf]event.EmbeddingRow, 2*len(ids))
	err := s.eachKeys(ctx, conn.RoleRead, "embeddings", s.readTimeout(), ids, func(byKey string) ch.Query {
		var (
			id      proto.ColUUID
			field   proto.ColInt8
			values  proto.ColFloat32
			vector  = values.Array()
			version proto.ColUInt64
			deleted proto.ColUInt8
		)
		return ch.Query{
			Body:     "SELECT id, CAST(field, 'Int8') AS field_number, vector, version, deleted FROM event_embeddings" + r.final() + byKey,
			Settings: append(s.readSettings(), r.settings()...),
			Result: proto.Results{
				{Name: "id", Data: &id},
				{Name: "field_number", Data: &field},
				{Name: "vector", Data: vector},
				{Name: "version", Data: &version},
				{Name: "deleted", Data: &deleted},
			},
			OnResult: func(context.Context, proto.Block) error {
				var start uint64
				for i := range id {
					end := vector.Offsets[i]
					key := fieldOf{event.ID(id[i]), uint8(field[i])}
					if old, ok := rows[key]; !ok || event.Version(version[i]) > old.Version {
						row := event.EmbeddingRow{ID: key.id, Version: event.Version(version[i]), Deleted: deleted[i] != 0}
						if end > start {
							row.Vector = event.VectorOf(values[start:end]...)
						}
						rows[key] = row
					}
					start = end
				}
				r.take(4 * len(values))
				return r.check()
			},
		}
	})
	return rows, err
}
