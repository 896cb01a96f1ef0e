package e2e_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
)

// An update of an event that was never created is refused and kept; once the
// event is there, a replay applies it.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, c := serve(t, dir)
	const wait = "wait=20"
	answered, err := c.do(http.MethodPut, eventPath("late/1"), []byte(`{"output":"from the dead letter"}`), wait)
	if err != nil {
		t.Fatal(err)
	}
	if answered.status != http.StatusNotFound || !strings.Contains(string(answered.body), "unknown_event") {
		t.Fatalf("the update answered %d %s, want 404 unknown_event", answered.status, answered.body)
	}
	// While it runs, its broker is found by the data directory.
	list := func(args ...string) []map[string]any {
		t.Helper()
		dlq := start(t, append([]string{"dlq", "list", "--data-dir", dir}, args...)...)
		if code := dlq.wait(t, startBound); code != 0 {
			t.Fatalf("dlq list exited %d", code)
		}
		var letters []map[string]any
		for line := range strings.Lines(string(dlq.out.bytes())) {
			var letter map[string]any
			if err := json.Unmarshal([]byte(line), &letter); err != nil {
				t.Fatalf("dlq list printed %q: %v", line, err)
			}
			letters = append(letters, letter)
		}
		return letters
	}
	letters := list()
	if len(letters) != 1 || letters[0]["reason"] != "unknown_event" || letters[0]["id"] != "late/1" {
		t.Fatalf("dead letters %v, want the update's", letters)
	}
	if got := list("--reason", "bad_record"); len(got) != 0 {
		t.Errorf("dead letters of another reason: %v", got)
	}

	answered, err = c.do(http.MethodPost, "/event", []byte(`{"id":"late/1","conversation_id":"c","event_name":"event_a","input":"hi"}`), wait)
	if err != nil || answered.status != http.StatusCreated {
		t.Fatalf("the create answered %d %s, error %v", answered.status, answered.body, err)
	}
	replay := start(t, "dlq", "replay", "--data-dir", dir)
	if code := replay.wait(t, startBound); code != 0 {
		t.Fatalf("dlq replay exited %d", code)
	}
	if out := string(replay.out.bytes()); out != "dead letters replayed: 1\n" {
		t.Errorf("dlq replay printed %q", out)
	}
	eventually(t, startBound, "the replayed update to be applied", func() error {
		var e struct{ Input, Output *string }
		if err := c.get(eventPath("late/1"), &e); err != nil {
			return err
		}
		if e.Output == nil || *e.Output != "from the dead letter" || e.Input == nil || *e.Input != "hi" {
			return errors.New("it is not")
		}
		return nil
	})
	if got := list(); len(got) != 1 || got[0]["replayed"] != true {
		t.Errorf("dead letters after the replay: %v, want the first one only, as replayed", got)
	}
	// Another replay does not send it again.
	again := start(t, "dlq", "replay", "--data-dir", dir)
	const want = "dead letters replayed: 0\nleft out 1 unknown_event: replayed before (--again replays them)\n"
	if code, out := again.wait(t, startBound), string(again.out.bytes()); code != 0 || out != want {
		t.Errorf("the second dlq replay exited %d and printed %q, want %q", code, out, want)
	}
	p.stop(t)
}
