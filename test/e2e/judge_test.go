package e2e_test

import (
	"encoding/json"
	"maps"
	"testing"
)

// The tests here are of the judges: that they notice what they are there for.

func TestModelNotices(t *testing.T) {
	create := eventObject{
		"conversation_id": quoted("c"), "timestamp": number(1.5e12), "event_name": quoted("event_a"),
		"conversation_metadata": json.RawMessage(`{"plan":"pro"}`), "error": quoted("timeout"), "latency": number(1.25),
		"input": quoted("42"), "output": json.RawMessage(`[{"a":1,"b":"<"}]`), "input_embeddings": numbers([]float32{1, -0.5}),
	}
	e, err := newModelEvent(create)
	if err != nil {
		t.Fatal(err)
	}
	e.id = "the-id"
	right := eventObject{
		"id": quoted("the-id"), "conversation_id": quoted("c"), "timestamp": quoted("2017-07-14T02:40:00Z"),
		"event_name": quoted("event_a"), "conversation_metadata": json.RawMessage(`{"plan":"pro"}`), "error": quoted("timeout"),
		"latency": json.RawMessage("1.250"), "input": quoted("42"), "output": json.RawMessage(`[{"b":"\u003c","a":1}]`),
		"input_embeddings": numbers([]float32{1, -0.5}), "output_embeddings": json.RawMessage("null"),
	}
	if err := e.differs(right, true); err != nil {
		t.Errorf("differs from itself: %v", err)
	}
	for member, wrong := range map[string]string{
		"id": `"other"`, "conversation_id": `"d"`, "timestamp": `"2017-07-14T02:40:00.000001Z"`, "event_name": `"event_b"`,
		"conversation_metadata": `{"plan":"free"}`, "error": "null", "latency": "1.2500001", "input": "42", "output": `"[]"`,
		"input_embeddings": "[1,-0.50000006]", "output_embeddings": "[0]", "receipt": `"1.2.3"`,
	} {
		got := maps.Clone(right)
		got[member] = json.RawMessage(wrong)
		if e.differs(got, true) == nil {
			t.Errorf("%s %s is not noticed", member, wrong)
		}
		if _, known := right[member]; known {
			delete(got, member)
			if e.differs(got, true) == nil {
				t.Errorf("missing %s is not noticed", member)
			}
		}
	}
	if err := e.apply(eventObject{"error": quoted(""), "output": json.RawMessage("null"), "latency": number(3)}); err != nil {
		t.Fatal(err)
	}
	if e.failed || e.fields["output"] != nil || *e.latency != 3 || e.plan != "pro" {
		t.Errorf("after an update the event is %+v", e)
	}
}

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		q, want float64
		sorted  []float64
	}{
		{0.95, 7, []float64{7}},
		{0.5, 1.5, []float64{1, 2}},
		{0.25, 1.75, []float64{1, 2, 3, 4}},
		{0.95, 19.05, []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}},
	} {
		if got := quantile(test.sorted, test.q); !closeTo(got, test.want) {
			t.Errorf("quantile %v of %v is %v, want %v", test.q, test.sorted, got, test.want)
		}
	}
}

func TestLedgerNotices(t *testing.T) {
	there := func(output string) eventObject { return eventObject{"id": quoted("a"), "output": quoted(output)} }
	acknowledged := ledgerEvent{id: "a", acknowledged: true, outputs: []string{"created", "first", "second"}, known: 1}
	deleted, maybeDeleted := acknowledged, acknowledged
	deleted.deleteSent, deleted.deleteOK = true, true
	maybeDeleted.deleteSent = true
	for name, test := range map[string]struct {
		event ledgerEvent
		found eventObject
		right bool
	}{
		"last acknowledged update":         {acknowledged, there("first"), true},
		"later update, not acknowledged":   {acknowledged, there("second"), true},
		"acknowledged update lost":         {acknowledged, there("created"), false},
		"update never sent":                {acknowledged, there("third"), false},
		"acknowledged create lost":         {acknowledged, nil, false},
		"other id":                         {acknowledged, eventObject{"id": quoted("b"), "output": quoted("first")}, false},
		"acknowledged delete":              {deleted, nil, true},
		"acknowledged delete lost":         {deleted, there("first"), false},
		"delete, not acknowledged: gone":   {maybeDeleted, nil, true},
		"delete, not acknowledged: there":  {maybeDeleted, there("first"), true},
		"create, not acknowledged: absent": {ledgerEvent{outputs: []string{"created"}}, nil, true},
		"create, not acknowledged: there":  {ledgerEvent{outputs: []string{"created"}}, there("created"), true},
	} {
		if err := test.event.differs(test.found); (err == nil) != test.right {
			t.Errorf("%s: %v", name, err)
		}
	}
}
