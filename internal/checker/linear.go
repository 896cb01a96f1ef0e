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
// take effect at any time after its call.
//
// It knows nothing of the log, but for which of the writes without an answer
// are in it. The loads change one table of an event per write where they read:
// what a write puts into two tables is not seen in one moment, except by who
// waits for it.
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
	logged := make(map[int]bool)
	deleted := make(map[string]bool)
	for id, entries := range f.keys {
		if h.foreign(id) {
			continue
		}
		for i := range entries {
			n, _ := recordNumber(&entries[i].write) // told by checkLog
			logged[n] = true
			deleted[id] = deleted[id] || entries[i].write.Op == event.OpDelete
		}
	}
	for i, w := range h.writes {
		operation := porcupine.Operation{
			ClientId: len(h.reads) + i, Input: input{w.ID, w}, Output: output{outcome: w.Outcome},
			Call: int64(w.Call), Return: int64(w.Return),
		}
		switch {
		case !read[w.ID], w.Outcome == Refused:
			continue
		case w.Outcome == Unknown && w.Op == event.OpDelete && !deleted[w.ID], w.Outcome == Unknown && w.Op != event.OpDelete && !logged[w.Number]:
			continue
		case w.Outcome == Unknown, w.Outcome == Acknowledged:
			operation.Return = math.MaxInt64
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
	Init: func() any { return eventState{} },
	Step: func(state, in, out any) (bool, any) {
		s, w, o := state.(eventState), in.(input).write, out.(output)
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
		return true, s.after(w.Op, w.Set, w.Null, w.Number)
	},
	Equal: func(a, b any) bool { return a.(eventState) == b.(eventState) },
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
