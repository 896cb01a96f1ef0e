package body_test

import (
	stdjson "encoding/json"
	"errors"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// rawBody is a create as far as a general parser takes it: the members found,
// their values still to be read.
type rawBody[T any] struct {
	ID               T `json:"id"`
	ConversationID   T `json:"conversation_id"`
	Metadata         T `json:"conversation_metadata"`
	EventName        T `json:"event_name"`
	Timestamp        T `json:"timestamp"`
	Error            T `json:"error"`
	Latency          T `json:"latency"`
	Input            T `json:"input"`
	Output           T `json:"output"`
	InputEmbeddings  T `json:"input_embeddings"`
	OutputEmbeddings T `json:"output_embeddings"`
}

// jsonParsers are ways to check and split a body; docs/json-parser.md compares them.
func jsonParsers() []struct {
	name   string
	strict bool
	parse  func(body []byte) error
} {
	return []struct {
		name   string
		strict bool
		parse  func(body []byte) error
	}{
		{"jsontext", true, func(body []byte) error {
			if !jsontext.Value(body).IsValid() {
				return errors.New("not valid")
			}
			return nil
		}},
		{"jsonv2", true, func(body []byte) error {
			var v rawBody[jsontext.Value]
			return json.Unmarshal(body, &v)
		}},
		{"encoding_json", false, func(body []byte) error {
			var v rawBody[stdjson.RawMessage]
			return stdjson.Unmarshal(body, &v)
		}},
	}
}

// TestJSONParsers checks the claims of docs/json-parser.md about strictness.
func TestJSONParsers(t *testing.T) {
	for _, p := range jsonParsers() {
		t.Run(p.name, func(t *testing.T) {
			accepted, invalid := 0, 0
			for _, c := range parseCases() {
				if c.code != "invalid_json" && c.code != "duplicate_field" {
					continue
				}
				invalid++
				if p.parse([]byte(c.body)) == nil {
					accepted++
				}
			}
			if p.strict != (accepted == 0) {
				t.Errorf("accepts %d of %d invalid bodies", accepted, invalid)
			}
		})
	}
}

func BenchmarkJSONParsers(b *testing.B) {
	for _, p := range jsonParsers() {
		for _, c := range benchBodies(b) {
			b.Run(p.name+"/"+c.name, func(b *testing.B) {
				b.SetBytes(int64(len(c.body)))
				b.ReportAllocs()
				for b.Loop() {
					if err := p.parse(c.body); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
