package event_test

import (
	"testing"

	"github.com/sluicehq/sluice/internal/event"
)

// A merge keeps of two deletes the later one alone, so that a create between
// them looks like one that had an effect.
func TestEffectOfCoveredCreate(t *testing.T) {
	const create, later = event.Position(20), event.Position(30)
	h := event.History{Stored: true, Created: create, Deleted: later}
	if got := h.Effect(event.OpCreate, create, false, event.History{}); got != event.EffectUnknown {
		t.Errorf("effect %d, want %d: a delete before the create may be hidden", got, event.EffectUnknown)
	}
	if got := h.Effect(event.OpCreate, create, true, event.History{Deleted: create - 1}); got != event.EffectDeleted {
		t.Errorf("effect %d, want %d, as the caller knows of a delete before it", got, event.EffectDeleted)
	}
	h.Deleted = 0
	if got := h.Effect(event.OpCreate, create, false, event.History{}); got != event.EffectApplied {
		t.Errorf("effect %d, want %d", got, event.EffectApplied)
	}
}
