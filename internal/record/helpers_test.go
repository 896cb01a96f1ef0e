package record_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/event/eventtest"
)

// now is when the tests' records are appended.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// randomWrite returns any valid write.
func randomWrite(r *rand.Rand) event.Write {
	conversation := eventtest.Text(r, 1, 40)
	at := now.UnixMicro() - r.Int64N(8e14)
	id := event.MakeID(at, event.ConversationHash(conversation), r.Uint64())
	var w event.Write
	switch r.IntN(4) {
	case 0:
		w.ID = id
	default:
		w.Alias = "alias-" + strings.Repeat("x", r.IntN(100))
	}
	w.Op = event.Op(1 + r.IntN(3))
	switch w.Op {
	case event.OpCreate:
		w.ConversationID = conversation
		if w.Alias != "" {
			w.ID = id.AsInternal()
		} else {
			w.Fresh = r.IntN(2) == 0
		}
		w.Set = event.Fields(0).With(event.FieldEventName) | event.Fields(r.IntN(256))
	case event.OpUpdate:
		w.Set = event.Fields(1 + r.IntN(255))
		w.Null = w.Set & event.Fields(r.IntN(256)) &^ event.Fields(0).With(event.FieldEventName)
	case event.OpDelete:
		return w
	}
	has := (w.Set &^ w.Null).Has
	if has(event.FieldEventName) {
		w.EventName = eventtest.Text(r, 1, 20)
	}
	if has(event.FieldMetadata) {
		w.Metadata = []byte([...]string{`{}`, `{"plan":"pro"}`, `{"a":[1,2.50,{"b":null}],"é":"\u00e9"}`}[r.IntN(3)])
	}
	if has(event.FieldError) {
		w.Error = eventtest.Text(r, 1, 200)
	}
	if has(event.FieldLatency) {
		w.Latency = [...]float64{0, 1.5, 5e-324, math.MaxFloat64, r.Float64() * 1e4}[r.IntN(5)]
	}
	if has(event.FieldInput) {
		w.Input = randomContent(r)
	}
	if has(event.FieldOutput) {
		w.Output = randomContent(r)
	}
	if has(event.FieldInputEmbeddings) {
		w.InputEmbeddings = eventtest.Vector(r)
	}
	if has(event.FieldOutputEmbeddings) {
		w.OutputEmbeddings = eventtest.Vector(r)
	}
	return w
}

func randomContent(r *rand.Rand) event.Content {
	if r.IntN(2) == 0 {
		return event.Content{Kind: event.KindString, Data: []byte(eventtest.Text(r, 0, 600))}
	}
	return event.Content{Kind: event.KindJSON, Data: []byte([...]string{
		`[]`, `0`, `-1.50e+9`, `true`, `false`, `[{"role":"user","content":"hi there"}]`, `{"b":1,"a":" x "}`,
	}[r.IntN(7)])}
}
