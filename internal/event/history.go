package event

// History is what the tables tell of an event's past. Generations begin at 1, so
// that no position is 0.
//
// The tables may tell less than what happened. Of the writes that the consumer has
// in one batch with a delete, only a tombstone is left, and a merge of the tables has
// the same effect later. So a position of 0 says only that nothing tells of a create
// or delete, and Deleted may be a later delete than the first.
type History struct {
	// Stored says that the event has rows besides that of its alias.
	Stored bool
	// Created is the position of the first create, 0 where the tables tell of none.
	Created Position
	// Deleted is the position of the first delete that left a tombstone, 0 for none.
	Deleted Position
	// Expired says that readers do not see the event because it is older than the
	// retention, whether it was deleted or not.
	Expired bool
}

// Add adds a write of the event that was not refused.
func (h *History) Add(op Op, at Position) {
	switch {
	case op == OpCreate && (h.Created == 0 || at < h.Created):
		h.Created = at
	case op == OpDelete && (h.Deleted == 0 || at < h.Deleted):
		h.Deleted = at
	}
}

// Effect is what became of a write.
type Effect uint8

// The effects.
const (
	// EffectUnknown: nothing tells what became of the write.
	EffectUnknown Effect = iota
	// EffectApplied: the write had its effect; other writes may have followed it.
	EffectApplied
	// EffectTaken: a create that came after another one of the same id.
	EffectTaken
	// EffectDeleted: a create or update that came after a delete of its event.
	EffectDeleted
	// EffectExpired: a create or update of an event that is older than the retention.
	EffectExpired
)

// Effect tells what became of a write at a position of the log that the consumer has
// passed. notRefused says that the consumer did not refuse the write; false says that
// this is not known. beside has other writes of the event that the caller knows of
// and that were not refused; it may have the write itself.
//
// The answer is exact, with one exception: a create or update that a delete followed
// so soon that only a tombstone is left counts as applied, unless beside says
// otherwise.
func (h History) Effect(op Op, at Position, notRefused bool, beside History) Effect {
	all := h
	for _, w := range [...]struct {
		op Op
		at Position
	}{{OpCreate, beside.Created}, {OpDelete, beside.Deleted}} {
		if w.at != 0 {
			all.Add(w.op, w.at)
		}
	}
	var applied bool
	switch op {
	case OpDelete:
		applied = notRefused || h.Deleted != 0
	case OpCreate:
		// A delete that came after the create can hide one that came before it: a
		// merge keeps the later tombstone alone.
		applied = h.Stored && h.Created == at && (notRefused || h.Deleted == 0)
	case OpUpdate:
		applied = h.Stored && notRefused && all.Created != 0 && all.Created < at
	}
	switch {
	case op != OpDelete && all.Deleted != 0 && all.Deleted < at:
		return EffectDeleted
	case op == OpCreate && all.Created != 0 && all.Created < at:
		return EffectTaken
	case op != OpDelete && notRefused && h.Deleted > at:
		// Nothing tells of the write because of the delete after it.
	case !applied:
		return EffectUnknown
	}
	if h.Expired && op != OpDelete {
		return EffectExpired
	}
	return EffectApplied
}
