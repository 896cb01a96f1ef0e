package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

const (
	batchWrites = 1000 // writes of one POST /events
	loaders     = 4    // connections that load at once
	// applyBound is far above what the whole file takes.
	applyBound = 2 * time.Minute
)

// brokers runs the test on the embedded broker and on Apache Kafka.
func brokers(t *testing.T, test func(t *testing.T, args ...string)) {
	t.Run("embedded broker", func(t *testing.T) { test(t) })
	t.Run("Apache Kafka", func(t *testing.T) {
		broker := kafkatest.Start(t, kafkatest.Options{})
		test(t, "--kafka-brokers", broker.Addrs[0])
	})
}

// TestPipeline loads real conversations, updates and deletes some of the
// events, and compares every event and every query with what the file and the
// writes say.
func TestPipeline(t *testing.T) {
	t.Parallel()
	records, whole := conversationsFile.read(t)
	changes := 3000
	if whole {
		changes = 20_000
	}
	brokers(t, func(t *testing.T, args ...string) { testPipeline(t, records, changes, false, args) })
}

// TestEmbeddings is the same for events with embeddings.
func TestEmbeddings(t *testing.T) {
	t.Parallel()
	records, _ := embeddedFile.read(t)
	brokers(t, func(t *testing.T, args ...string) { testPipeline(t, records, len(records)/5, true, args) })
}

func testPipeline(t *testing.T, records []eventObject, changes int, withEmbeddings bool, args []string) {
	dir := t.TempDir()
	p, c := serve(t, dir, args...)
	l := &loader{client: c, random: rand.New(rand.NewPCG(3, uint64(len(records))))}

	began := time.Now()
	took := func(what string) {
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	creates, err := l.creates(records)
	if err != nil {
		t.Fatal(err)
	}
	l.load(t, creates)
	took(fmt.Sprintf("%d creates acknowledged", len(creates)))
	// Without a wait between: these also meet events that are not applied yet.
	later, err := l.changes(creates, changes, withEmbeddings)
	if err != nil {
		t.Fatal(err)
	}
	half := len(later) / 2
	l.load(t, later[:half])
	took(fmt.Sprintf("%d updates, deletes and repeated creates acknowledged", half))
	// The second half meets a consumer that remembers nothing.
	p.stop(t)
	_, c = serve(t, dir, args...)
	l.client = c
	took("restarted")
	l.load(t, later[half:])
	took(fmt.Sprintf("%d more acknowledged", len(later)-half))
	l.applied.waitApplied(t, c, applyBound)
	took("all visible")

	events := make([]*modelEvent, len(creates))
	for i := range creates {
		events[i] = creates[i].event
	}
	m := newModel(events)
	var checked []string
	for i, id := range m.conversations {
		// On Apache Kafka, of which the reads know nothing, one of three.
		if len(args) == 0 || i%3 == 0 {
			checked = append(checked, id)
		}
	}
	checkConversationPages(t, c, m, checked, withEmbeddings)
	took(fmt.Sprintf("every event of %d conversations compared", len(checked)))
	checkSingleEvents(t, c, m)
	took("single events compared")
	t.Run("queries", func(t *testing.T) { checkQueries(t, c, m) })
	took("queries compared")
	checkRefused(t, c)
}

// checkConversationPages compares every event of the conversations, as they
// list it.
func checkConversationPages(t *testing.T, c *client, m *model, ids []string, withEmbeddings bool) {
	t.Helper()
	err := inParallel(len(ids), loaders, func(i int) error {
		id := ids[i]
		// One page for most; a query more for each page would double the time.
		limit := 1000
		if i%20 == 0 {
			limit = 1 + i%5
		}
		got, err := c.conversation(id, limit, withEmbeddings)
		if err != nil {
			return err
		}
		want := m.live(id)
		if len(got) != len(want) {
			return fmt.Errorf("conversation %s: %d events, want %d", id, len(got), len(want))
		}
		for i := range want {
			if err := want[i].differs(got[i], withEmbeddings); err != nil {
				return fmt.Errorf("conversation %s: %w", id, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkSingleEvents compares a few hundred events as GET /event answers them.
func checkSingleEvents(t *testing.T, c *client, m *model) {
	t.Helper()
	step := max(1, len(m.events)/300)
	var deleted atomic.Int64
	err := inParallel(len(m.events)/step, loaders, func(i int) error {
		e := m.events[i*step]
		a, err := c.do(http.MethodGet, eventPath(e.id), nil, "")
		if err != nil {
			return err
		}
		if e.deleted {
			deleted.Add(1)
			if a.status != http.StatusNotFound {
				return fmt.Errorf("GET %s: status %d, want 404 as it is deleted", eventPath(e.id), a.status)
			}
			return nil
		}
		var got eventObject
		if err := json.Unmarshal(a.body, &got); err != nil || a.status != http.StatusOK {
			return fmt.Errorf("GET %s: status %d: %.300s", eventPath(e.id), a.status, a.body)
		}
		return e.differs(got, true)
	})
	if err != nil {
		t.Fatal(err)
	}
	if deleted.Load() == 0 {
		t.Error("no deleted event was asked for; choose others")
	}
}

// checkRefused updates an event that never existed.
func checkRefused(t *testing.T, c *client) {
	t.Helper()
	a, err := c.do(http.MethodPut, "/event/never-created", []byte(`{"latency":1}`), "wait=20")
	if err != nil {
		t.Fatal(err)
	}
	var problem struct {
		Code string `json:"code"`
	}
	if err := json.Unmarshal(a.body, &problem); err != nil || a.status != http.StatusNotFound || problem.Code != "unknown_event" {
		t.Errorf("update of an event that never existed: status %d: %s", a.status, a.body)
	}
}

// write is one write to be sent. The body of an update or delete needs its
// event's id, which may be known only when the create was answered.
type write struct {
	event *modelEvent
	index int // of the event: writes of one event go over one connection, in order
	op    string
	body  eventObject
}

func (w *write) line() ([]byte, error) {
	if w.op != "create" {
		w.body["op"] = quoted(w.op)
		w.body["id"] = quoted(w.event.id)
	}
	return encode(w.body)
}

// encode is json.Marshal without the escapes for HTML.
func encode(o eventObject) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

func quoted(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string always has a form
	return b
}

func number(v float64) json.RawMessage {
	b, _ := json.Marshal(v) // always finite here
	return b
}

// loader makes writes and sends them.
type loader struct {
	client  *client
	random  *rand.Rand
	applied receipts
}

// creates makes the create of each event: most ids are left to the server, some
// are minted here, some are the caller's own; times and embeddings take each
// form that the API knows.
func (l *loader) creates(records []eventObject) ([]write, error) {
	writes := make([]write, len(records))
	for i, r := range records {
		e, err := newModelEvent(r)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		body := eventObject{}
		for m, value := range r {
			body[m] = value
		}
		switch i % 10 {
		case 3, 7:
			e.id = event.NewID(e.micros, e.conversation).String()
			body["id"] = quoted(e.id)
		case 5:
			e.id = fmt.Sprintf("%s/turn %d?#%%2F", e.conversation, i)
			body["id"] = quoted(e.id)
			body["timestamp"] = quoted(time.UnixMicro(e.micros).In(time.FixedZone("", 19800)).Format(time.RFC3339Nano))
		}
		if i%4 == 1 {
			for _, m := range embeddingMembers {
				if vector, ok := e.vectors[m]; ok {
					body[m] = numbers(vector)
				}
			}
		}
		writes[i] = write{e, i, "create", body}
	}
	return writes, nil
}

// changes makes n updates and n deletes of random events, and repeats a part of
// the creates with other contents, which must change nothing. It applies them
// to the model, which is what they will be once sent in this order.
func (l *loader) changes(creates []write, n int, withEmbeddings bool) ([]write, error) {
	ops := slices.Repeat([]string{"update", "delete"}, n)
	ops = append(ops, slices.Repeat([]string{"create"}, n/10)...)
	l.random.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	writes := make([]write, 0, len(ops))
	for _, op := range ops {
		created := creates[l.random.IntN(len(creates))]
		w := write{created.event, created.index, op, eventObject{}}
		switch op {
		case "update":
			w.body = l.update(withEmbeddings)
			if err := w.event.apply(w.body); err != nil {
				return nil, err
			}
		case "delete":
			w.event.deleted = true
		case "create":
			if created.body["id"] == nil {
				continue // another create without an id is another event
			}
			for m, value := range created.body {
				w.body[m] = value
			}
			w.body["output"], w.body["error"], w.body["event_name"] = quoted("a second create"), quoted("late"), quoted("event_c")
			delete(w.body, "input")
		}
		writes = append(writes, w)
	}
	return writes, nil
}

// update makes a random partial update.
func (l *loader) update(withEmbeddings bool) eventObject {
	r := l.random
	null := json.RawMessage("null")
	pick := func(values ...json.RawMessage) json.RawMessage { return values[r.IntN(len(values))] }
	text := fmt.Sprintf("updated \"%d\" <&> \u00e9\u2028\U0001f600 \\ \n end", r.IntN(1e6))
	list := json.RawMessage(fmt.Sprintf(
		`[{"role": "assistant", "content": "updated <%d>", "n": [1, -2.5e3, true, null, {}]}, "\u00e9\ud83d\ude00"]`, r.IntN(1e6)))
	makers := map[string]func() json.RawMessage{
		"latency": func() json.RawMessage {
			return pick(number(r.Float64()*5000), number(math.Round(r.Float64()*1e3)), null)
		},
		"error": func() json.RawMessage { return pick(quoted("timeout"), quoted("tool failed: "+text), null, quoted("")) },
		"output": func() json.RawMessage {
			return pick(quoted(text), list, null, json.RawMessage(`{"a":{"b":[]}}`), quoted(""))
		},
		"input": func() json.RawMessage {
			return pick(quoted(text), list, null, json.RawMessage("42"), json.RawMessage("false"))
		},
		"event_name": func() json.RawMessage { return pick(quoted("event_a"), quoted("event_b"), quoted("event_c")) },
		"conversation_metadata": func() json.RawMessage {
			return pick(json.RawMessage(`{"plan": "pro", "upgraded": true}`), json.RawMessage(`{"plan":"free","tags":["a","b"],"n":1.5}`), json.RawMessage(`{}`), null)
		},
	}
	members := slices.Clone(coreMembers)
	if withEmbeddings {
		members = append(members, embeddingMembers...)
		for _, m := range embeddingMembers {
			makers[m] = func() json.RawMessage {
				vector := make([]float32, 1+r.IntN(400))
				for i := range vector {
					vector[i] = float32(r.NormFloat64())
				}
				vector[0] = float32(math.Copysign(0, -1)) // its sign must survive
				return pick(numbers(vector), packVector(vector), null)
			}
		}
	}
	change := eventObject{}
	for range 1 + r.IntN(3) {
		m := members[r.IntN(len(members))]
		change[m] = makers[m]()
	}
	return change
}

// load sends the writes over a few connections: batches, and between them a few
// as calls of their own. It notes the ids that the creates got.
func (l *loader) load(t *testing.T, writes []write) {
	t.Helper()
	lanes := make([][]write, loaders)
	for _, w := range writes {
		lanes[w.index%loaders] = append(lanes[w.index%loaders], w)
	}
	err := inParallel(loaders, loaders, func(i int) error {
		for rest := lanes[i]; len(rest) > 0; {
			n := min(batchWrites, len(rest))
			if err := l.sendBatch(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
			n = min(15, len(rest))
			for j := range rest[:n] {
				if err := l.sendSingle(&rest[j]); err != nil {
					return err
				}
			}
			rest = rest[n:]
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *loader) sendBatch(writes []write) error {
	lines := make([][]byte, len(writes))
	for i := range writes {
		line, err := writes[i].line()
		if err != nil {
			return err
		}
		lines[i] = line
	}
	results, err := l.client.post(lines)
	if err != nil {
		return err
	}
	for i, r := range results {
		if err := writes[i].answered(r); err != nil {
			return err
		}
	}
	return l.applied.add(results...)
}

// answered notes the id of a create that left it to the server; any other
// answer must name the event's own.
func (w *write) answered(r result) error {
	if w.event.id == "" {
		w.event.id = r.ID
	}
	return differ(r.ID, w.event.id)
}

func (l *loader) sendSingle(w *write) error {
	var r result
	var err error
	switch w.op {
	case "create":
		var body []byte
		if body, err = encode(w.body); err != nil {
			return err
		}
		var a answer
		if a, err = l.client.do(http.MethodPost, "/event", body, ""); err != nil {
			return err
		}
		if err := json.Unmarshal(a.body, &r); err != nil || a.status != http.StatusAccepted || r.Receipt == "" {
			return fmt.Errorf("POST /event: status %d: %.300s", a.status, a.body)
		}
		if want := eventPath(r.ID); a.header.Get("Location") != want {
			return fmt.Errorf("POST /event: Location %s, want %s", a.header.Get("Location"), want)
		}
	case "update":
		var body []byte
		if body, err = encode(w.body); err != nil {
			return err
		}
		r, err = l.client.single(http.MethodPut, w.event.id, body)
	case "delete":
		r, err = l.client.single(http.MethodDelete, w.event.id, nil)
	}
	if err != nil {
		return err
	}
	if err := w.answered(r); err != nil {
		return err
	}
	return l.applied.add(r)
}
