package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// visibleFor is how long after its timestamp every event is visible, however
// short the retention is.
const visibleFor = 23 * time.Hour

// settle waits until the writes are applied, and finds out which of them had an
// effect. It sets failed[i] to why write i had none. The mark is [Applied.Mark]
// before the writes were made. If settled is true, writes whose element stays nil
// had an effect. Otherwise the time ran out, or the log or the database did not
// tell: nil says nothing then, and the writes are accepted all the same.
func (s *Server) settle(
	x *exchange, wait time.Duration, mark int64, receipts []event.Receipt, write func(i int) *event.Write, failed []error,
) (settled bool) {
	ctx, cancel := s.waitContext(x.r.Context(), wait)
	defer cancel()
	refused, known, err := s.ports.Applied.Outcomes(ctx, mark, receipts)
	if err != nil {
		if ctx.Err() == nil {
			x.log().LogAttrs(ctx, slog.LevelWarn, "cannot tell whether writes are applied", slog.Any("error", err))
		}
		return false
	}
	for i := range failed {
		if refused[i] != nil {
			p := asProblem(refused[i])
			p.written, p.id, p.receipt = true, write(i).Ref().String(), receipts[i]
			failed[i] = p
		}
	}
	if settled = s.effects(ctx, x, known, receipts, write, failed); settled {
		x.w.Header()["Preference-Applied"] = preferenceApplied(wait)
	}
	return settled
}

// effects finds out what became of the writes that the consumer applied. It reads
// the histories of their events, and sets failed as settle does.
func (s *Server) effects(
	ctx context.Context, x *exchange, notRefused bool, receipts []event.Receipt, write func(i int) *event.Write, failed []error,
) (settled bool) {
	type past struct{ stored, beside event.History }
	asked := make(map[event.Ref]*past)
	for i := range receipts {
		if w := write(i); failed[i] == nil && s.isInDoubt(w, notRefused) {
			asked[w.Ref()] = &past{}
		}
	}
	if len(asked) == 0 {
		return true
	}
	refs := make([]event.Ref, 0, len(asked))
	for ref := range asked {
		refs = append(refs, ref)
	}
	histories, err := s.ports.Histories.Histories(ctx, refs)
	if err != nil {
		if ctx.Err() == nil {
			x.log().LogAttrs(ctx, slog.LevelWarn, "cannot tell whether writes had an effect", slog.Any("error", err))
		}
		return false
	}
	for ref, h := range histories {
		asked[ref].stored = h
	}
	// The tables may have one row for several writes of this request to one event, so
	// the request's own writes are added to what the tables tell.
	for i, r := range receipts {
		w := write(i)
		if p := asked[w.Ref()]; p != nil && failed[i] == nil && notRefused {
			p.beside.Add(w.Op, event.MakePosition(r.Generation, r.Offset))
		}
	}
	settled = true
	for i, r := range receipts {
		w := write(i)
		past := asked[w.Ref()]
		if past == nil || failed[i] != nil || !s.isInDoubt(w, notRefused) {
			continue
		}
		effect := past.stored.Effect(w.Op, event.MakePosition(r.Generation, r.Offset), notRefused, past.beside)
		if effect == event.EffectUnknown {
			settled = false
			continue
		}
		if p := noEffect(effect, w.Op); p != nil {
			p.written, p.id, p.receipt = true, w.Ref().String(), r
			if effect == event.EffectTaken {
				first := past.stored
				if past.beside.Created != 0 {
					first.Add(event.OpCreate, past.beside.Created)
				}
				if first.Created.Generation() == r.Generation { // the writes of an id share a partition
					p.createdBy = event.Receipt{Generation: r.Generation, Partition: r.Partition, Offset: first.Created.Offset()}
				}
			}
			failed[i] = p
		}
	}
	return settled
}

// isInDoubt reports whether the write may have had no effect, so that it has to
// be looked up.
func (s *Server) isInDoubt(w *event.Write, notRefused bool) bool {
	if !notRefused {
		return true
	}
	switch w.Op {
	case event.OpCreate:
		// The server minted the id of a fresh create, so no other write can have it.
		return !w.Fresh || s.cfg.Now().Sub(w.ID.Time()) > visibleFor
	case event.OpUpdate:
		return true
	case event.OpDelete:
	}
	return false
}

// noEffect returns the problem that answers a write without effect, or nil if the
// write had one.
func noEffect(effect event.Effect, op event.Op) *problem {
	p := &problem{status: http.StatusConflict, field: "id"}
	switch effect {
	case event.EffectTaken:
		p.code, p.detail = event.CodeIDTaken, "there was a create of this id before, so that this one had no effect"
	case event.EffectDeleted:
		p.code, p.detail = event.CodeEventDeleted, "the event was deleted before, and nothing revives its id, so that this create had no effect"
		if op == event.OpUpdate {
			p.status, p.detail = http.StatusGone, "the event was deleted before, so that this update had no effect"
		}
	case event.EffectExpired:
		p.status, p.field = http.StatusUnprocessableEntity, "timestamp"
		p.code, p.detail = event.CodeEventExpired, "the event is older than the retention, so that nobody sees it"
		if op == event.OpUpdate {
			p.status, p.code, p.field = http.StatusNotFound, event.CodeUnknownEvent, "id"
		}
	case event.EffectApplied, event.EffectUnknown:
		return nil
	}
	return p
}
