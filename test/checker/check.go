package checker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// Check judges a history by what the log and the tables are at its end, when
// all of the log is applied. It returns everything that is wrong: where the
// tables are not what the log comes to; where an acknowledged write is not in
// the log, or another is at its place, or one is there twice, or one that
// nobody sent; where a record was refused that should have been applied; where
// a read showed what it should not.
func (h *History) Check(l *Log, got *Tables) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := fold(l.Records, l.Rejected)
	var errs []error
	errs = append(errs, Differences(f.tables, got)...)
	errs = append(errs, h.checkLog(f)...)
	errs = append(errs, f.checkLetters(l.Letters)...)
	errs = append(errs, h.checkEffects(f)...)
	errs = append(errs, h.checkReads(f)...)
	errs = append(errs, h.checkLinear(f)...)
	return errors.Join(errs...)
}

// report keeps the first errors.
type report struct {
	what string
	n    int
	errs []error
}

func (r *report) add(format string, args ...any) {
	if r.n++; r.n <= errorsMax {
		r.errs = append(r.errs, fmt.Errorf(r.what+": "+format, args...))
	}
}

func (r *report) end() []error {
	if r.n > errorsMax {
		r.errs = append(r.errs, fmt.Errorf("%s: %d in all", r.what, r.n))
	}
	return r.errs
}

// checkLog compares what was sent with what is in the log.
func (h *History) checkLog(f *folded) []error {
	errs := report{what: "log"}
	byNumber := make(map[int]*Write, len(h.writes))
	byReceipt := make(map[event.Receipt]*Write, len(h.writes))
	deletes := make(map[string]int) // that may be in the log, by id
	for _, w := range h.writes {
		byNumber[w.Number] = w
		if w.Outcome == Acknowledged || w.Outcome == Applied {
			if other := byReceipt[w.Receipt]; other != nil {
				errs.add("writes %d and %d have the same receipt %s", other.Number, w.Number, w.Receipt)
			}
			byReceipt[w.Receipt] = w
		}
		if w.Op == event.OpDelete && w.Outcome != Refused {
			deletes[w.ID]++
		}
	}
	seen := make(map[int]event.Receipt)
	for id, entries := range f.keys {
		for _, e := range entries {
			at := e.record.Receipt()
			if first := entries[0].record; e.record.Partition != first.Partition {
				errs.add("writes of %s are in partitions %d and %d", id, first.Partition, e.record.Partition)
			}
			if h.foreign(id) {
				continue
			}
			sent := byReceipt[at]
			delete(byReceipt, at)
			n, err := recordNumber(&e.write)
			switch {
			case err != nil:
				errs.add("record %s: %w", at, err)
				continue
			case n == 0:
				if deletes[id]--; deletes[id] < 0 {
					errs.add("record %s deletes %s once more than anybody asked for", at, id)
				}
			case byNumber[n] == nil:
				errs.add("record %s is of write %d, which nobody sent", at, n)
				continue
			case sent == nil:
				sent = byNumber[n]
			}
			if sent == nil {
				continue // a delete that was not acknowledged
			}
			if first, ok := seen[sent.Number]; ok {
				errs.add("write %d is at %s and again at %s", sent.Number, first, at)
			}
			seen[sent.Number] = at
			if err := sent.differs(&e); err != nil {
				errs.add("record %s is not write %d: %w", at, sent.Number, err)
			}
		}
	}
	for at, w := range byReceipt {
		errs.add("write %d, acknowledged as %s, is not there", w.Number, at)
	}
	return errs.end()
}

// differs compares a record with the write that it should be.
func (w *Write) differs(e *entry) error {
	if w.Outcome == Refused {
		return errors.New("it was refused")
	}
	if w.ID != "" && w.ID != string(e.record.Key) {
		return fmt.Errorf("it is of %q, not of %q", e.record.Key, w.ID)
	}
	want := w.event()
	ids := cmpopts.IgnoreFields(event.Write{}, "ID", "Alias", "Fresh") // that record.Read has compared with the key
	if diff := cmp.Diff(want, e.write, ids, cmpopts.EquateEmpty()); diff != "" {
		return errors.New(diff)
	}
	if e.write.Fresh != w.Minted {
		return fmt.Errorf("it says fresh: %t", e.write.Fresh)
	}
	return nil
}

// checkLetters compares the dead letters with the records that no event is to
// have. One may be there more than once: delivery is at least once.
func (f *folded) checkLetters(letters []record.DeadLetter) []error {
	errs := report{what: "dead letters"}
	there := make(map[event.Receipt]struct{})
	for _, l := range letters {
		at := l.Record.Receipt()
		there[at] = struct{}{}
		_, poison := f.poison[at]
		if _, refused := f.refused[at]; !refused && !poison {
			errs.add("record %s was refused as %s, and should have been applied: %s", at, l.Reason, l.Detail)
		}
	}
	for _, records := range []map[event.Receipt]struct{}{f.poison, f.refused} {
		for at := range records {
			if _, ok := there[at]; !ok {
				errs.add("record %s was to be refused, and is not there", at)
			}
		}
	}
	return errs.end()
}

// checkEffects compares what callers were told that their writes came to with
// what the log says. Where a delete follows, the tables may not tell any more
// that a create or update before it had no effect.
func (h *History) checkEffects(f *folded) []error {
	errs := report{what: "effects"}
	for _, w := range h.writes {
		entries := f.keys[w.ID]
		at := place(entries, w.Receipt)
		if w.Outcome != Applied || at < 0 { // the latter told by checkLog
			continue
		}
		var before eventState
		for _, e := range entries[:at] {
			before = before.after(e.write.Op, 0, 0, 0)
		}
		want := event.Code("")
		switch {
		case w.Op != event.OpDelete && before.deleted:
			want = event.CodeEventDeleted
		case w.Op == event.OpCreate && before.created:
			want = event.CodeIDTaken
		}
		covered := slices.ContainsFunc(entries[at+1:], func(e entry) bool { return e.write.Op == event.OpDelete })
		excused := covered && want != "" && w.NoEffect != event.CodeEventDeleted
		if w.NoEffect != want && !excused {
			errs.add("the %s of %s as %s was answered with %q, want %q", w.Op, w.ID, w.Receipt, w.NoEffect, want)
		}
	}
	return errs.end()
}

// checkReads looks for values that a read should not have shown: every field
// must have the value that it has in the log at some place from the one that
// the read waited for on. Fields may be of different places, as an event's rows
// are in three tables.
func (h *History) checkReads(f *folded) []error {
	errs := report{what: "reads"}
	for _, r := range h.reads {
		entries := f.keys[r.ID]
		from := 0
		if r.After != (event.Receipt{}) {
			if from = place(entries, r.After) + 1; from == 0 {
				continue // told by checkLog
			}
		}
		allowed := f.statesFrom(entries, from)
		switch {
		case !r.Found && !allowed.absent:
			errs.add("%s was not there after %s", r.ID, r.After)
		case r.Found && !allowed.present:
			errs.add("%s was there after %s", r.ID, r.After)
		}
		if !r.Found {
			continue
		}
		for field, n := range r.Seen {
			if _, ok := allowed.numbers[field][n]; !ok {
				errs.add("%s has the %s of write %d after %s", r.ID, field, n, r.After)
			}
		}
	}
	return errs.end()
}

// states are those that an event has been in.
type states struct {
	absent, present bool
	numbers         map[event.Field]map[int]struct{}
}

// statesFrom are those of the event after each of its first writes, from the
// number given on.
func (f *folded) statesFrom(entries []entry, from int) states {
	s := states{numbers: make(map[event.Field]map[int]struct{})}
	var state eventState
	for i := 0; ; i++ {
		if i >= from {
			s.absent = s.absent || !state.present()
			s.present = s.present || state.present()
			for field, n := range state.seen {
				if s.numbers[event.Field(field)] == nil {
					s.numbers[event.Field(field)] = make(map[int]struct{})
				}
				s.numbers[event.Field(field)][n] = struct{}{}
			}
		}
		if i == len(entries) {
			return s
		}
		n, _ := recordNumber(&entries[i].write) // told by checkLog
		state = state.after(entries[i].write.Op, entries[i].write.Set, entries[i].write.Null, n)
	}
}

// eventState is an event as readers see it: the numbers of the writes that gave
// its fields their values.
type eventState struct {
	created, deleted bool
	seen             [event.FieldOutputEmbeddings + 1]int
}

func (s eventState) present() bool { return s.created && !s.deleted }

// after is the state after a write.
func (s eventState) after(op event.Op, set, null event.Fields, number int) eventState {
	switch {
	case op == event.OpDelete:
		return eventState{deleted: true}
	case s.deleted, op == event.OpCreate && s.created, op == event.OpUpdate && !s.created:
		return s
	}
	s.created = true
	for field := range s.seen {
		switch f := event.Field(field); {
		case f == event.FieldEventName: // says nothing of the write
		case null.Has(f):
			s.seen[field] = 0
		case set.Has(f):
			s.seen[field] = number
		}
	}
	return s
}
