package consumer

import (
	"context"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// item is one record of a batch with the write in it.
type item struct {
	record *record.Record
	write  event.Write
	// id is the event's, as resolved last; zero where the write has no event
	// to apply to.
	id event.ID
	// state indexes fold.states, where there is an id.
	state int32
	// refusedAt is the position of a refused create of the same event, where this
	// is a create and there was one; see refusals.
	refusedAt event.Position
}

// resolve folds the items, in log order, into c.fold. It looks up what the writes
// need and neither the batch nor the cache has: the id of an alias, and the core row
// of an event that is updated.
func (c *Consumer) resolve(ctx context.Context, items []item) error {
	f := c.fold
	f.reset()
	if err := c.takeOver(ctx, items); err != nil {
		return err
	}
	if err := c.readRefusals(ctx, items); err != nil {
		return err
	}
	if err := c.resolveAliases(ctx, items); err != nil {
		return err
	}
	if err := c.findRefusals(ctx, items); err != nil {
		return err
	}
	if err := c.resolveBases(ctx, items); err != nil {
		return err
	}
	for i := range items {
		it := &items[i]
		if it.id.IsZero() {
			continue
		}
		s := &f.states[it.state]
		if it.write.Alias == "" && it.refusedAt >= it.record.Position() && f.current(s) == nil && !s.deleted {
			f.refuseAgain(it.record)
			continue
		}
		f.apply(s, &it.write, it.record, it.refusedAt != 0)
	}
	return nil
}

// resolveAliases gives every write the id of its event.
func (c *Consumer) resolveAliases(ctx context.Context, items []item) error {
	clear(c.aliases)
	var misses []string
	for i := range items {
		it := &items[i]
		alias := it.write.Alias
		if alias == "" {
			it.id, it.refusedAt = it.write.ID, 0
			continue
		}
		if _, ok := c.aliases[alias]; ok {
			continue
		}
		if a, ok := c.refused.aliases[alias]; ok {
			c.aliases[alias] = a
			continue
		}
		row, ok := c.cache.Alias(it.record.Partition, alias)
		if !ok {
			misses = append(misses, alias)
		}
		c.aliases[alias] = batchAlias{row: row, partition: it.record.Partition}
	}
	if len(misses) > 0 {
		rows, err := c.store.Aliases(ctx, misses)
		if err != nil {
			return err
		}
		c.metrics.lookups.WithLabelValues("alias").Add(float64(len(misses)))
		for alias, row := range rows {
			a := c.aliases[alias]
			a.row = row
			c.aliases[alias] = a
		}
	}
	for i := range items {
		if items[i].write.Alias != "" {
			c.resolveAlias(&items[i])
		}
	}
	return nil
}

// batchAlias is the latest row of an alias at this point of the batch. A row without
// a version stands for no row.
type batchAlias struct {
	row       event.AliasRow
	partition int32
}

func (c *Consumer) resolveAlias(it *item) {
	w, f, at := &it.write, c.fold, it.record.Position()
	a := c.aliases[w.Alias]
	exists := a.row.Version != 0 && !a.row.Refused
	it.id, it.refusedAt = event.ID{}, 0
	if w.Op == event.OpCreate && a.row.Version.Class() == event.ClassUpdate {
		// Creates up to the mark, or before the create that came after it, were refused.
		it.refusedAt = a.row.Version.Position()
		if at < it.refusedAt || at == it.refusedAt && a.row.Refused {
			f.refuseAgain(it.record)
			return
		}
	}
	switch {
	case exists && a.row.Deleted, !exists && w.Op == event.OpDelete:
		if w.Op == event.OpDelete {
			it.id = a.row.ID // of a refused create, which may have left contents
			c.putAlias(a, event.AliasRow{
				Alias: w.Alias, Version: event.MakeVersion(event.ClassDelete, at), Deleted: true,
			})
			return
		}
		f.noEffect++
	case !exists && w.Op == event.OpCreate:
		it.id = w.ID
		row := event.AliasRow{Alias: w.Alias, ID: w.ID, Version: event.MakeVersion(event.ClassCreate, at)}
		if a.row.Refused {
			row.Version = event.MakeVersion(event.ClassUpdate, at)
		}
		c.putAlias(a, row)
		// The alias row is written before the core row, so there is none of the id.
		f.setBase(f.stateOf(w.ID, it.record.Partition), nil)
	case !exists:
		f.refuse(it.record, event.CodeUnknownEvent, "no event with this id was created before this update")
	case w.Op == event.OpCreate && a.row.ID != w.ID:
		f.noEffect++ // another create of the alias came first
	default:
		it.id = a.row.ID
	}
}

func (c *Consumer) putAlias(a batchAlias, row event.AliasRow) {
	c.fold.rows.Aliases = append(c.fold.rows.Aliases, row)
	a.row = row
	c.aliases[row.Alias] = a
}

// resolveBases looks up the core rows of the events that are updated, except those
// that are created afresh or deleted in the batch, are in the cache, or are known to
// have no row.
func (c *Consumer) resolveBases(ctx context.Context, items []item) error {
	f := c.fold
	clear(c.needs)
	for i := range items {
		it := &items[i]
		w, id := &it.write, it.id
		if id.IsZero() {
			continue
		}
		var isNew bool
		it.state, isNew = f.indexOf(id, it.record.Partition)
		s := &f.states[it.state]
		// What was before matters neither to a delete nor to what follows it.
		if isNew && (!w.Fresh || it.refusedAt != 0) && w.Op != event.OpDelete {
			if core, ok := c.cache.Core(s.partition, id); ok {
				f.setBase(s, &core)
			} else if c.cache.Absent(s.partition, id) {
				f.setBase(s, nil)
			}
		}
		switch {
		case s.baseLoaded || s.baseIrrelevant:
		case w.Op == event.OpUpdate:
			c.needs[id] = c.needs[id] || w.Set&event.CoreFields != 0
		case it.refusedAt != 0 && w.Op == event.OpCreate:
			if _, ok := c.needs[id]; !ok {
				c.needs[id] = false // whether there is a row
			}
		default:
			// A delete is final whatever was before it, and nothing comes
			// before a fresh create.
			s.baseIrrelevant = w.Fresh || w.Op == event.OpDelete
		}
	}
	if len(c.needs) == 0 {
		return nil
	}
	var whole, states []event.ID
	for id, core := range c.needs {
		if core {
			whole = append(whole, id)
		} else {
			states = append(states, id)
		}
	}
	if err := c.loadBases(ctx, whole, c.store.Cores, false); err != nil {
		return err
	}
	return c.loadBases(ctx, states, c.store.CoreStates, true)
}

// loadBases looks up core rows as the bases of their events.
func (c *Consumer) loadBases(
	ctx context.Context, ids []event.ID,
	lookup func(context.Context, []event.ID) (map[event.ID]event.Core, error), partial bool,
) error {
	if len(ids) == 0 {
		return nil
	}
	cores, err := lookup(ctx, ids)
	if err != nil {
		return err
	}
	c.metrics.lookups.WithLabelValues("core").Add(float64(len(ids)))
	for _, id := range ids {
		s := &c.fold.states[c.fold.index[id]]
		s.basePartial = partial
		if core, ok := cores[id]; ok {
			c.fold.setBase(s, &core)
		} else {
			c.fold.setBase(s, nil)
		}
	}
	return nil
}

// cacheRows puts the core rows and aliases of the fold into the cache, once its rows
// are written.
func (c *Consumer) cacheRows() {
	f := c.fold
	for i := range f.states {
		s := &f.states[i]
		switch {
		case s.core != none && (s.baseLoaded || s.deleted):
			c.cache.PutCore(s.partition, f.rows.Cores[s.core])
		case s.base != none && !s.basePartial:
			c.cache.PutCore(s.partition, f.bases[s.base])
		}
	}
	for alias, a := range c.aliases {
		// A mark of this flush is held once it is saved.
		if a.row.Version != 0 && !a.row.Refused {
			a.row.Alias = alias
			c.cache.PutAlias(a.partition, a.row)
			// It came after the mark, if there is one, which the rest of the flush
			// must not go by any more.
			delete(c.refused.aliases, alias)
		}
	}
}
