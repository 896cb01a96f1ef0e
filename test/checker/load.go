package checker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// batchMax is the most writes of a request.
	batchMax = 20
	// eventsShared is how many events the clients work on at a time, and
	// eventWrites how many writes one gets before another takes its place.
	eventsShared, eventWrites = 200, 12
	// eventsRead and operationsRead are the same for those that are read too.
	// The search for an order grows fast with the number of operations.
	eventsRead, operationsRead = 6, 40
	// waitSeconds is how long a write that is waited for waits.
	waitSeconds = 4
	// pastDays is how far back some of the events lie, so that they are in
	// several partitions of the tables.
	pastDays = 90
)

// Load makes writes and reads at random, of events that several clients share.
type Load struct {
	// URL of the API, such as http://127.0.0.1:8080. Required.
	URL string
	// Clients is how many requests are under way at a time. Default 4.
	Clients int
	// Pause is the least time from one request of a client to its next, after
	// one that nobody answered four times that. Default 40 ms.
	Pause time.Duration
	// Seed of all that is random.
	Seed uint64
	// Timeout of a request. Default 20 s.
	Timeout time.Duration
	// History takes what came of it. Required.
	History *History

	http *http.Client
	run  string

	mu     sync.Mutex
	shared []*subject
	read   []*subject
	made   int
}

// subject is an event that the clients work on.
type subject struct {
	id, conversation string
	minted           bool
	// created is whether a create was acknowledged, operations how many writes
	// and reads there were.
	created    bool
	operations int
	// after is the latest receipt that an answer gave.
	after event.Receipt
}

// Run makes requests until ctx ends, and then waits for the last answers.
func (l *Load) Run(ctx context.Context) {
	if l.Clients == 0 {
		l.Clients = 4
	}
	if l.Pause == 0 {
		l.Pause = 40 * time.Millisecond
	}
	if l.Timeout == 0 {
		l.Timeout = 20 * time.Second
	}
	l.http = &http.Client{Timeout: l.Timeout, Transport: &http.Transport{MaxIdleConnsPerHost: l.Clients}}
	l.run = fmt.Sprintf("run-%x", time.Now().UnixNano())
	var clients sync.WaitGroup
	for i := range l.Clients {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(l.Seed, uint64(i))) //nolint:gosec // not for secrets
			tick := time.NewTicker(l.Pause)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if l.step(random) { //nolint:contextcheck // what is under way at ctx's end is to be answered
					tick.Reset(l.Pause)
				} else {
					tick.Reset(4 * l.Pause)
				}
			}
		})
	}
	clients.Wait()
	l.http.CloseIdleConnections()
}

// step makes one request, and reports whether it was answered.
func (l *Load) step(random *rand.Rand) bool {
	switch n := random.IntN(10); {
	case n < 5:
		return l.batch(random)
	case n < 6:
		w := l.write(random, l.pick(random, &l.shared, eventsShared, eventWrites), allFields)
		return l.single(w, random.IntN(2) == 0)
	case n < 8:
		return l.get(random, l.pick(random, &l.read, eventsRead, operationsRead))
	default:
		// One table at a time: see checkLinear.
		fields := []event.Fields{event.CoreFields, contentFields, embeddingFields}[random.IntN(3)]
		w := l.write(random, l.pick(random, &l.read, eventsRead, operationsRead), fields)
		return l.single(w, random.IntN(4) > 0)
	}
}

// pick chooses one of the events that are worked on.
func (l *Load) pick(random *rand.Rand, subjects *[]*subject, most, operations int) *subject {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := random.IntN(most)
	if i >= len(*subjects) {
		i = len(*subjects)
		*subjects = append(*subjects, nil)
	}
	if s := (*subjects)[i]; s == nil || s.operations >= operations {
		(*subjects)[i] = l.subject(random, subjects == &l.shared)
	}
	s := (*subjects)[i]
	s.operations++
	return s
}

// subject makes an event, of one of the three kinds of id.
func (l *Load) subject(random *rand.Rand, mayBeMinted bool) *subject {
	l.made++
	s := &subject{conversation: fmt.Sprintf("%s-%d", l.run, l.made/10)}
	switch kind := random.IntN(4); {
	case kind == 0 && mayBeMinted:
		s.minted = true
	case kind == 1:
		s.id = fmt.Sprintf("%s/event %d", l.run, l.made)
	default:
		at := time.Now()
		switch random.IntN(8) {
		case 0, 1:
			at = at.Add(-time.Duration(random.Int64N(pastDays*24)) * time.Hour)
		case 2:
			at = at.Add(event.TimestampAhead - time.Hour) // nearly as far as it may be
		}
		s.id = event.NewID(at.UnixMicro(), s.conversation).String()
	}
	return s
}

// planned is a write with the event that it is of.
type planned struct {
	write   *Write
	subject *subject
}

// write decides what to do to the event, setting some of the fields.
func (l *Load) write(random *rand.Rand, s *subject, fields event.Fields) planned {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &Write{Number: l.History.number(), ID: s.id, Op: event.OpUpdate}
	switch n := random.IntN(100); {
	case s.minted && s.id == "":
		// Until an answer names it, only another event can be created.
		w.Op, w.Minted = event.OpCreate, true
	case !s.created && n < 85, n < 4: // else what comes first is an update or a delete
		w.Op = event.OpCreate
	case n < 10:
		w.Op = event.OpDelete
	}
	switch w.Op {
	case event.OpCreate:
		w.ConversationID = s.conversation
		w.Set = l.some(random, allFields) | 1<<event.FieldEventName
	case event.OpDelete:
	case event.OpUpdate:
		w.Set = l.some(random, fields)
		// One of them keeps a value, which names the write.
		if w.Null = l.some(random, w.Set) &^ (1 << event.FieldEventName); random.IntN(3) > 0 || w.Set&^w.Null&^(1<<event.FieldEventName) == 0 {
			w.Null = 0
		}
	}
	return planned{w, s}
}

// some is at least one of the fields that tell their write.
func (l *Load) some(random *rand.Rand, of event.Fields) event.Fields {
	for {
		if set := event.Fields(random.Uint32()) & of; set&^(1<<event.FieldEventName) != 0 || of&^(1<<event.FieldEventName) == 0 {
			return set
		}
	}
}

// answer is what the API answers to a write.
type answer struct {
	ID      string `json:"id"`
	Receipt string `json:"receipt"`
	Code    string `json:"code"`
	Error   *struct {
		Status  int    `json:"status"`
		Code    string `json:"code"`
		ID      string `json:"id"`
		Receipt string `json:"receipt"`
	} `json:"error"`
}

// single sends a write as a request of its own.
func (l *Load) single(p planned, wait bool) bool {
	w := p.write
	method, path := http.MethodPost, "/event"
	switch w.Op {
	case event.OpUpdate:
		method, path = http.MethodPut, "/event/"+url.PathEscape(w.ID)
	case event.OpDelete:
		method, path = http.MethodDelete, "/event/"+url.PathEscape(w.ID)
	case event.OpCreate:
	}
	var body []byte
	if w.Op != event.OpDelete {
		body = w.item(false)
	}
	w.Call = l.History.Now()
	var a answer
	status := l.do(method, path, body, wait, &a)
	w.Return = l.History.Now()
	l.took(w, p.subject, status, &a)
	l.History.add([]*Write{w}, nil)
	return status != 0
}

// took says what the answer to a write means.
func (l *Load) took(w *Write, s *subject, status int, a *answer) {
	switch {
	case status == http.StatusAccepted:
		w.Outcome = Acknowledged
	case status == http.StatusOK, status == http.StatusCreated:
		w.Outcome = Applied
	case status == http.StatusNotFound && a.Code == string(event.CodeUnknownEvent):
		w.Outcome = NotApplied
		return
	case status == http.StatusConflict, status == http.StatusGone:
		w.Outcome, w.NoEffect = Applied, event.Code(a.Code)
	case status >= 400 && status < 500:
		w.Outcome = Refused
		return
	default:
		return
	}
	var err error
	if w.Receipt, err = event.ParseReceipt(a.Receipt); err != nil {
		w.Receipt = event.Receipt{Offset: -int64(w.Number)} // which no record has
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.created = s.created || w.Op == event.OpCreate
	if w.Minted {
		w.ID = a.ID
		if s.id == "" {
			s.id = a.ID
		}
	}
	if s.id == w.ID && w.Receipt.Offset >= s.after.Offset {
		s.after = w.Receipt
	}
}

// batch sends several writes in one request.
func (l *Load) batch(random *rand.Rand) bool {
	all := make([]planned, 1+random.IntN(batchMax))
	var body bytes.Buffer
	for i := range all {
		all[i] = l.write(random, l.pick(random, &l.shared, eventsShared, eventWrites), allFields)
		body.Write(all[i].write.item(true))
		body.WriteByte('\n')
	}
	call := l.History.Now()
	var answers struct {
		Results []answer `json:"results"`
	}
	status := l.do(http.MethodPost, "/events", body.Bytes(), random.IntN(8) == 0, &answers)
	end := l.History.Now()
	writes := make([]*Write, len(all))
	for i, p := range all {
		writes[i] = p.write
		p.write.Call, p.write.Return = call, end
		item, a := status, answer{}
		if len(answers.Results) == len(all) {
			a = answers.Results[i]
			switch {
			case a.Error != nil:
				item, a.Code, a.ID, a.Receipt = a.Error.Status, a.Error.Code, a.Error.ID, a.Error.Receipt
			case status == http.StatusMultiStatus:
				item = http.StatusAccepted
			}
		} else if status < 400 {
			item = 0
		}
		l.took(p.write, p.subject, item, &a)
	}
	l.History.add(writes, nil)
	return status != 0
}

// get reads an event.
func (l *Load) get(random *rand.Rand, s *subject) bool {
	l.mu.Lock()
	r := &Read{ID: s.id, Seen: make(map[event.Field]int)}
	if random.IntN(2) == 0 {
		r.After = s.after
	}
	l.mu.Unlock()
	path := "/event/" + url.PathEscape(s.id)
	if r.After != (event.Receipt{}) {
		path += "?after=" + r.After.String()
	}
	r.Call = l.History.Now()
	var fields map[string]json.RawMessage
	status := l.do(http.MethodGet, path, nil, false, &fields)
	r.Return = l.History.Now()
	switch status {
	case http.StatusNotFound:
	case http.StatusOK:
		r.Found = true
		for field := event.FieldEventName; field <= event.FieldOutputEmbeddings; field++ {
			n, err := numberOf(field, fields[field.String()])
			if err != nil {
				n = -1 // which no write has
			}
			r.Seen[field] = n
		}
	default:
		return status != 0 // no answer says nothing
	}
	l.History.add(nil, r)
	return true
}

// do sends a request and decodes the answer. It returns 0 where there was none.
func (l *Load) do(method, path string, body []byte, wait bool, into any) int {
	q, err := http.NewRequestWithContext(context.Background(), method, strings.TrimSuffix(l.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if wait {
		q.Header.Set("Prefer", fmt.Sprintf("wait=%d", waitSeconds))
	}
	answered, err := l.http.Do(q)
	if err != nil {
		return 0
	}
	defer answered.Body.Close()
	text, err := io.ReadAll(answered.Body)
	if err != nil || json.Unmarshal(text, into) != nil {
		return 0
	}
	return answered.StatusCode
}
