package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// TestEffects tells a caller who waits what became of each write, over the whole
// pipeline, for ids that a client minted and for ids of its own making.
func TestEffects(t *testing.T) {
	t.Parallel()
	_, c := serve(t, t.TempDir())
	made := 0
	for _, kind := range []string{"minted", "alias"} {
		newID := func() string {
			made++
			if kind == "alias" {
				return fmt.Sprintf("effect %d", made)
			}
			return event.NewID(time.Now().UnixMicro(), "c").String()
		}
		create := func(id string) string {
			return fmt.Sprintf(`{"id":%q,"conversation_id":"c","event_name":"event_a","latency":1}`, id)
		}
		one := func(method, id, body string) string {
			t.Helper()
			path := "/event"
			if method != "POST" {
				path += "/" + strings.ReplaceAll(id, " ", "%20")
			}
			a, err := c.do(method, path, []byte(body), "wait=20")
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Code, ID, Receipt string }
			if err := json.Unmarshal(a.body, &got); err != nil {
				t.Fatalf("%s: %v", a.body, err)
			}
			if got.ID != id || got.Receipt == "" {
				t.Errorf("%s %s: no id or receipt in %s", method, id, a.body)
			}
			return strings.TrimSpace(fmt.Sprint(a.status, " ", got.Code))
		}
		check := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s, %s: %s, want %s", kind, what, got, want)
			}
		}
		id := newID()
		check("update of what is not there", one("PUT", id, `{"latency":2}`), "404 unknown_event")
		check("create", one("POST", id, create(id)), "201")
		check("create again", one("POST", id, create(id)), "409 id_taken")
		check("update", one("PUT", id, `{"latency":2}`), "200")
		check("create after the update", one("POST", id, create(id)), "409 id_taken")
		check("delete", one("DELETE", id, ""), "200")
		check("create after the delete", one("POST", id, create(id)), "409 event_deleted")
		check("update after the delete", one("PUT", id, `{"latency":3}`), "410 event_deleted")
		check("delete again", one("DELETE", id, ""), "200")
		check("create after both deletes", one("POST", id, create(id)), "409 event_deleted")
		first := newID()
		check("delete of what was never there", one("DELETE", first, ""), "200")
		check("create after it", one("POST", first, create(first)), "409 event_deleted")
		check("update after it", one("PUT", first, `{"latency":3}`), "410 event_deleted")

		many, other := newID(), newID()
		update := func(id string) string { return fmt.Sprintf(`{"op":"update","id":%q,"latency":5}`, id) }
		remove := func(id string) string { return fmt.Sprintf(`{"op":"delete","id":%q}`, id) }
		items := []struct{ line, want string }{
			{update(many), "404 unknown_event"},
			{create(many), ""},
			{update(many), ""},
			{create(many), "409 id_taken"},
			{remove(many), ""},
			{create(many), "409 event_deleted"},
			{update(many), "410 event_deleted"},
			{remove(many), ""},
			{create(other), ""},
			{update(other), ""},
		}
		var lines []string
		for _, item := range items {
			lines = append(lines, item.line)
		}
		a, err := c.do("POST", "/events", []byte(strings.Join(lines, "\n")), "wait=20")
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Results []struct {
				Receipt string
				Error   *struct {
					Status  int
					Code    string
					Receipt string
				}
			}
		}
		if err := json.Unmarshal(a.body, &got); err != nil || len(got.Results) != len(items) || a.status != 207 || a.header.Get("Preference-Applied") == "" {
			t.Fatalf("%s: status %d: %s", kind, a.status, a.body)
		}
		for i, r := range got.Results {
			result := ""
			if r.Error != nil {
				result, r.Receipt = fmt.Sprint(r.Error.Status, " ", r.Error.Code), r.Error.Receipt
			}
			check("item "+items[i].line, result, items[i].want)
			if r.Receipt == "" {
				t.Errorf("%s: no receipt of item %s", kind, items[i].line)
			}
		}
	}
}
