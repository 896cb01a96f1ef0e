package sluice_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// A call is a call that a vector describes.
type call struct {
	Name   string
	Call   string
	ID     string
	Event  map[string]any
	Fields map[string]any
}

func readVectors(t *testing.T, into any) {
	t.Helper()
	body, err := os.ReadFile("../spec/vectors/clients.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatal(err)
	}
}

// do makes the call and returns the event's id.
func (v *call) do(t *testing.T, client *sluice.Client) (string, error) {
	t.Helper()
	ctx := context.Background()
	switch v.Call {
	case "track":
		f := fieldsOf(t, v.Event)
		e := sluice.Event{
			ConversationMetadata: f.ConversationMetadata, EventName: f.EventName, Error: f.Error, Latency: f.Latency,
			Input: f.Input, Output: f.Output, InputEmbeddings: f.InputEmbeddings, OutputEmbeddings: f.OutputEmbeddings,
		}
		e.ID, _ = v.Event["id"].(string)
		e.ConversationID, _ = v.Event["conversation_id"].(string)
		if text, ok := v.Event["timestamp"].(string); ok {
			var err error
			if e.Timestamp, err = time.Parse(time.RFC3339, text); err != nil {
				t.Fatal(err)
			}
		}
		return client.TrackEvent(ctx, e)
	case "update":
		return v.ID, client.UpdateEvent(ctx, v.ID, fieldsOf(t, v.Fields))
	case "delete":
		return v.ID, client.DeleteEvent(ctx, v.ID)
	}
	t.Fatalf("call %q", v.Call)
	return "", nil
}

// fieldsOf converts fields by their JSON names; a null becomes a field of Clear.
func fieldsOf(t *testing.T, members map[string]any) (f sluice.Fields) {
	t.Helper()
	clears := map[string]sluice.FieldSet{
		"conversation_metadata": sluice.ClearConversationMetadata, "error": sluice.ClearError, "latency": sluice.ClearLatency,
		"input": sluice.ClearInput, "output": sluice.ClearOutput,
		"input_embeddings": sluice.ClearInputEmbeddings, "output_embeddings": sluice.ClearOutputEmbeddings,
	}
	for name, v := range members {
		if v == nil {
			f.Clear |= clears[name]
			continue
		}
		switch name {
		case "conversation_metadata":
			f.ConversationMetadata = v
		case "event_name":
			f.EventName = v.(string)
		case "error":
			f.Error = v.(string)
		case "latency":
			latency := v.(float64)
			f.Latency = &latency
		case "input":
			f.Input = v
		case "output":
			f.Output = v
		case "input_embeddings":
			f.InputEmbeddings = vectorOf(v)
		case "output_embeddings":
			f.OutputEmbeddings = vectorOf(v)
		}
	}
	return f
}

func vectorOf(v any) []float32 {
	numbers := v.([]any)
	vector := make([]float32, len(numbers))
	for i, n := range numbers {
		vector[i] = float32(n.(float64))
	}
	return vector
}

func TestVectorsOfBodies(t *testing.T) {
	var vectors struct {
		Bodies []struct {
			call
			Item     item
			Minted   bool
			IDPrefix string `json:"id_prefix"`
		}
	}
	readVectors(t, &vectors)
	if len(vectors.Bodies) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Bodies {
		t.Run(v.Name, func(t *testing.T) {
			api := new(fakeAPI)
			client := open(t, api, sluice.Options{})
			id, err := v.do(t, client)
			if err != nil {
				t.Fatal(err)
			}
			mustFlush(t, client)
			items := api.items()
			if len(items) != 1 {
				t.Fatalf("%d items were sent, want 1", len(items))
			}
			got := items[0]
			if v.Minted {
				if got["id"] != id || !strings.HasPrefix(id, v.IDPrefix) {
					t.Errorf("id is %v, the call returned %s, want the prefix %s", got["id"], id, v.IDPrefix)
				}
				delete(got, "id")
			}
			if !reflect.DeepEqual(got, v.Item) {
				t.Errorf("the item is %v, want %v", got, v.Item)
			}
		})
	}
}

func TestVectorsOfInvalidCalls(t *testing.T) {
	var vectors struct {
		Invalid []struct {
			call
			RepeatDimensions int `json:"repeat_dimensions"`
			Field            string
		}
	}
	readVectors(t, &vectors)
	if len(vectors.Invalid) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Invalid {
		t.Run(v.Name, func(t *testing.T) {
			if v.RepeatDimensions > 0 {
				zeros := make([]any, v.RepeatDimensions)
				for i := range zeros {
					zeros[i] = 0.0
				}
				v.Event["output_embeddings"] = zeros
			}
			api := new(fakeAPI)
			client := open(t, api, sluice.Options{})
			id, err := v.do(t, client)
			var refused *sluice.FieldError
			if !errors.As(err, &refused) {
				t.Fatalf("the error is %v, want a FieldError", err)
			}
			if rest, ok := strings.CutPrefix(refused.Field, v.Field); !ok || rest != "" && (rest[0] != '[' || v.Field == "") {
				t.Errorf("the error names %q, want %q", refused.Field, v.Field)
			}
			if v.Call == "track" && id != "" {
				t.Errorf("the id %s is returned beside the error", id)
			}
			mustFlush(t, client)
			if n := len(api.got()); n != 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

func TestVectorsOfResponses(t *testing.T) {
	var vectors struct {
		Responses []struct {
			Name       string
			Status     int
			Headers    map[string]string
			Body       string
			Outcome    string
			Error      json.RawMessage
			RetryAfter int `json:"retry_after"`
		}
	}
	readVectors(t, &vectors)
	if len(vectors.Responses) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Responses {
		t.Run(v.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := &fakeAPI{answer: func(n int, _ request) answer {
					if n > 0 {
						return answer{status: 202}
					}
					return answer{status: v.Status, header: v.Headers, body: v.Body, empty: v.Body == ""}
				}}
				var reported errorLog
				client := open(t, api, sluice.Options{OnError: reported.add})
				e := event("c1")
				e.ID = "order-1"
				mustTrack(t, client, e)
				start := time.Now()
				mustFlush(t, client)
				requests, errs := api.got(), reported.all()
				want := map[string]struct{ requests, errors int }{
					"done": {1, 0}, "refused": {1, 1}, "retried": {2, 0},
				}[v.Outcome]
				if len(requests) != want.requests || len(errs) != want.errors {
					t.Fatalf("%d requests and errors %v, want %s", len(requests), errs, v.Outcome)
				}
				if after := time.Duration(v.RetryAfter) * time.Second; v.Outcome == "retried" &&
					(requests[1].at.Sub(start) < after || requests[1].at.Sub(start) < 50*time.Millisecond) {
					t.Errorf("tried again after %s, want at least %s", requests[1].at.Sub(start), after)
				}
				if v.Outcome == "refused" {
					got := errs[0]
					want := new(sluice.APIError)
					if err := json.Unmarshal(v.Error, want); err != nil {
						t.Fatal(err)
					}
					var refusal *sluice.APIError
					if got.Op != sluice.OpCreate || got.ID != "order-1" || !errors.As(got, &refusal) || *refusal != *want {
						t.Errorf("reported %s, want %s", got, want)
					}
				}
			})
		})
	}
}

// Raw JSON is sent on one line, even if the value has line breaks.
func TestRawJSONIsCompacted(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	e := event("c1")
	e.Input = json.RawMessage("{\n \"a\": [1,\r\n 2]\n}")
	e.ConversationMetadata = json.RawMessage("\n{ }")
	mustTrack(t, client, e)
	mustFlush(t, client)
	if got := api.items()[0]; !reflect.DeepEqual(got["input"], map[string]any{"a": []any{1.0, 2.0}}) {
		t.Errorf("input is %v", got["input"])
	}
}

func TestEncoding(t *testing.T) {
	type metadata struct {
		Plan string `json:"plan"`
	}
	var none *metadata
	nan := float32(0)
	nan /= nan
	for _, tt := range []struct {
		name  string
		set   func(*sluice.Event)
		want  item
		field string
	}{
		{"a struct", func(e *sluice.Event) { e.ConversationMetadata = metadata{"pro"} }, item{"conversation_metadata": map[string]any{"plan": "pro"}}, ""},
		{"no value", func(e *sluice.Event) {
			e.ConversationMetadata, e.Input, e.Output = none, json.RawMessage(nil), json.RawMessage("null")
		}, item{}, ""},
		{"invalid UTF-8", func(e *sluice.Event) { e.Input, e.Error = "a\xffb\xe2\x82", "\x80" }, item{"input": "a\ufffdb\ufffd\ufffd", "error": "\ufffd"}, ""},
		{"control characters", func(e *sluice.Event) { e.Input = "\x00\x1f\"\\\b\f\n\r\t\x7f</script>\u2028" }, item{"input": "\x00\x1f\"\\\b\f\n\r\t\x7f</script>\u2028"}, ""},
		{"a tiny latency", func(e *sluice.Event) { e.Latency = sluice.Millis(time.Nanosecond) }, item{"latency": 1e-6}, ""},
		{"a huge latency", func(e *sluice.Event) { huge := 1e300; e.Latency = &huge }, item{"latency": 1e300}, ""},
		{"metadata that is a list", func(e *sluice.Event) { e.ConversationMetadata = []int{1} }, nil, "conversation_metadata"},
		{"metadata that is text", func(e *sluice.Event) { e.ConversationMetadata = "{}" }, nil, "conversation_metadata"},
		{"broken JSON", func(e *sluice.Event) { e.Output = json.RawMessage(`{"a":`) }, nil, "output"},
		{"no JSON", func(e *sluice.Event) { e.Output = json.RawMessage{} }, nil, "output"},
		{"what JSON has not", func(e *sluice.Event) { e.Input = make(chan int) }, nil, "input"},
		{"NaN", func(e *sluice.Event) { e.InputEmbeddings = []float32{1, 2, nan} }, nil, "input_embeddings[2]"},
		{"a conversation that is not UTF-8", func(e *sluice.Event) { e.ConversationID = "\xff" }, nil, "conversation_id"},
		{"too large", func(e *sluice.Event) { e.Input = strings.Repeat("x", 1<<20) }, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := new(fakeAPI)
			client := open(t, api, sluice.Options{Strict: true})
			e := event("c1")
			e.ID = "x"
			tt.set(&e)
			_, err := client.TrackEvent(context.Background(), e)
			if tt.want == nil {
				var refused *sluice.FieldError
				if !errors.As(err, &refused) || refused.Field != tt.field {
					t.Fatalf("the error is %v, want a FieldError of %q", err, tt.field)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			mustFlush(t, client)
			tt.want["id"], tt.want["conversation_id"], tt.want["event_name"] = "x", "c1", "event_a"
			if got := api.items()[0]; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("the item is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLargestWrite(t *testing.T) {
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{Strict: true})
	e := event("c1")
	e.ID = "x"
	frame := len(`{"id":"x","conversation_id":"c1","event_name":"event_a","input":""}`)
	e.Input = strings.Repeat("x", 1<<20-frame)
	mustTrack(t, client, e)
	e.Input = e.Input.(string) + "x"
	if _, err := client.TrackEvent(context.Background(), e); err == nil {
		t.Error("a write of one byte more was taken")
	}
	mustFlush(t, client)
	if n := len(api.items()); n != 1 {
		t.Errorf("%d items were sent", n)
	}
}

func TestUpdateThatSetsAndClearsAField(t *testing.T) {
	client := open(t, new(fakeAPI), sluice.Options{})
	err := client.UpdateEvent(context.Background(), "x", sluice.Fields{Input: "y", Clear: sluice.ClearInput | sluice.ClearError})
	var refused *sluice.FieldError
	if !errors.As(err, &refused) || refused.Field != "input" {
		t.Errorf("the error is %v", err)
	}
}

func TestStoredEventHasTheJSONOfTheAPI(t *testing.T) {
	const text = `{"id":"x","conversation_id":"c1","conversation_metadata":null,"event_name":"event_a",` +
		`"timestamp":"2026-01-02T03:04:05.678901Z","error":null,"latency":0,"input":"a","output":[1],` +
		`"input_embeddings":null,"output_embeddings":[0.1,-1]}`
	var e sluice.StoredEvent
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatal(err)
	}
	if e.ConversationMetadata != nil || e.Error != "" || e.Latency == nil || string(e.Input) != `"a"` || e.InputEmbeddings != nil {
		t.Errorf("read as %+v", e)
	}
	if got, err := json.Marshal(e); err != nil || !jsonEqual(t, got, []byte(text)) {
		t.Errorf("written as %s, %v", got, err)
	}
}

func jsonEqual(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	return !bytes.Equal(a, nil) && reflect.DeepEqual(x, y)
}
