package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	ledgerBatch = 40
	// writePause is the least time between the requests of one writer, so that
	// a test's time, not the machine, says about how much is written.
	writePause = 10 * time.Millisecond
)

// ledger writes without end and remembers what was acknowledged: events, each
// in exactly one conversation, and updates and deletes of some of them.
type ledger struct {
	name string
	// minted leaves all ids to the server: such writes need nothing from the
	// database, so that the consumer always has an insert under way.
	minted  bool
	applied receipts
	count   atomic.Int64 // acknowledged creates
	failed  atomic.Int64 // requests without an acknowledgement

	mu            sync.Mutex
	conversations map[string]*ledgerConversation
}

// ledgerConversation is one request's events, by their input, which no other event has.
type ledgerConversation struct {
	sent map[string]*ledgerEvent
}

// ledgerEvent is one event and the values that its output was given, in order.
type ledgerEvent struct {
	id           string // empty while its create is not acknowledged
	acknowledged bool
	outputs      []string
	// known is the place in outputs of the last acknowledged value.
	known                int
	deleteSent, deleteOK bool
}

// newLedger returns a ledger whose conversations begin with the name.
func newLedger(name string) *ledger {
	return &ledger{name: name, conversations: map[string]*ledgerConversation{}}
}

// write runs writers until stop is called, which returns when all have ended.
// A request that fails ends its writer and is never sent again: whether it
// counts is unknown.
func (l *ledger) write(c *client, writers int) (stop func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			pause := time.NewTicker(writePause)
			defer pause.Stop()
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				case <-pause.C:
				}
				if err := l.round(c, fmt.Sprintf("%s-%d-%d", l.name, w, i)); err != nil {
					l.failed.Add(1)
					return
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(ended)
		wg.Wait()
	})
}

// round creates the events of a new conversation in one request, and then
// updates and deletes some of them in another.
func (l *ledger) round(c *client, conversation string) error {
	events := make([]*ledgerEvent, ledgerBatch)
	lines := make([][]byte, ledgerBatch)
	sent := map[string]*ledgerEvent{}
	for i := range events {
		input := fmt.Sprintf("%s event %d", conversation, i)
		events[i] = &ledgerEvent{outputs: []string{"created"}}
		sent[input] = events[i]
		create := map[string]any{"conversation_id": conversation, "event_name": "event_a", "input": input, "output": "created"}
		if i%4 == 0 && !l.minted {
			create["id"] = input // an alias
		}
		lines[i], _ = json.Marshal(create) // strings only
	}
	l.mu.Lock()
	l.conversations[conversation] = &ledgerConversation{sent}
	l.mu.Unlock()
	results, err := c.post(lines)
	if err != nil {
		return err
	}
	if err := l.applied.add(results...); err != nil {
		return err
	}
	l.mu.Lock()
	for i, r := range results {
		events[i].id, events[i].acknowledged = r.ID, true
	}
	l.mu.Unlock()
	l.count.Add(int64(len(results)))

	lines = nil
	var changed []*ledgerEvent
	for i, e := range events {
		for n := range i % 3 { // twice, for some
			change := map[string]any{"op": "update", "id": e.id, "output": fmt.Sprintf("update %d", n)}
			if i%9 == 8 && n == 1 {
				change = map[string]any{"op": "delete", "id": e.id}
			}
			line, _ := json.Marshal(change)
			lines, changed = append(lines, line), append(changed, e)
			l.mu.Lock()
			if change["op"] == "delete" {
				e.deleteSent = true
			} else {
				e.outputs = append(e.outputs, change["output"].(string))
			}
			l.mu.Unlock()
		}
	}
	if results, err = c.post(lines); err != nil {
		return err
	}
	if err := l.applied.add(results...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range changed {
		e.known = len(e.outputs) - 1
		e.deleteOK = e.deleteSent
	}
	return nil
}

// waitForWrites waits until that many more creates are acknowledged.
func (l *ledger) waitForWrites(t *testing.T, n int64) {
	t.Helper()
	want := l.count.Load() + n
	eventually(t, time.Minute, "acknowledged writes", func() error {
		if got := l.count.Load(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

// requireNoFailures fails the test if a request was not acknowledged.
func (l *ledger) requireNoFailures(t *testing.T) {
	t.Helper()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d requests failed, want none", n)
	}
}

// check compares every conversation with the ledger: each acknowledged event is
// there exactly once, with the last acknowledged update or a later one, and
// nothing is there that was not sent.
func (l *ledger) check(t *testing.T, c *client) {
	t.Helper()
	l.applied.waitApplied(t, c, applyBound)
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.conversations {
		names = append(names, name)
	}
	slices.Sort(names)
	var unacknowledged, found atomic.Int64
	err := inParallel(len(names), loaders, func(i int) error {
		got, err := c.conversation(names[i], 1000, false)
		if err != nil {
			return err
		}
		seen := map[string]eventObject{}
		for _, e := range got {
			input := e.text("input")
			if seen[input] != nil {
				return fmt.Errorf("event %q is there twice: %s and %s", input, seen[input]["id"], e["id"])
			}
			seen[input] = e
		}
		for input, e := range l.conversations[names[i]].sent {
			if !e.acknowledged {
				unacknowledged.Add(1)
			}
			if seen[input] != nil {
				found.Add(1)
			}
			if err := e.differs(seen[input]); err != nil {
				return fmt.Errorf("event %q, id %q: %w", input, e.id, err)
			}
			delete(seen, input)
		}
		for input := range seen {
			return fmt.Errorf("event %q of conversation %s was never sent", input, names[i])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d conversations: %d events acknowledged, %d not; %d found", len(names), l.count.Load(), unacknowledged.Load(), found.Load())
}

// differs says how what was found, nil for nothing, cannot be this event.
func (e *ledgerEvent) differs(got eventObject) error {
	switch {
	case got == nil && e.acknowledged && !e.deleteSent:
		return fmt.Errorf("acknowledged and lost")
	case got == nil:
		return nil
	case e.deleteOK:
		return fmt.Errorf("there after its acknowledged delete")
	case e.acknowledged && got.text("id") != e.id:
		return fmt.Errorf("has the id %s", got["id"])
	case !slices.Contains(e.outputs[e.known:], got.text("output")):
		return fmt.Errorf("has the output %s, want one of %q", got["output"], e.outputs[e.known:])
	}
	return nil
}
