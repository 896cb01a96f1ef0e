package api_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
)

// acknowledging is a log that acknowledges every write. The other ports are not
// asked.
type acknowledging struct {
	api.Applied
	api.Events
	api.Analytics

	calls int
}

func (l *acknowledging) Produce(_ context.Context, writes []event.Write) []event.Ack {
	l.calls++
	return make([]event.Ack, len(writes))
}

func (l *acknowledging) Ready(context.Context) error { return nil }

// FuzzBatchArray holds the splitting of arrays to a real parser: a body that is
// an array gets one result for each element, one that is not is refused whole.
func FuzzBatchArray(f *testing.F) {
	for _, s := range []string{
		`[]`, `[{}]`, `[,]`, `[1,"a,b]",[2,{"c":","}],null]`, `["\\",{"\"":"]"}]`, `[{"a":1,"a":2}`, `[[[]]`, `["\`, `[1]]`, "[1\n,\t2 ]", `[{]}]`, "[\"\xff\"]",
		`[{"x":1,"y":}]`, `[{"conversation_id":"c1","event_name":"event_a"},{"conversation_id":"c1","event_name":"event_a"}]`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		body = "[" + strings.TrimPrefix(body, "[")
		if strings.Count(body, "[")+strings.Count(body, "{") > 5000 {
			return // beyond what the reference parser nests
		}
		l, reg := &acknowledging{}, prometheus.NewRegistry()
		server, err := api.New(api.Config{}, api.Ports{Log: l, Applied: l, Events: l, Analytics: l, Metrics: reg}, slog.New(slog.DiscardHandler), reg)
		if err != nil {
			t.Fatal(err)
		}
		a, request := httptest.NewRecorder(), httptest.NewRequest("POST", "/events", strings.NewReader(body))
		request.Host = "127.0.0.1:8080"
		server.Handler().ServeHTTP(a, request)
		if !jsontext.Value(body).IsValid(jsontext.AllowDuplicateNames(true)) {
			if a.Code != 400 || l.calls > 0 {
				t.Fatalf("%q is no JSON: status %d, %d calls", body, a.Code, l.calls)
			}
			return
		}
		var elements []json.RawMessage
		if err := json.Unmarshal([]byte(body), &elements); err != nil {
			t.Skip() // the two parsers differ on depth
		}
		if len(elements) == 0 {
			if a.Code != 422 || l.calls > 0 {
				t.Fatalf("%q is empty: status %d, %d calls", body, a.Code, l.calls)
			}
			return
		}
		var got struct{ Results []json.RawMessage }
		if err := json.Unmarshal(a.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if isTaken := a.Code == 202 || a.Code == 207; len(got.Results) != len(elements) || isTaken != (l.calls > 0) || !isTaken && a.Code/100 != 4 {
			t.Fatalf("%q: status %d, %d results for %d elements", body, a.Code, len(got.Results), len(elements))
		}
	})
}
