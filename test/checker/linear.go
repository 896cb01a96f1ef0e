package checker

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sluicehq/sluice/internal/event"
)

// linearTimeout bounds the search for an order of all operations.
const linearTimeout = time.Minute

// checkLinear asks whether the history of each event that was read is
// linearizable: whether there is an order of its writes and reads, in which
// each takes effect at one moment between its call and its return, that gives
// every read what it saw. A write that was acknowledged and not waited for may
// take effect at any time after its call, until the return of a later one of the
// event that was.
//
// Of the log it knows which of the writes without an answer are in it, and that
// those of one table of an event take effect in its order; without that, the
// search would try all orders of the writes that were not waited for. The loads
// change one table of an event per write where they read:
// what a write puts into two tables is not seen in one moment, except by who
// waits for it. Creates of what was there, or had been, change nothing and are
// left out: between the tables, their place in the log says nothing to a reader.
func (h *History) checkLinear(f *folded) []error {
	errs := report{what: "linearizability"}
	var operations []porcupine.Operation
	read := make(map[string]bool)
	for i, r := range h.reads {
		read[r.ID] = true
		operations = append(operations, porcupine.Operation{
			ClientId: i, Input: input{id: r.ID}, Output: output{found: r.Found, seen: r.seen()},
			Call: int64(r.Call), Return: int64(r.Return),
		})
	}
	places := make(map[int]int) // in the log of the event, by number
	idle := make(map[int]bool)  // creates that change nothing, by number
	deleted := make(map[string]bool)
	for id, entries := range f.keys {
		if h.foreign(id) {
			continue
		}
		existed := false
		for i := range entries {
			op := entries[i].write.Op
			if n, _ := recordNumber(&entries[i].write); n > 0 { // else told by checkLog
				places[n] = i + 1
				idle[n] = op == event.OpCreate && existed
			}
			existed = existed || op != event.OpUpdate
			deleted[id] = deleted[id] || op == event.OpDelete
		}
	}
	waited := make(map[string][]*Write) // for, by id
	for _, w := range h.writes {
		if w.Outcome == Applied || w.Outcome == NotApplied {
			waited[w.ID] = append(waited[w.ID], w)
		}
	}
	for i, w := range h.writes {
		if w.Op == event.OpDelete && (w.Outcome == Acknowledged || w.Outcome == Applied) && read[w.ID] {
			places[w.Number] = place(f.keys[w.ID], w.Receipt) + 1
		}
		operation := porcupine.Operation{
			ClientId: len(h.reads) + i, Input: input{w.ID, w, places[w.Number]}, Output: output{outcome: w.Outcome},
			Call: int64(w.Call), Return: int64(w.Return),
		}
		switch {
		case !read[w.ID], w.Outcome == Refused, idle[w.Number]:
			continue
		case w.Outcome == Unknown && w.Op == event.OpDelete && !deleted[w.ID], w.Outcome == Unknown && w.Op != event.OpDelete && places[w.Number] == 0:
			continue
		case w.Outcome == Unknown, w.Outcome == Acknowledged:
			operation.Return = math.MaxInt64
			for _, later := range waited[w.ID] {
				if p := places[w.Number]; p > 0 && places[later.Number] > p {
					operation.Return = min(operation.Return, int64(later.Return))
				}
			}
		}
		operations = append(operations, operation)
	}
	for _, one := range linearModel.Partition(operations) {
		switch porcupine.CheckOperationsTimeout(linearModel, one, linearTimeout) {
		case porcupine.Illegal:
			errs.add("no order of the operations on %s explains what was read:%s", one[0].Input.(input).id, describe(one))
		case porcupine.Unknown:
			errs.add("no verdict on the %d operations on %s within %s", len(one), one[0].Input.(input).id, linearTimeout)
		case porcupine.Ok:
		}
	}
	return errs.end()
}

// input is an operation: a write, or a read where there is none.
type input struct {
	id    string
	write *Write
	// place is that of the write in the log of the event, from 1; 0 where it is
	// not known.
	place int
}

// linearState is an event's state with the place of the last write of each table.
type linearState struct {
	eventState
	last [3]int
}

// after is the state after a write, and whether the write may come now.
func (s linearState) after(w *Write, place int) (linearState, bool) {
	for i, fields := range []event.Fields{event.CoreFields, contentFields, embeddingFields} {
		if place == 0 || w.Op == event.OpUpdate && w.Set&fields == 0 {
			continue
		}
		if place < s.last[i] {
			return s, false
		}
		s.last[i] = place
	}
	s.eventState = s.eventState.after(w.Op, w.Set, w.Null, w.Number)
	return s, true
}

type output struct {
	outcome Outcome
	found   bool
	seen    [event.FieldOutputEmbeddings + 1]int
}

func (r *Read) seen() (seen [event.FieldOutputEmbeddings + 1]int) {
	for field, n := range r.Seen {
		seen[field] = n
	}
	return seen
}

var linearModel = porcupine.Model{ //nolint:gochecknoglobals // a constant
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		byID := make(map[string][]porcupine.Operation)
		for _, o := range all {
			id := o.Input.(input).id
			byID[id] = append(byID[id], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byID {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return linearState{} },
	Step: func(state, in, out any) (bool, any) {
		s, w, o := state.(linearState), in.(input).write, out.(output)
		switch {
		case w == nil && !o.found:
			return !s.present(), s
		case w == nil:
			return s.present() && s.seen == o.seen, s
		case o.outcome == NotApplied:
			return w.Op == event.OpUpdate && !s.created && !s.deleted, s
		case o.outcome == Applied && w.Op == event.OpUpdate && !s.created && !s.deleted:
			return false, s
		}
		next, ok := s.after(w, in.(input).place)
		return ok, next
	},
	Equal: func(a, b any) bool { return a.(linearState) == b.(linearState) },
}

// describe lists the operations on an event.
func describe(operations []porcupine.Operation) string {
	text := ""
	for _, o := range operations {
		in, out := o.Input.(input), o.Output.(output)
		end := time.Duration(o.Return).String()
		if o.Return == math.MaxInt64 {
			end = "open"
		}
		if in.write == nil {
			text += fmt.Sprintf("\n\t%s to %s: read, found %t %v", time.Duration(o.Call), end, out.found, out.seen)
			continue
		}
		text += fmt.Sprintf("\n\t%s to %s: %s %d of %b, outcome %d, receipt %s",
			time.Duration(o.Call), end, in.write.Op, in.write.Number, in.write.Set, out.outcome, in.write.Receipt)
	}
	return text
}
