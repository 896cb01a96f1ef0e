package sluice_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

type badText struct{}

func (badText) Error() string                { panic("on purpose") }
func (badText) MarshalJSON() ([]byte, error) { panic("on purpose") }

type point struct {
	X      float64 `json:"x"`
	Hidden int     `json:"-"`
	Empty  string  `json:"empty,omitempty"`
	Next   *point
}

// tracked tracks one event with the input and output, and returns its item.
func tracked(t *testing.T, e sluice.Event) item {
	t.Helper()
	api := new(fakeAPI)
	client := open(t, api, sluice.Options{})
	e.ID, e.ConversationID, e.EventName = "x", "c1", "event_a"
	mustTrack(t, client, e)
	mustFlush(t, client)
	return api.items()[0]
}

func TestValuesThatAreNotJSON(t *testing.T) {
	within := map[string]any{"a": 1}
	within["self"] = within
	loop := &point{X: 1}
	loop.Next = loop
	for _, tt := range []struct {
		name        string
		value, want any
	}{
		{"NaN", math.NaN(), "NaN"},
		{"infinities", []float64{math.Inf(1), math.Inf(-1), 1}, []any{"Infinity", "-Infinity", 1.0}},
		{"a struct", point{X: math.NaN()}, map[string]any{"x": "NaN", "Next": nil}},
		{"a function", map[string]any{"f": func() {}}, map[string]any{"f": "[func()]"}},
		{"a channel", []any{make(chan int), 1}, []any{"[chan int]", 1.0}},
		{"complex", 1 + 2i, "(1+2i)"},
		{"a map within itself", within, map[string]any{"a": 1.0, "self": "[circular]"}},
		{"a pointer to itself", loop, map[string]any{"x": 1.0, "Next": "[circular]"}},
		{"keys", map[any]any{1: "a", 2.5: "b", true: "c", "1": "d"}, nil},
		{"bytes beside NaN", []any{[]byte("abc"), math.NaN()}, []any{"YWJj", "NaN"}},
		{"a time beside NaN", []any{time.Unix(0, 0).UTC(), math.NaN()}, []any{"1970-01-01T00:00:00Z", "NaN"}},
		{"a method that panics", []any{badText{}, 1}, []any{"[sluice_test.badText]", 1.0}},
		{"broken JSON", json.RawMessage(`{"a":`), `{"a":`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tracked(t, sluice.Event{Input: tt.value, Output: tt.value, ConversationMetadata: map[string]any{"m": tt.value}})
			if tt.want == nil { // the order of two keys is not specified
				if n := len(got["input"].(map[string]any)); n != 4 {
					t.Errorf("%d keys: %v", n, got["input"])
				}
				return
			}
			if !reflect.DeepEqual(got["input"], tt.want) || !reflect.DeepEqual(got["output"], tt.want) {
				t.Errorf("input is %v, output %v, want %v", got["input"], got["output"], tt.want)
			}
		})
	}
}

func TestTooDeepValueBecomesText(t *testing.T) {
	for _, levels := range []int{31, 32, 5000} {
		var value any = "end"
		for range levels {
			value = []any{value}
		}
		depth, at := 0, tracked(t, sluice.Event{Input: value})["input"]
		for {
			list, ok := at.([]any)
			if !ok {
				break
			}
			depth, at = depth+1, list[0]
		}
		if _, ok := at.(string); !ok || depth != min(levels, 31) {
			t.Errorf("%d levels became %d, and %v", levels, depth, at)
		}
	}
}

func TestTooLargeValueIsCut(t *testing.T) {
	numbers := make([]int, 500_000)
	for name, e := range map[string]sluice.Event{
		"a text":        {Input: strings.Repeat("x", 2_000_000)},
		"more as JSON":  {Input: strings.Repeat("é", 2_000_000), Output: strings.Repeat("\x00", 1_000_000)},
		"numbers":       {Input: numbers, Output: numbers},
		"an error":      {Error: strings.Repeat("e", 3_000_000), Output: "y"},
		"bytes":         {Input: map[string]any{"image": make([]byte, 1_500_000), "n": 1}},
		"a key":         {Input: map[string]any{strings.Repeat("k", 2_000_000): 1}},
		"escapes":       {Input: strings.Repeat(`"\`, 1_000_000)},
		"broken UTF-8":  {Input: strings.Repeat("\xff", 1_000_000)},
		"metadata":      {ConversationMetadata: map[string]any{"a": strings.Repeat("x", 20_000), "b": 1}},
		"several texts": {Input: []any{strings.Repeat("x", 1_500_000), "hi"}, Output: strings.Repeat("y", 700_000)},
	} {
		t.Run(name, func(t *testing.T) {
			latency := 3.0
			e.Latency = &latency
			got := tracked(t, e)
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "sluice_truncated") || got["latency"] != 3.0 {
				t.Errorf("it is %.300s", text)
			}
			if name == "several texts" {
				list := got["input"].([]any)
				if !strings.HasSuffix(list[0].(string), "… [sluice_truncated: 1500000 bytes]") || list[1] != "hi" || len(got["output"].(string)) < 300_000 {
					t.Errorf("it is %.300s", text)
				}
			}
			if name == "metadata" && got["conversation_metadata"].(map[string]any)["b"] != 1.0 {
				t.Errorf("the metadata is %v", got["conversation_metadata"])
			}
		})
	}
}

func TestTraceEncodesItsInputAtOnce(t *testing.T) {
	api := new(fakeAPI)
	var reported errorLog
	client := open(t, api, sluice.Options{Strict: true, OnError: reported.add})
	messages := []map[string]any{{"role": "user"}}
	_, err := client.Trace(context.Background(), "c1", func(_ context.Context, s *sluice.Span) error {
		s.SetInput(messages)
		s.SetConversationMetadata([]int{1})
		s.SetInputEmbeddings([]float32{float32(math.NaN())})
		s.SetOutput(math.NaN())
		messages[0]["role"] = "changed"
		return badText{}
	})
	if !errors.As(err, new(badText)) {
		t.Error("the error is another one")
	}
	mustFlush(t, client)
	got := api.items()[0]
	if !reflect.DeepEqual(got["input"], []any{map[string]any{"role": "user"}}) || got["output"] != "NaN" ||
		!reflect.DeepEqual(got["conversation_metadata"], map[string]any{"value": []any{1.0}}) || got["input_embeddings"] != nil {
		t.Errorf("the item is %v", got)
	}
	if text, _ := got["error"].(string); !strings.Contains(text, "on purpose") {
		t.Errorf("the error is %q", text)
	}
	if errs := reported.all(); len(errs) > 0 {
		t.Errorf("reported %v", errs)
	}
}
