package event

// History is what is left of an event's past in the tables, whatever became of
// it. Generations begin at 1, so that no position is 0.
//
// It can be less than what happened: of what the consumer has in one batch with
// a delete, only a tombstone is left, and a merge of the tables does the same
// later. So a position of 0 says only that nothing tells of a create or delete,
// and Deleted may be a later delete than the first.
type History struct {
	// Stored says that the event has rows, and not only its alias.
	Stored bool
	// Created is the position of the first create, 0 where nothing tells of one.
	Created Position
	// Deleted is the position of the first delete that left a tombstone, 0 for none.
	Deleted Position
	// Expired says that readers do not see the event because it is older than the
	// retention, whether it was deleted or not.
	Expired bool
}

// Add adds a write of the event that was made and not refused.
func (h *History) Add(op Op, at Position) {
	switch {
	case op == OpCreate && (h.Created == 0 || at < h.Created):
		h.Created = at
	case op == OpDelete && (h.Deleted == 0 || at < h.Deleted):
		h.Deleted = at
	}
}

// Effect is what a write has come to.
type Effect uint8

// The effects.
const (
	// EffectUnknown: nothing tells of it.
	EffectUnknown Effect = iota
	// EffectApplied: the write did what it was to do; other writes may have
	// followed it.
	EffectApplied
	// EffectTaken: a create that came after another one of the same id.
	EffectTaken
	// EffectDeleted: a create or update that came after a delete of its event.
	EffectDeleted
	// EffectExpired: a create or update of an event that is older than the retention.
	EffectExpired
)

// Effect tells what a write has come to that is at a place in the log and that
// the consumer has gone past. NotRefused says that the consumer did not refuse it;
// where it is false, that is not known. Beside is what else the caller knows to
// have been written of the event, and not refused; it may have the write itself.
//
// The answer is exact but for a create or update that a delete followed so soon
// that only a tombstone is left: that one counts as applied, if nothing beside
// says otherwise.
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
