package body_test

import (
	"encoding/base64"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/golden"
)

// eventVectors are the vectors of request bodies that the server shares with every
// SDK. They are generated from the table of TestParse.
const eventVectors = "../../../sdk/spec/vectors/events.json"

type bodyVector struct {
	Name string `json:"name"`
	Call string `json:"call"`
	// Body is the request body; Base64 stands for one that is not UTF-8.
	Body   string          `json:"body,omitempty"`
	Base64 string          `json:"body_base64,omitempty"`
	Error  *errorVector    `json:"error,omitempty"`
	Event  json.RawMessage `json:"event,omitempty"`
}

type errorVector struct {
	Code  event.Code `json:"code"`
	Field string     `json:"field"`
}

// TestEventVectors publishes the cases of TestParse, but for the huge ones.
func TestEventVectors(t *testing.T) {
	const bodyBytesMax = 2 << 10
	var file struct {
		EventNames []string     `json:"event_names"`
		UpdatedID  string       `json:"updated_id"`
		Cases      []bodyVector `json:"cases"`
	}
	file.EventNames, file.UpdatedID = event.DefaultEventNames(), "order-1"
	for _, c := range parseCases() {
		if len(c.body) > bodyBytesMax {
			continue
		}
		v := bodyVector{Name: c.name, Call: c.call, Body: c.body}
		if !utf8.ValidString(c.body) {
			v.Body, v.Base64 = "", base64.StdEncoding.EncodeToString([]byte(c.body))
		}
		if c.code != "" {
			v.Error = &errorVector{c.code, c.field}
		} else {
			v.Event = json.RawMessage(c.want)
		}
		file.Cases = append(file.Cases, v)
	}
	if len(file.Cases) < 80 {
		t.Errorf("only %d cases", len(file.Cases))
	}
	golden.Compare(t, eventVectors, golden.JSON(t, file))
}
