package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// importServer takes events as the API does. It answers the first requests with 503.
type importServer struct {
	mu       sync.Mutex
	failing  int
	requests int
	largest  int
	events   map[string]map[string]json.RawMessage
	// unavailable are ids whose first create the log does not take.
	unavailable map[string]bool
}

func (s *importServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	body, _ := io.ReadAll(r.Body)
	s.largest = max(s.largest, len(body))
	w.Header().Set("Content-Type", "application/problem+json")
	switch {
	case s.requests <= s.failing:
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"code":"overloaded","detail":"later"}`)
	case r.Method == http.MethodGet && s.events[r.URL.Query().Get("id")] == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(s.events[r.URL.Query().Get("id")])
	case r.Method == http.MethodPut:
		if len(body) > importItemBytes {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = io.WriteString(w, `{"code":"too_large","detail":"is too large"}`)
			return
		}
		var change map[string]json.RawMessage
		_ = json.Unmarshal(body, &change)
		for field, value := range change {
			s.events[r.URL.Query().Get("id")][field] = value
		}
	default:
		var results []string
		for line := range strings.Lines(string(body)) {
			var e map[string]json.RawMessage
			var id string
			_ = json.Unmarshal([]byte(line), &e)
			_ = json.Unmarshal(e["id"], &id)
			switch {
			case s.unavailable[id]:
				delete(s.unavailable, id)
				results = append(results, `{"error":{"status":503,"code":"unavailable","detail":"no"}}`)
			case len(line) > importItemBytes+1:
				results = append(results, `{"error":{"status":413,"code":"too_large","detail":"is too large"}}`)
			case string(e["op"]) == `"update"`:
				for field, value := range e {
					if field != "op" {
						s.events[id][field] = value
					}
				}
				results = append(results, `{"id":"x","receipt":"1.0.0"}`)
			case s.events[id] != nil:
				results = append(results, `{"error":{"status":409,"code":"id_taken","detail":"taken"}}`)
			case id == "":
				results = append(results, `{"error":{"status":422,"code":"required","detail":"is required","field":"id"}}`)
			default:
				s.events[id] = e
				results = append(results, `{"id":"x","receipt":"1.0.0"}`)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"results":[%s]}`, strings.Join(results, ","))
	}
}

func newImportServer(t *testing.T) (*importServer, ImportClient) {
	t.Helper()
	s := &importServer{events: make(map[string]map[string]json.RawMessage), unavailable: make(map[string]bool)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, ImportClient{Client: Client{URL: server.URL}, Log: quiet()}
}

func TestImport(t *testing.T) {
	s, client := newImportServer(t)
	s.failing, s.unavailable["e7"] = 2, true
	var text bytes.Buffer
	const events = 3*importBatchLines + 10
	for i := range events {
		fmt.Fprintf(&text, "{\"id\":\"e%d\",\"input\":\"%s\"}\r\n\n", i, strings.Repeat("x", 3000))
	}
	text.WriteString("{}\n{\"id\":\"e0\"}\n{\"id\":\"last\"}") // without an end
	sum, err := client.Run(t.Context(), &text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Imported{Created: events + 1, Known: 1, Refused: 1}, sum); diff != "" {
		t.Error(diff)
	}
	if len(s.events) != events+1 {
		t.Errorf("%d events", len(s.events))
	}
	if s.largest > importBatchBytes+importBatchLines {
		t.Errorf("a batch has %d bytes", s.largest)
	}
}

// TestImportLarge: an event that is larger than a create is set field by field. One that is there
// already stays as it is.
func TestImportLarge(t *testing.T) {
	s, client := newImportServer(t)
	part := `"` + strings.Repeat("<", 700<<10) + `"`
	line := `{"id":"a","event_name":"event_a","error":null,"input":` + part + `,"output":` + part + `,"conversation_metadata":{"n":18446744073709551617.0}}`
	run := func(line string, want Imported) {
		t.Helper()
		sum, err := client.Run(t.Context(), strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, sum); diff != "" {
			t.Error(diff)
		}
	}
	run(line, Imported{Created: 1})
	var want map[string]json.RawMessage
	if err := json.Unmarshal([]byte(line), &want); err != nil {
		t.Fatal(err)
	}
	delete(want, "error")
	if diff := cmp.Diff(want, s.events["a"]); diff != "" {
		t.Errorf("%.500s", diff)
	}
	s.events["a"]["output"], s.events["a"]["input"] = json.RawMessage("null"), json.RawMessage(`"changed"`)
	run(line, Imported{Known: 1})
	if string(s.events["a"]["output"]) != "null" || string(s.events["a"]["input"]) != `"changed"` {
		t.Errorf("the output has %d bytes, the input is %.20s", len(s.events["a"]["output"]), s.events["a"]["input"])
	}
	run(`{"id":"b","input":"`+strings.Repeat("x", importItemBytes)+`"}`, Imported{Refused: 1})
	// A field that fills a request is too large for an item with the id.
	run(`{"id":"c","conversation_id":"c","input":"`+strings.Repeat("x", importItemBytes-13)+`","output":"y"}`, Imported{Created: 1})
	if len(s.events["c"]["input"]) != importItemBytes-11 || string(s.events["c"]["output"]) != `"y"` {
		t.Errorf("the input has %d bytes, the output is %s", len(s.events["c"]["input"]), s.events["c"]["output"])
	}
	// Changes are no events.
	run(`{"op":"delete","id":"c"}`+"\n"+`{"\u006fp":"update","id":"c","output":"z"}`+"\n"+`{"op":"create","id":"d","input":"\"op\""}`, Imported{Created: 1, Refused: 2})
	if s.events["c"] == nil || string(s.events["c"]["output"]) != `"y"` {
		t.Errorf("an import changed an event: %.100s", s.events["c"]["output"])
	}
}

func TestImportEnds(t *testing.T) {
	for name, tt := range map[string]struct{ text, err string }{
		"a line without end":   {"{}\n" + strings.Repeat("x", importLineBytesMax+1), "line 2: is longer than 16777216 bytes"},
		"large, and no id":     {"{}\n{\"input\":\"" + strings.Repeat("x", importItemBytes) + "\"}", "line 2 is longer than 1048576 bytes and has no id"},
		"large, and not JSON":  {strings.Repeat("x", importItemBytes+1), "line 1: "},
		"many that are no use": {strings.Repeat("{}\n", importReports+5), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, client := newImportServer(t)
			_, err := client.Run(t.Context(), strings.NewReader(tt.text))
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v", err)
			}
		})
	}
	_, client := newImportServer(t)
	client.URL = "http://127.0.0.1:1"
	if _, err := client.Run(t.Context(), strings.NewReader("{}\n")); err == nil {
		t.Error("no error where nothing listens")
	}
}
