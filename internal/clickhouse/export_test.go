package clickhouse

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
)

// ReadTogether reads events in one batch, as readers that come at the same time
// do. Of an event that is not to be read in a batch, alone is true.
func (s *Store) ReadTogether(ctx context.Context, refs []event.Ref, bytesMax int) (found []*event.Event, alone []bool, err error) {
	batch := make([]*wanted, len(refs))
	for i, ref := range refs {
		batch[i] = &wanted{ref: ref, bytesMax: bytesMax}
	}
	s.readBatch(ctx, batch)
	for _, w := range batch {
		found, alone = append(found, w.found), append(alone, errors.Is(w.err, errAlone))
		if w.err != nil && !errors.Is(w.err, errAlone) {
			err = w.err
		}
	}
	return found, alone, err
}

// IndexedWords returns the words of the contents of an event, as the index has them.
func (s *Store) IndexedWords(t *testing.T, id event.ID) []string {
	var words []string
	column := new(proto.ColStr).Array()
	err := s.eachKeys(t.Context(), conn.RoleRead, "words", time.Minute, []event.ID{id}, func(byKey string) ch.Query {
		return ch.Query{
			Body:   "SELECT words FROM event_contents" + byKey,
			Result: proto.Results{{Name: "words", Data: column}},
			OnResult: func(context.Context, proto.Block) error {
				for i := range column.Rows() {
					words = append(words, column.Row(i)...)
				}
				return nil
			},
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return words
}
