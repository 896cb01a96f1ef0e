package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"
)

// server acknowledges every write but those of the id refused, and knows one event.
func server(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/events":
			if r.Method == http.MethodGet {
				w.WriteHeader(http.StatusUnprocessableEntity)
				_, _ = fmt.Fprintf(w, `{"status":422,"code":"invalid_value","detail":%q,"field":"order"}`, r.URL.RawQuery)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			var results []string
			for line := range strings.Lines(string(body)) {
				result := `{"id":"x","receipt":"1.0.7"}`
				if strings.Contains(line, "refused") {
					result = `{"error":{"status":422,"code":"invalid_value","detail":"no","field":"input"}}`
				}
				results = append(results, result)
			}
			w.WriteHeader(http.StatusMultiStatus)
			_, _ = fmt.Fprintf(w, `{"results":[%s]}`, strings.Join(results, ","))
		case "/event/x":
			_, _ = io.WriteString(w, `{"id":"x","conversation_id":"c1","conversation_metadata":null,"event_name":"event_a",`+
				`"timestamp":"2026-01-02T03:04:05.6789Z","error":null,"latency":1.5,"input":"a","output":null,"input_embeddings":[0.1],"output_embeddings":null}`)
		case "/conversations/c1/events":
			_, _ = io.WriteString(w, `{"events":[],"next_cursor":null}`)
		case "/conversations":
			_, _ = fmt.Fprintf(w, `{"conversations":[{"conversation_id":%q,"first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:05Z","events":1,`+
				`"errors":0,"error_rate":0,"event_names":["event_a"],"first_input":null,"last_output":"a"}],"next_cursor":null}`, r.URL.RawQuery)
		case "/analytics/latency":
			_, _ = fmt.Fprintf(w, `{"rows":[{"conversation_id":null,"event_name":%q,"events":1,"quantiles":{"0.5":null}}]}`, r.URL.RawQuery)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"status":404,"code":"unknown_event","detail":"names no event","field":"id"}`)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestVectorsOfReads sends the reads of the vectors by the driver.
func TestVectorsOfReads(t *testing.T) {
	var vectors struct {
		Reads []struct {
			Name, Call   string
			Query        json.RawMessage
			Method, Path string
			Parameters   [][2]string
			Body         any
			Text         string
			Refused      string
		}
	}
	text, err := os.ReadFile("../../../spec/vectors/reads.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Reads) == 0 {
		t.Fatal(err, "or no vectors")
	}
	var sent *http.Request
	var body []byte
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = r
		body, _ = io.ReadAll(r.Body)
		switch {
		case r.URL.Path == "/export":
			w.Header().Set("Content-Type", "application/x-ndjson")
			return
		case r.URL.Query().Get("format") == "csv":
			w.Header().Set("Content-Type", "text/csv")
		case r.URL.Query().Get("format") == "parquet":
			w.Header().Set("Content-Type", "application/vnd.apache.parquet")
		}
		_, _ = io.WriteString(w, `{"results":[],"next_cursor":null,"rows":[],"truncated":false,"columns":[]}`)
	}))
	t.Cleanup(s.Close)
	d := new(driver)
	if err := d.open(options{URL: s.URL}); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors.Reads {
		t.Run(v.Name, func(t *testing.T) {
			sent = nil
			command, err := json.Marshal(map[string]any{"do": v.Call, "query": v.Query})
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.do(t.Context(), command)
			if v.Refused != "" {
				if refused := describe(err); refused.Kind != "invalid" || refused.Field != v.Refused || sent != nil {
					t.Errorf("error %v, sent %v; want an error of %s", err, sent, v.Refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := make(url.Values)
			for _, p := range v.Parameters {
				want.Add(p[0], p[1])
			}
			if sent.Method != v.Method || sent.URL.Path != v.Path || sent.URL.RawQuery != want.Encode() {
				t.Errorf("sent %s %s, want %s %s?%s", sent.Method, sent.URL, v.Method, v.Path, want.Encode())
			}
			if v.Body == nil {
				if string(body) != v.Text {
					t.Errorf("sent the body %q, want %q", body, v.Text)
				}
				return
			}
			var got any
			if err := json.Unmarshal(body, &got); err != nil || !reflect.DeepEqual(got, v.Body) {
				t.Errorf("sent the body %s, want %v", body, v.Body)
			}
		})
	}
}

func TestDriver(t *testing.T) {
	dir := t.TempDir()
	var in, want bytes.Buffer
	for _, step := range [][2]string{
		{`{"do":"mint","conversation_id":"c1","unix_micros":1767323045678901,"random":"1"}`, `{"id":"019b7ca9-8f2e-8385-82d3-930000000001"}`},
		{`{"do":"flush"}`, `{"error":{"kind":"other","field":"","status":0,"code":"","detail":"no client is open"}}`},
		{fmt.Sprintf(`{"do":"open","options":{"url":%q,"spool_dir":%q,"batch_age_max":0.01}}`, server(t), dir), `{}`},
		{fmt.Sprintf(`{"do":"open","options":{"spool_dir":%q}}`, dir), `{"error":{"kind":"in_use"}}`},
		{`{"do":"track","event":{"id":"x","conversation_id":"c1","event_name":"event_a","timestamp":"2026-01-02T03:04:05Z","input_embeddings":[1],"output":null}}`, `{"id":"x"}`},
		{`{"do":"track","event":{"event_name":"event_a"}}`, `{"error":{"kind":"invalid","field":"conversation_id"}}`},
		{`{"do":"track","event":{"conversation_id":"c1","event_name":"event_a","output_embeddings":[1,1e39]}}`, `{"error":{"kind":"invalid","field":"output_embeddings[1]"}}`},
		{`{"do":"update","id":"refused","fields":{"error":null,"latency":3,"input":"hi"}}`, `{}`},
		{`{"do":"delete","id":"x"}`, `{}`},
		{`{"do":"flush","timeout":5}`, `{}`},
		{`{"do":"reported"}`, `{"errors":[{"op":"update","id":"refused","status":422,"code":"invalid_value","field":"input"}]}`},
		{`{"do":"event","id":"x","wait":2}`, `{"event":{"id":"x","conversation_id":"c1","conversation_metadata":null,"event_name":"event_a","timestamp":"2026-01-02T03:04:05.6789Z","error":null,"latency":1.5,"input":"a","output":null,"input_embeddings":[0.1],"output_embeddings":null}}`},
		{`{"do":"event","id":"y"}`, `{"error":{"kind":"api","field":"id","status":404,"code":"unknown_event","detail":"names no event"}}`},
		{`{"do":"conversation","id":"c1","limit":10}`, `{"events":[]}`},
		{`{"do":"latency","query":{"q":[0.5],"group_by":["event_name"],"since":1767323045678,"metadata":{"n":1,"s":"a"}}}`, `{"rows":[{"conversation_id":null,"event_name":"group_by=event_name&metadata.n=1&metadata.s=a&q=0.5&since=2026-01-02T03%3A04%3A05.678000Z","events":1,"quantiles":{"0.5":null}}]}`},
		{
			`{"do":"list_events","query":{"event_names":["a","b"],"error":true,"latency_max":2.5,"conditions":[{"key":"n","op":">","value":5}],"order":"timestamp","limit":2,"embeddings":true}}`,
			`{"error":{"kind":"api","field":"order","status":422,"code":"invalid_value","detail":"embeddings=true&error=true&event_name=a&event_name=b&latency_max=2.5&limit=2&metadata.n%3E5=&order=timestamp"}}`,
		},
		{
			`{"do":"list_conversations","query":{"error":false,"limit":2}}`,
			`{"conversations":[{"conversation_id":"error=false&limit=2","first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:05Z","events":1,"errors":0,"error_rate":0,"event_names":["event_a"],"first_input":null,"last_output":"a"}]}`,
		},
		{`{"do":"conversation","id":"c1","query":{"conditions":[{"key":"n>","op":"="}]}}`, `{"error":{"kind":"invalid","field":"metadata.n>"}}`},
		{`{"do":"trace","conversation_id":"","sleep":0.001}`, `{"error":{"kind":"invalid","field":"conversation_id"}}`},
		{`{"do":"close","timeout":5}`, `{}`},
		{`{"do":"delete","id":"x"}`, `{"error":{"kind":"closed"}}`},
		{`{"do":"dance"}`, `{"error":{"kind":"other"}}`},
	} {
		in.WriteString(step[0] + "\n")
		want.WriteString(step[1] + "\n")
	}
	var out bytes.Buffer
	if err := new(driver).run(context.Background(), &in, &out); err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(out.String(), "\n"), strings.Split(want.String(), "\n")
	if len(got) != len(wanted) {
		t.Fatalf("%d answers, want %d", len(got)-1, len(wanted)-1)
	}
	for i := range wanted[:len(wanted)-1] {
		var x, y map[string]any
		if err := json.Unmarshal([]byte(got[i]), &x); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if err := json.Unmarshal([]byte(wanted[i]), &y); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		// Of an error, what the step names.
		if e, ok := y["error"].(map[string]any); ok {
			got, _ := x["error"].(map[string]any)
			for name := range got {
				if _, ok := e[name]; !ok {
					delete(got, name)
				}
			}
		}
		if !reflect.DeepEqual(x, y) {
			t.Errorf("answer %d is %s, want %s", i, got[i], wanted[i])
		}
	}
}

func TestDriverTraces(t *testing.T) {
	in := strings.NewReader(fmt.Sprintf(`{"do":"open","options":{"url":%q}}
{"do":"trace","conversation_id":"c1","input":"hi","output":["ho"],"sleep":0.001}
{"do":"trace","conversation_id":"c1","error":"rate limited"}
`, server(t)))
	var out bytes.Buffer
	if err := new(driver).run(context.Background(), in, &out); err != nil {
		t.Fatal(err)
	}
	answers := strings.Split(out.String(), "\n")
	if !strings.HasPrefix(answers[1], `{"id":"0`) || strings.Contains(answers[1], "raised") || !strings.HasSuffix(answers[2], `,"raised":"rate limited"}`) {
		t.Errorf("the answers are %s", out.String())
	}
}
