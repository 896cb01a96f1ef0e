package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// stock is a conversation of as many events, each with an input of as many
// bytes, which a fake database reads as a real one does.
type stock struct {
	events, bytes int

	mu sync.Mutex
	// asked are the bounds that pages were read with.
	asked []int
	// read are the events that have been read.
	read int
}

const stockBytes = 1 << 10 // of an event beside its input

func (s *stock) id(i int) event.ID {
	var id event.ID
	copy(id[:], fmt.Sprintf("%016d", i))
	return id
}

func (s *stock) page(_ context.Context, q query.List) (query.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := 0
	if q.After != nil {
		_, _ = fmt.Sscanf(string(q.After[:]), "%d", &first)
		first++
	}
	s.asked = append(s.asked, q.BytesMax)
	each := s.bytes + stockBytes
	if each > q.BytesMax {
		return query.Page{}, &event.LargeError{Bytes: each}
	}
	last := min(first+min(q.LimitEvents, q.BytesMax/each), s.events)
	var p query.Page
	for i := first; i < last; i++ {
		p.Events = append(p.Events, s.event(i))
		p.Bytes += each
	}
	if last < s.events {
		next := s.id(last - 1)
		p.Next = &next
	}
	s.read = max(s.read, last)
	return p, nil
}

func (s *stock) event(i int) event.Event {
	return event.Event{
		ID: fmt.Sprint(i), ConversationID: "c", EventName: "event_a",
		Input: event.Content{Kind: event.KindString, Data: []byte(strings.Repeat(string(rune('a'+i%26)), s.bytes))},
	}
}

func (s *stock) readUpTo() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read
}

// conversation is the JSON of a page.
type conversation struct {
	Events []struct {
		ID    string `json:"id"`
		Input string `json:"input"`
	} `json:"events"`
	NextCursor *string `json:"next_cursor"`
}

// check wants the events from the first one on.
func (s *stock) check(tb testing.TB, first int, c conversation) {
	tb.Helper()
	for i, got := range c.Events {
		if want := s.event(first + i); got.ID != want.ID || got.Input != string(want.Input.Data) {
			tb.Fatalf("event %d is %s with %d bytes", first+i, got.ID, len(got.Input))
		}
	}
}

func (h *harness) answerBytes(tb testing.TB) int {
	tb.Helper()
	return int(h.metric(tb, "sluice_api_answer_bytes").GetGauge().GetValue())
}

func (h *harness) cut(tb testing.TB, reason string) int {
	tb.Helper()
	return int(h.metric(tb, "sluice_api_answers_cut_total", reason).GetCounter().GetValue())
}

// A page of any size comes whole, in parts that are read one after the other.
func TestPagesOfAnySize(t *testing.T) {
	for _, s := range []*stock{
		{events: 1}, {events: 1000}, {events: 1000, bytes: 40 << 10}, {events: 20, bytes: 2<<20 + 1}, {events: 3, bytes: 6 << 20},
	} {
		t.Run(fmt.Sprintf("%d of %d", s.events, s.bytes), func(t *testing.T) {
			h := newHarness(t)
			h.readPage = s.page
			most := 0
			recorder := &watchedRecorder{header: http.Header{}, wrote: func() { most = max(most, h.answerBytes(t)) }}
			h.server.Handler().ServeHTTP(recorder, request("GET", "/conversations/c/events?limit=1000", ""))
			var got conversation
			decode(t, recorder.body.String(), &got)
			if len(got.Events) != s.events || got.NextCursor != nil {
				t.Fatalf("%d of %d events, cursor %v", len(got.Events), s.events, got.NextCursor)
			}
			s.check(t, 0, got)
			if bound := max(4<<20, 2*s.bytes); most > bound {
				t.Errorf("%d bytes held while it was sent, %d are %d times too many", most, bound, most/bound)
			}
			if n := h.answerBytes(t); n != 0 {
				t.Errorf("%d bytes held at the end", n)
			}
		})
	}
}

// watchedRecorder is a client that looks at the server while it is written to.
type watchedRecorder struct {
	header http.Header
	body   strings.Builder
	wrote  func()
}

func (w *watchedRecorder) Header() http.Header { return w.header }
func (w *watchedRecorder) WriteHeader(int)     {}
func (w *watchedRecorder) Write(p []byte) (int, error) {
	w.wrote()
	return w.body.Write(p)
}

// pipes is a listener whose connections are pipes without buffers, so that
// time is that of synctest.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// onPipes serves h within a bubble of synctest, until the test ends, and
// returns what connects to it.
func onPipes(t *testing.T, h *harness) (dial func(request string) net.Conn) {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: h.server.Handler(), WriteTimeout: 90 * time.Second, ReadHeaderTimeout: time.Second, IdleTimeout: time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(p)
	}()
	var clients []net.Conn
	t.Cleanup(func() {
		for _, c := range clients {
			_ = c.Close()
		}
		_ = server.Close()
		<-served
	})
	return func(request string) net.Conn {
		client, conn := net.Pipe()
		p.conns <- conn
		clients = append(clients, client)
		if _, err := io.WriteString(client, request); err != nil {
			t.Fatal(err)
		}
		return client
	}
}

const getPage = "GET /conversations/c/events?limit=1000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

// after waits by the clock of synctest.
func after(d time.Duration) { <-time.After(d) }

// paced reads from a connection at a rate, a little at a time.
type paced struct {
	net.Conn
	bytesPerSecond int
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b[:min(len(b), 4<<10)])
	after(time.Duration(float64(n) / float64(p.bytesPerSecond) * float64(time.Second)))
	return n, err
}

// A reader that is slow and steady gets all, and holds one small part of it.
func TestSlowReaderHoldsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stock{events: 60, bytes: 60 << 10}
		h := newHarness(t, func(c *api.Config) { c.AnswerBytesMax = 16 << 20 })
		h.readPage = s.page
		reader := paced{onPipes(t, h)(getPage), 20_000}
		response, err := http.ReadResponse(bufio.NewReader(reader), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var body strings.Builder
		most := 0
		for err == nil {
			_, err = io.CopyN(&body, response.Body, 16<<10)
			if body.Len() > 2<<20 { // at first the server has yet to find out
				most = max(most, h.answerBytes(t))
			}
		}
		var got conversation
		decode(t, body.String(), &got)
		if len(got.Events) != s.events || !errors.Is(err, io.EOF) {
			t.Fatalf("%d events, error %v", len(got.Events), err)
		}
		s.check(t, 0, got)
		if most > 300<<10 {
			t.Errorf("%d bytes held for one slow reader", most)
		}
	})
}

// A reader that stops, or is slower than the least rate, is cut off, and sees it.
func TestTooSlowReadersAreCutOff(t *testing.T) {
	for _, tt := range []struct {
		name           string
		bytesPerSecond int
		least, most    time.Duration
	}{
		{"none", 0, 30 * time.Second, 40 * time.Second},
		// 30 s in advance, and then twice as slow as it must be.
		{"half the least rate", 4 << 10, 50 * time.Second, 70 * time.Second},
	} {
		for _, target := range []string{"/conversations/c/events?limit=1000", "/event/a"} {
			t.Run(tt.name+target, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &stock{events: 1000, bytes: 1 << 20}
					h := newHarness(t)
					h.readPage = s.page
					e := s.event(0)
					h.event = &e
					var reader io.Reader
					conn := onPipes(t, h)("GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
					reader = paced{conn, tt.bytesPerSecond}
					if tt.bytesPerSecond == 0 {
						reader = io.LimitReader(conn, 1000)
					}
					begun := time.Now()
					if _, err := io.Copy(io.Discard, reader); err != nil && !errors.Is(err, io.ErrClosedPipe) {
						t.Logf("the reader ended with %v", err)
					}
					for h.answerBytes(t) > 0 {
						after(time.Second)
					}
					if took := time.Since(begun); took < tt.least || took > tt.most {
						t.Errorf("held for %s", took)
					}
					if n := h.cut(t, "slow"); n != 1 {
						t.Errorf("%d answers were cut for slow readers", n)
					}
				})
			})
		}
	}
}

// Readers that take nothing use up the memory for answers, and no more than
// that. Others are told to come again, and writers do not notice.
func TestReadersUseNoMoreThanTheirShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const answersMax = 32 << 20
		s := &stock{events: 1000, bytes: 1 << 20}
		h := newHarness(t, func(c *api.Config) { c.AnswerBytesMax = answersMax })
		h.readPage = s.page
		h.conversations = make([]query.ConversationRow, 10_000)
		dial := onPipes(t, h)
		var answered sync.WaitGroup
		statuses := make(chan string, 300)
		for i := range 300 {
			conn := dial([]string{
				getPage, "GET /analytics/conversations?limit=10000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
			}[i%2])
			answered.Go(func() {
				head := make([]byte, len("HTTP/1.1 200 OK"))
				_, _ = io.ReadFull(conn, head)
				statuses <- string(head[9:12])
				if string(head[9:12]) == "503" {
					rest, _ := io.ReadAll(io.LimitReader(conn, 100))
					if !strings.Contains(string(rest), "Retry-After: 1") {
						t.Errorf("a 503 goes on with %q", rest)
					}
				}
			})
		}
		after(5 * time.Second) // less than AnswerWait
		if n := h.answerBytes(t); n > answersMax || n < answersMax/2 {
			t.Errorf("%d bytes held of %d", n, answersMax)
		}
		serve(h, request("POST", "/events", ofSize(1<<20)+"\n"+ofSize(1<<20))).expect(t, http.StatusAccepted, "")
		answered.Wait()
		close(statuses)
		count := map[string]int{}
		for status := range statuses {
			count[status]++
		}
		if count["200"] < 5 || count["503"] < 100 || count["200"]+count["503"] != 300 {
			t.Errorf("statuses %v", count)
		}
		if n := h.answerBytes(t); n > answersMax {
			t.Errorf("%d bytes held of %d", n, answersMax)
		}
		for h.answerBytes(t) > 0 { // until all are cut off
			after(time.Second)
		}
	})
}

// A page that has begun ends early, with a cursor to its next event, where the
// memory for the next part is not to be had, where it takes too long, where it is
// too large, and when the server stops.
func TestPagesEndEarly(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		configure    func(*api.Config)
		bytes        int
		part         func(h *harness, n int) // before each
	}{
		{name: "too large", configure: func(c *api.Config) { c.PageBytesMax = 3 << 20 }, bytes: 60 << 10},
		{name: "too long", reason: "long", bytes: 60 << 10, part: func(*harness, int) { after(10 * time.Minute) }},
		{name: "no memory", reason: "overloaded", bytes: 60 << 10, part: func(h *harness, n int) {
			if n == 3 {
				h.other()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &stock{events: 300, bytes: tt.bytes}
				h := newHarness(t, func(c *api.Config) {
					if tt.configure != nil {
						tt.configure(c)
					}
				})
				parts := 0
				h.readPage = func(ctx context.Context, q query.List) (query.Page, error) {
					page, err := s.page(ctx, q)
					if parts++; tt.part != nil {
						tt.part(h, parts)
					}
					return page, err
				}
				seen := 0
				for path := "/conversations/c/events?limit=1000"; ; {
					a := serve(h, request("GET", path, ""))
					if a.status == http.StatusServiceUnavailable { // as it may be before the first byte
						a.problem(t, http.StatusServiceUnavailable, "overloaded", "")
						continue
					}
					a.expect(t, http.StatusOK, "")
					var got conversation
					decode(t, a.body, &got)
					s.check(t, seen, got)
					if seen += len(got.Events); got.NextCursor == nil {
						break
					}
					path = "/conversations/c/events?limit=1000&cursor=" + url.QueryEscape(*got.NextCursor)
				}
				if seen != s.events {
					t.Errorf("%d of %d events on all pages", seen, s.events)
				}
				after(time.Minute) // for the others to end
				if tt.reason != "" && h.cut(t, tt.reason) == 0 {
					t.Errorf("no page ended early: %s", tt.reason)
				}
			})
		})
	}
}

// other starts a reader of an event that takes all the memory for events, and
// holds it until its query has taken the time that it may.
func (h *harness) other() {
	const bytes = api.DefaultAnswerBytesMax / 2
	h.readEvent = func(ctx context.Context, _ event.Ref, bytesMax int) (*event.Event, error) {
		if bytesMax < bytes {
			return nil, &event.LargeError{Bytes: bytes}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	go serve(h, request("GET", "/event/a", ""))
	synctest.Wait()
}

// What fails after the first byte was sent is seen to be broken, and never
// taken for an answer that is whole.
func TestBrokenAnswers(t *testing.T) {
	s := &stock{events: 100, bytes: 60 << 10}
	for _, tt := range []struct {
		name string
		fail func() error
		log  string
	}{
		{"the database fails", func() error { return errors.New("connection reset") }, "connection reset"},
		{"the handler panics", func() error { panic("BUG: planted") }, "BUG: planted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, func(c *api.Config) { c.Addr = "127.0.0.1:0" })
			h.readPage = func(ctx context.Context, q query.List) (query.Page, error) {
				if page, err := s.page(ctx, q); q.After == nil {
					return page, err
				}
				return query.Page{}, tt.fail()
			}
			response, err := http.Get("http://" + listening(t, h) + "/conversations/c/events?limit=1000")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = response.Body.Close() }()
			body, err := io.ReadAll(response.Body)
			if response.StatusCode != http.StatusOK || len(body) == 0 || err == nil {
				t.Errorf("status %d, %d bytes, error %v", response.StatusCode, len(body), err)
			}
			if json.Valid(body) {
				t.Error("what came is valid JSON")
			}
			if !strings.Contains(h.log.String(), tt.log) {
				t.Errorf("log %s", h.log)
			}
			if n := h.answerBytes(t); n != 0 {
				t.Errorf("%d bytes held", n)
			}
		})
	}
	t.Run("before the first byte", func(t *testing.T) {
		// Small parts, of which none has been sent when the third one fails.
		small := &stock{events: 10}
		h := newHarness(t)
		h.readPage = func(ctx context.Context, q query.List) (query.Page, error) {
			q.LimitEvents = 1
			if page, err := small.page(ctx, q); small.readUpTo() < 3 {
				return page, err
			}
			return query.Page{}, errors.New("gone")
		}
		h.do(t, "GET", "/conversations/c/events", "").problem(t, http.StatusServiceUnavailable, "unavailable", "")
	})
}

// The query of a client that has gone is ended.
func TestClientsThatLeaveEndTheirQueries(t *testing.T) {
	for _, target := range []string{"/conversations/c/events", "/event/a"} {
		t.Run(target, func(t *testing.T) {
			h := newHarness(t, func(c *api.Config) { c.Addr, c.QueryTimeout = "127.0.0.1:0", time.Hour })
			begun, ended := make(chan struct{}), make(chan error, 1)
			wait := func(ctx context.Context) error {
				close(begun)
				<-ctx.Done()
				ended <- ctx.Err()
				return ctx.Err()
			}
			h.readPage = func(ctx context.Context, _ query.List) (query.Page, error) { return query.Page{}, wait(ctx) }
			h.readEvent = func(ctx context.Context, _ event.Ref, _ int) (*event.Event, error) { return nil, wait(ctx) }
			conn := dial(t, listening(t, h), "GET "+target+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
			<-begun
			_ = conn.Close()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the query ended with %v", err)
			}
		})
	}
}

// An event that is larger than most is read with the memory that it takes.
func TestLargeEvents(t *testing.T) {
	h := newHarness(t)
	s := &stock{bytes: 4 << 20}
	var asked []int
	h.readEvent = func(_ context.Context, _ event.Ref, bytesMax int) (*event.Event, error) {
		if asked = append(asked, bytesMax); bytesMax < s.bytes {
			return nil, &event.LargeError{Bytes: s.bytes}
		}
		if n := h.answerBytes(t); n < bytesMax {
			t.Errorf("%d bytes held for a read of %d", n, bytesMax)
		}
		e := s.event(0)
		return &e, nil
	}
	a := serve(h, request("GET", "/event/a", ""))
	a.expect(t, http.StatusOK, "")
	if len(a.body) < s.bytes || !json.Valid([]byte(a.body)) {
		t.Errorf("%d bytes", len(a.body))
	}
	if diff := cmp.Diff([]int{128 << 10, s.bytes + s.bytes/8}, asked); diff != "" {
		t.Error(diff)
	}
	// One that grows all the time is given up.
	h.readEvent = func(_ context.Context, _ event.Ref, bytesMax int) (*event.Event, error) {
		return nil, &event.LargeError{Bytes: bytesMax + 1}
	}
	serve(h, request("GET", "/event/a", "")).problem(t, http.StatusServiceUnavailable, "unavailable", "")
	if n := h.answerBytes(t); n != 0 {
		t.Errorf("%d bytes held at the end", n)
	}
}

// The answer of a batch is all that is held while its client takes it.
func TestBatchesHoldTheirAnswersOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		body := strings.Repeat(`{"conversation_id":"c","event_name":"event_a","input":"`+strings.Repeat("x", 1000)+`"}`+"\n", 10_000)
		conn := onPipes(t, h)(fmt.Sprintf("POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		synctest.Wait() // for the answer, of which nothing is read
		if n := h.inFlight(t); n < 500_000 || n > 1_500_000 {
			t.Errorf("%v bytes held", n)
		}
		if n, err := io.Copy(io.Discard, conn); err != nil || n < 500_000 {
			t.Errorf("%d bytes, error %v", n, err)
		}
	})
}
