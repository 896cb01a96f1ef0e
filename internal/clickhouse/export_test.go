package clickhouse

import (
	"context"
	"errors"

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
