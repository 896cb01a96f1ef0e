package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// TestOrder has connections post small batches of one conversation at the same
// time, again and again: a conversation is read in the order in which each of
// them wrote, batch after batch.
func TestOrder(t *testing.T) {
	t.Parallel()
	const (
		connections, batches, lines = 8, 20, 10

		untimed = `{"conversation_id":"#c","event_name":"event_a","latency":#i}`
		own     = `{"id":"#c #i","conversation_id":"#c","event_name":"event_a","latency":#i}`
		equal   = `{"conversation_id":"#c","timestamp":1767323045678,"event_name":"event_a","latency":#i}`
		text    = `{"conversation_id":"#c","event_name":"event_a","latency":#i,"input":"#i"}`
	)
	kinds := [][]string{{untimed}, {own}, {equal}, {untimed, own, text}}
	_, c := serve(t, t.TempDir())
	conversation := func(connection int) string { return "connection " + strconv.Itoa(connection) }

	var written receipts
	if err := inParallel(connections, connections, func(connection int) error {
		kind := kinds[connection%len(kinds)]
		for batch := range batches {
			var all [][]byte
			for i := batch * lines; i < (batch+1)*lines; i++ {
				line := kind[i%len(kind)]
				for _, name := range []string{conversation(connection), "all"} {
					if name == "all" {
						line = untimed
					}
					number := strconv.Itoa(connection*batches*lines + i)
					all = append(all, []byte(strings.NewReplacer("#c", name, "#i", number).Replace(line)))
				}
			}
			results, err := postAs(c, all, batch%2 == 0)
			if err != nil {
				return err
			}
			if err := written.add(results...); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	written.waitApplied(t, c, applyBound)

	// next is the number of the next event of each connection.
	check := func(name string, next map[int]int) {
		t.Helper()
		events, err := c.conversation(name, 90, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			number, err := strconv.Atoi(string(e["latency"]))
			if err != nil {
				t.Fatal(err)
			}
			connection := number / (batches * lines)
			if want, ok := next[connection]; !ok || number != want {
				t.Fatalf("conversation %q: event %d, want %d", name, number, want)
			}
			next[connection]++
		}
		for connection, end := range next {
			if want := (connection + 1) * batches * lines; end != want {
				t.Errorf("conversation %q ends before event %d, want %d", name, end, want)
			}
		}
	}
	all := map[int]int{}
	for connection := range connections {
		first := connection * batches * lines
		check(conversation(connection), map[int]int{connection: first})
		all[connection] = first
	}
	check("all", all)
}

// postAs posts a batch as an array or as lines.
func postAs(c *client, items [][]byte, array bool) ([]result, error) {
	if !array {
		return c.post(items)
	}
	body := fmt.Appendf(nil, "[%s]", bytes.Join(items, []byte{','}))
	a, err := c.do(http.MethodPost, "/events", body, "")
	if err != nil {
		return nil, err
	}
	var batch struct {
		Results []result `json:"results"`
	}
	if err := json.Unmarshal(a.body, &batch); err != nil {
		return nil, fmt.Errorf("POST /events: status %d: %w: %.500s", a.status, err, a.body)
	}
	if a.status != http.StatusAccepted || len(batch.Results) != len(items) {
		return nil, fmt.Errorf("POST /events: status %d: %.500s", a.status, a.body)
	}
	return batch.Results, nil
}
