package consumer

import (
	"context"
	"errors"

	"github.com/sluicehq/sluice/internal/event"
)

// refusalsMax bounds the refused creates that are held in memory, 70 bytes each.
// Where there are more, each create is looked up.
const refusalsMax = 1 << 16

// refusals are the creates that the database refused for their data. When a
// create is refused, the rows that were sent beside its core row may be in their
// tables already: its alias, contents and embeddings. A create's rows outrank
// those of every later create, so without a mark a later create of the same alias
// would have no effect, and one of the same id would not have its contents.
//
// The mark is an alias row: of the alias, or of [event.RefusalAlias] where the id
// was minted. It outranks the rows of all creates. A create that is later than
// its mark looks for the event's core row; where there is none, it writes its
// contents and embeddings with the version of an update, all four of them, so
// that nothing of the refused create shows. A create that is not later was refused
// before, and is refused again by any replay, whatever the database takes by then.
type refusals struct {
	// at has the latest refused create of each id that is not behind an alias.
	at map[event.ID]event.Position
	// more says that the database has refused creates that at does not have.
	more bool
	// stale says that at has marks of a flush that was broken off.
	stale bool
	// aliases are the aliases that this flush refused.
	aliases map[string]batchAlias
	// unsaved are the marks of this flush that are not in the database yet.
	unsaved []event.AliasRow
}

func newRefusals() refusals {
	return refusals{at: make(map[event.ID]event.Position), aliases: make(map[string]batchAlias)}
}

// begin is called before a flush. Marks that are unsaved then belong to a flush that
// was broken off, and the next owner of its partition may decide otherwise.
func (r *refusals) begin() {
	r.stale = r.stale || len(r.unsaved) > 0
	r.unsaved = r.unsaved[:0]
	clear(r.aliases)
}

// readRefusals reads the refused creates when a partition is taken over: its last
// owner may have refused some.
func (c *Consumer) readRefusals(ctx context.Context, items []item) error {
	read := !c.refused.stale
	last := int32(none)
	for i := range items {
		if p := items[i].record.Partition; p != last {
			read = read && c.takenOver(p).refusalsRead
			last = p
		}
	}
	if read {
		return nil
	}
	rows, more, err := c.store.Refused(ctx, refusalsMax)
	if err != nil {
		return err
	}
	clear(c.refused.at)
	c.refused.more, c.refused.stale = more, false
	for _, row := range rows {
		c.refused.at[row.ID] = row.Version.Position()
	}
	for _, row := range c.refused.unsaved {
		if row.Alias == event.RefusalAlias(row.ID) {
			c.refused.at[row.ID] = row.Version.Position()
		}
	}
	for i := range items {
		c.takenOver(items[i].record.Partition).refusalsRead = true
	}
	return nil
}

// findRefusals finds the creates of minted ids that were refused before, and those
// that come after a refused create of the same id.
func (c *Consumer) findRefusals(ctx context.Context, items []item) error {
	r := &c.refused
	if len(r.at) == 0 && !r.more {
		return nil
	}
	var unknown []string
	for i := range items {
		w := &items[i].write
		if w.Op != event.OpCreate || w.Alias != "" {
			continue
		}
		at, ok := r.at[w.ID]
		items[i].refusedAt = at
		if !ok && r.more {
			unknown = append(unknown, event.RefusalAlias(w.ID))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	rows, err := c.store.Aliases(ctx, unknown)
	if err != nil {
		return err
	}
	c.metrics.lookups.WithLabelValues("refused").Add(float64(len(unknown)))
	for i := range items {
		w := &items[i].write
		if w.Op != event.OpCreate || w.Alias != "" || items[i].refusedAt != 0 {
			continue
		}
		if row := rows[event.RefusalAlias(w.ID)]; row.Refused {
			items[i].refusedAt = row.Version.Position()
		}
	}
	return nil
}

// markRefused marks the create that the database refused, which was folded alone.
// Other writes need no mark, because their rows do not outrank later creates. A
// create of an event that exists or existed needs none either: its rows lose.
func (c *Consumer) markRefused(ctx context.Context, it *item) error {
	w := &it.write
	if w.Op != event.OpCreate {
		return nil
	}
	var cores map[event.ID]event.Core
	err := c.try(ctx, stepLookup, func() (err error) {
		cores, err = c.store.CoreStates(ctx, []event.ID{w.ID})
		return err
	})
	if err != nil || len(cores) > 0 {
		return err
	}
	r, at := &c.refused, it.record.Position()
	mark := event.AliasRow{
		Alias: w.Alias, ID: w.ID, Version: event.MakeVersion(event.ClassUpdate, at), Refused: true,
	}
	if w.Alias == "" {
		mark.Alias = event.RefusalAlias(w.ID)
		r.at[w.ID] = at
	} else {
		a := c.aliases[w.Alias]
		if a.row.Deleted || a.row.Version.Position() != at {
			return nil // another create has the alias
		}
		a.row = mark
		r.aliases[w.Alias] = a
	}
	r.unsaved = append(r.unsaved, mark)
	return nil
}

// saveRefusals writes the marks of this flush. It comes before the rows of any
// create that relies on one.
func (c *Consumer) saveRefusals(ctx context.Context) error {
	r := &c.refused
	if len(r.unsaved) == 0 {
		return nil
	}
	marks := event.Rows{Aliases: r.unsaved}
	err := c.try(ctx, stepInsert, func() error {
		err := c.store.Insert(ctx, &marks)
		if errors.Is(err, event.ErrRejected) {
			c.log.Error("marks of refused creates rejected by the database; later creates of their ids may lack contents",
				"creates", len(marks.Aliases), "error", err)
			err = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, a := range r.aliases {
		c.cache.PutAlias(a.partition, a.row)
	}
	clear(r.aliases)
	r.unsaved = r.unsaved[:0]
	if len(r.at) > refusalsMax {
		clear(r.at)
		r.more = true
	}
	return nil
}
