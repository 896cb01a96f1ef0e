package sluice_test

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// Contents that were read are written back with every digit, raw or decoded with UseNumber.
func TestVectorsOfNumbers(t *testing.T) {
	var vectors struct{ Numbers []struct{ Name, JSON string } }
	text, err := os.ReadFile("../spec/vectors/numbers.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors.Numbers) == 0 {
		t.Fatal(err, "or no vectors")
	}
	for _, v := range vectors.Numbers {
		for _, strict := range []bool{false, true} {
			t.Run(v.Name, func(t *testing.T) {
				var mu sync.Mutex
				var sent strings.Builder
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						_, _ = io.WriteString(w, `{"id":"a","conversation_id":"c1","event_name":"event_a","timestamp":"2026-01-02T03:04:05Z","error":null,"latency":null,`+
							`"conversation_metadata": {"v": `+v.JSON+`},"input":`+v.JSON+` ,"output":null}`)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					body, _ := io.ReadAll(r.Body)
					sent.Write(body)
					results := strings.Repeat(acknowledged+",", strings.Count(string(body), "\n"))
					_, _ = io.WriteString(w, `{"results":[`+strings.TrimSuffix(results, ",")+`]}`)
				}))
				t.Cleanup(server.Close)
				client := openAny(t, sluice.Options{URL: server.URL, Strict: strict})
				event, err := client.Event(context.Background(), "a")
				if err != nil {
					t.Fatal(err)
				}
				decoder := json.NewDecoder(strings.NewReader(string(event.Input)))
				decoder.UseNumber()
				var decoded any
				if err := decoder.Decode(&decoded); err != nil {
					t.Fatal(err)
				}
				for _, fields := range []sluice.Fields{{Input: event.Input, ConversationMetadata: event.ConversationMetadata}, {Output: decoded}} {
					if err := client.UpdateEvent(context.Background(), "a", fields); err != nil {
						t.Fatal(err)
					}
				}
				if !strict { // where what is not JSON stands beside
					if err := client.UpdateEvent(context.Background(), "a", sluice.Fields{Output: []any{math.NaN(), decoded}}); err != nil {
						t.Fatal(err)
					}
				}
				mustFlush(t, client)
				mu.Lock()
				defer mu.Unlock()
				wants := []string{`"input":` + v.JSON, `"conversation_metadata":{"v":` + v.JSON + `}`, `"output":` + v.JSON}
				if !strict {
					wants = append(wants, `"output":["NaN",`+v.JSON+`]`)
				}
				for _, want := range wants {
					if !strings.Contains(sent.String(), want) {
						t.Errorf("%s is not in %s", want, sent.String())
					}
				}
			})
		}
	}
}
