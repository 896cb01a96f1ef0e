package workload

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

// Plan is a load whose every write is a function of its number: nothing has to
// be kept to know what must be in the database at the end. Events are numbered
// from 0; each is created once, updated at most once and deleted at most once.
type Plan struct {
	// Corpus is what the events are made of. Required.
	Corpus *Corpus
	// Encoding of the embeddings; the corpus was opened with the same.
	Encoding Encoding
	// Run names the load in the conversations' ids, so that two loads have no
	// conversation in common.
	Run string
	// Seed of all that is random.
	Seed uint64
	// Events is how many the load has.
	Events int
	// Start and Span are the time that the events' timestamps fill evenly.
	Start time.Time
	Span  time.Duration
}

// Until is the end of the events' time, exclusive.
func (p *Plan) Until() time.Time { return p.Start.Add(p.Span) }

func (p *Plan) sample(i int) *sample { return &p.Corpus.samples[i%len(p.Corpus.samples)] }

// mix spreads a number's bits (SplitMix64).
func (p *Plan) mix(i int) uint64 {
	z := uint64(i)*0x9e3779b97f4a7c15 + p.Seed
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// appendConversation appends the id of event i's conversation: that of the
// corpus, under a name of each time that the corpus is repeated.
func (p *Plan) appendConversation(b []byte, i int) []byte {
	b = append(b, p.sample(i).conversation...)
	b = append(b, '-')
	b = append(b, p.Run...)
	b = append(b, '-')
	return strconv.AppendInt(b, int64(i/len(p.Corpus.samples)), 10)
}

// ID is the id of event i, as an SDK would mint it.
func (p *Plan) ID(i int) event.ID {
	var b [event.ConversationIDBytesMax]byte
	micros := p.Start.UnixMicro() + int64(i)*p.Span.Microseconds()/int64(p.Events)
	return event.MakeID(micros, event.ConversationHash(string(p.appendConversation(b[:0], i))), p.mix(i))
}

// AppendCreate appends the body of event i's create.
func (p *Plan) AppendCreate(b []byte, i int) []byte { return p.appendCreate(b, i, p.Encoding) }

func (p *Plan) appendCreate(b []byte, i int, e Encoding) []byte {
	s := p.sample(i)
	b = append(b, `{"id":"`...)
	b = p.ID(i).AppendText(b)
	b = append(b, `","conversation_id":"`...)
	b = p.appendConversation(b, i)
	b = append(b, `","conversation_metadata":{`...)
	if s.metadata != "" {
		b = append(append(b, s.metadata...), ',')
	}
	b = append(b, `"app":"sluice-bench","release":"2026.11.1","user":"user-`...)
	b = strconv.AppendInt(b, int64(i/10), 10)
	b = append(b, `"},"event_name":"`...)
	b = append(b, s.name...)
	b = append(b, '"')
	b = appendMember(b, "latency", s.latency)
	b = appendMember(b, "error", s.failure)
	b = appendMember(b, "input", s.input)
	b = appendMember(b, "output", s.output)
	b = appendMember(b, "input_embeddings", s.inputVector[e])
	b = appendMember(b, "output_embeddings", s.outputVector[e])
	return append(b, '}')
}

func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return append(b, value...)
}

// AppendUpdate appends the body of event i's update. It is what an application
// says when a call is over, and one of three in turn: the latency and whether
// it failed; the output; both latency and output.
func (p *Plan) AppendUpdate(b []byte, i int) []byte {
	b = append(b, '{')
	return p.appendUpdated(b, i)
}

func (p *Plan) appendUpdated(b []byte, i int) []byte {
	if i%3 != 1 {
		b = append(b, `"latency":`...)
		b = strconv.AppendInt(b, int64(p.mix(i)%10_000), 10)
	}
	switch i % 3 {
	case 0:
		b = appendMember(b, "error", p.updatedError(i))
	case 1:
		b = append(b, `"output":`...)
		b = append(b, p.sample(i+7).output...)
	default:
		b = appendMember(b, "output", p.sample(i+7).output)
	}
	return append(b, '}')
}

// updatedError is the JSON of the error that an update of the first kind sets.
func (p *Plan) updatedError(i int) string {
	if p.mix(i)>>32%8 == 0 {
		return `"timeout: the model did not answer within 10 s"`
	}
	return "null"
}

// AppendUpdateItem appends event i's update as an item of a batch.
func (p *Plan) AppendUpdateItem(b []byte, i int) []byte {
	b = append(b, `{"op":"update","id":"`...)
	b = p.ID(i).AppendText(b)
	b = append(b, `",`...)
	return p.appendUpdated(b, i)
}

// AppendDeleteItem appends event i's delete as an item of a batch.
func (p *Plan) AppendDeleteItem(b []byte, i int) []byte {
	b = append(b, `{"op":"delete","id":"`...)
	b = p.ID(i).AppendText(b)
	return append(b, `"}`...)
}

// Choose returns n different events in random order. Another salt makes
// another choice.
func (p *Plan) Choose(n int, salt uint64) []int {
	return rand.New(rand.NewPCG(p.Seed, salt)).Perm(p.Events)[:n]
}

// State is which of a plan's writes were made.
type State struct {
	Updated, Deleted []bool // by event; nil for none
}

func (s *State) updated(i int) bool { return s.Updated != nil && s.Updated[i] }
func (s *State) deleted(i int) bool { return s.Deleted != nil && s.Deleted[i] }

// Count is how many events of a name there are, and how many of them failed.
type Count struct{ Events, Errors uint64 }

// Counts are the events that must be there, by name.
func (p *Plan) Counts(s *State) map[string]Count {
	counts := make(map[string]Count)
	for i := range p.Events {
		if s.deleted(i) {
			continue
		}
		from := p.sample(i)
		failed := from.failure != "" && from.failure != "null"
		if s.updated(i) && i%3 == 0 {
			failed = p.updatedError(i) != "null"
		}
		c := counts[from.name]
		c.Events++
		if failed {
			c.Errors++
		}
		counts[from.name] = c
	}
	return counts
}

// Want is event i as GET /event/{id} must show it, its fields decoded from
// JSON. It is nil for an event that must not be there.
func (p *Plan) Want(i int, s *State) (map[string]any, error) {
	if s.deleted(i) {
		return nil, nil
	}
	want := map[string]any{"error": nil, "latency": nil, "input": nil, "output": nil, "input_embeddings": nil, "output_embeddings": nil}
	shown := p.Encoding
	if shown == Base64 {
		shown = JSONArrays
	}
	if err := json.Unmarshal(p.appendCreate(nil, i, shown), &want); err != nil {
		return nil, fmt.Errorf("event %d: %w", i, err)
	}
	if s.updated(i) {
		if err := json.Unmarshal(p.AppendUpdate(nil, i), &want); err != nil {
			return nil, fmt.Errorf("update of event %d: %w", i, err)
		}
	}
	want["timestamp"] = p.ID(i).Time().Format(time.RFC3339Nano)
	return want, nil
}
