package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// fakeAgents answers messages of agents. The zero value repeats the message.
type fakeAgents struct {
	serve func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper)
}

func (f *fakeAgents) ServeAgent(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
	if f.serve != nil {
		f.serve(w, r, rt)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.Copy(w, r.Body)
}

// ask makes a call of the API as the tools do, and returns its answer.
func ask(ctx context.Context, rt http.RoundTripper, method, target, body string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://sluice"+target, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{Transport: rt}).Do(r)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

const rpc = `{"jsonrpc":"2.0","id":1,"method":"ping"}`

var agentHeaders = []string{"Content-Type", "application/json", "Accept", "application/json, text/event-stream"}

// A call of an agent reaches the API with the agent's key, host and request id.
func TestAgentCallsTheAPI(t *testing.T) {
	reader, readLine := makeKey(t, "reader", "read")
	writer, writeLine := makeKey(t, "writer", "write")
	h := newHarness(t, func(c *api.Config) { c.Keys = openKeys(t, readLine, writeLine) })
	h.event = &event.Event{ID: "a", ConversationID: "c", EventName: "event_a"}
	type outcome struct {
		status int
		id     string
		body   string
		err    error
	}
	var got outcome
	calls := 0
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		calls++
		resp, text, err := ask(r.Context(), rt, "GET", "/event?id=a", "")
		if got = (outcome{body: text, err: err}); err == nil {
			got.status, got.id = resp.StatusCode, resp.Header.Get("X-Request-Id")
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, rpc)
	}
	send := func(headers ...string) answer {
		return h.do(t, "POST", "/mcp", rpc, append(headers, agentHeaders...)...)
	}
	for _, key := range [][]string{{"Authorization", "Bearer " + reader}, {"X-API-Key", reader}} {
		a := send(append(key, "X-Request-Id", "from-agent")...)
		a.expect(t, 200, rpc)
		if got.err != nil || got.status != 200 || !strings.HasPrefix(got.body, `{"id":"a"`) || got.id != "from-agent" {
			t.Errorf("%s: the call was answered %+v", key[0], got)
		}
		if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Mcp-Session-Id") != "" {
			t.Errorf("headers %v", a.header)
		}
	}
	calls = 0
	send().problem(t, 401, "unauthorized", "")
	send("Authorization", "Bearer "+writer).problem(t, 403, "forbidden", "")
	send("Authorization", "Bearer no").problem(t, 401, "unauthorized", "")
	if calls != 0 {
		t.Errorf("%d messages without a key that reads were answered", calls)
	}
	// The key that reads writes nothing, whatever is asked for.
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		resp, text, err := ask(r.Context(), rt, "POST", "/event", small)
		if err != nil || resp.StatusCode != 403 || h.calls != 0 {
			t.Errorf("a write was answered %s, %v", text, err)
		}
		if _, _, err := ask(r.Context(), rt, "POST", "/mcp", rpc); err == nil {
			t.Error("an agent's call can be another one")
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, rpc)
	}
	send("Authorization", "Bearer "+reader)
}

func TestAgentRequests(t *testing.T) {
	h := newHarness(t)
	for _, tt := range []struct {
		name    string
		body    string
		headers []string
		status  int
		code    event.Code
	}{
		{"no type", rpc, nil, 415, "unsupported_media_type"},
		{"another type", rpc, []string{"Content-Type", "text/plain"}, 415, "unsupported_media_type"},
		{"compressed", rpc, append([]string{"Content-Encoding", "gzip"}, agentHeaders...), 415, "unsupported_encoding"},
		{"not UTF-8", "{\"a\":\"\xff\"}", agentHeaders, 400, "invalid_json"},
		{"too long", strings.Repeat(" ", 128<<10) + rpc, agentHeaders, 413, "too_large"},
	} {
		h.do(t, "POST", "/mcp", tt.body, tt.headers...).problem(t, tt.status, tt.code, "")
		if tt.code == "too_large" { // by chunks
			r := request("POST", "/mcp", tt.body, tt.headers...)
			r.ContentLength = -1
			serve(h, r).problem(t, tt.status, tt.code, "")
		}
	}
	longest := `{"a":"` + strings.Repeat("x", 128<<10-8) + `"}`
	serve(h, request("POST", "/mcp", longest, agentHeaders...)).expect(t, 200, longest)
	// There are no streams and no sessions.
	for _, method := range []string{"GET", "DELETE", "PUT"} {
		a := serve(h, request(method, "/mcp", ""))
		if a.problem(t, 405, "method_not_allowed", ""); a.header.Get("Allow") != "POST" {
			t.Errorf("%s: Allow is %q", method, a.header.Get("Allow"))
		}
	}
	// What the protocol's handler answers without a message becomes a problem.
	h.agents.serve = func(w http.ResponseWriter, _ *http.Request, _ http.RoundTripper) {
		http.Error(w, "Accept must contain both", http.StatusBadRequest)
	}
	a := h.do(t, "POST", "/mcp", rpc, agentHeaders...)
	if a.problem(t, 400, "invalid_request", ""); !strings.Contains(a.body, "Accept must contain both") {
		t.Errorf("answered %s", a.body)
	}
	h.agents.serve = func(http.ResponseWriter, *http.Request, http.RoundTripper) {}
	h.do(t, "POST", "/mcp", rpc, agentHeaders...).problem(t, 400, "invalid_request", "")
	h.agents.serve = func(w http.ResponseWriter, _ *http.Request, _ http.RoundTripper) { w.WriteHeader(http.StatusAccepted) }
	h.do(t, "POST", "/mcp", rpc, agentHeaders...).expect(t, 202, "")
	h.agents.serve = func(w http.ResponseWriter, _ *http.Request, _ http.RoundTripper) {
		w.Header().Set("Content-Type", "application/json")
		for range 2 {
			_, _ = io.WriteString(w, strings.Repeat("x", 600<<10))
		}
	}
	h.do(t, "POST", "/mcp", rpc, agentHeaders...).problem(t, 500, "internal", "")
}

// Pages may not use a server that they have no business with, as the protocol demands.
func TestAgentOrigins(t *testing.T) {
	key, line := makeKey(t, "reader", "read")
	withKeys := func(c *api.Config) { c.Addr, c.Keys, c.CORSOrigins = ":8080", openKeys(t, line), []string{appOrigin} }
	insecure := func(c *api.Config) { c.Addr, c.Insecure = ":8080", true }
	anyOrigin := func(c *api.Config) { c.Keys, c.CORSOrigins = openKeys(t, line), []string{"*"} }
	for _, tt := range []struct {
		name         string
		configure    func(*api.Config)
		host, origin string
		allowed      bool
	}{
		{"no page", withKeys, "sluice.example", "", true},
		{"an allowed page", withKeys, "sluice.example", appOrigin, true},
		{"its own page", withKeys, "sluice.example", "https://sluice.example", true},
		{"another page", withKeys, "sluice.example", "https://evil.example", false},
		{"a sandbox", withKeys, "sluice.example", "null", false},
		{"any page", anyOrigin, "sluice.example", "https://whoever.example", true},
		{"no page, no keys", insecure, "sluice.example", "", true},
		{"a rebound name, no keys", insecure, "evil.example", "http://evil.example", false},
		{"its own page, no keys, this machine", insecure, "127.0.0.1:8080", "http://127.0.0.1:8080", true},
		{"its own page, loopback", func(*api.Config) {}, "localhost:8080", "http://localhost:8080", true},
		{"another page, loopback", func(*api.Config) {}, "localhost:8080", "http://localhost:9090", false},
		{"a rebound name, loopback", func(*api.Config) {}, "evil.example:8080", "http://evil.example:8080", false},
	} {
		h := newHarness(t, tt.configure)
		r := request("POST", "/mcp", rpc, append([]string{"X-API-Key", key}, agentHeaders...)...)
		r.Host = tt.host
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		if a := serve(h, r); (a.status == 200) != tt.allowed || !tt.allowed && a.status != 403 {
			t.Errorf("%s: answered %d %s", tt.name, a.status, a.body)
		}
	}
}

// Only so many messages are answered at once. Others wait, and are turned away in time. The
// calls that the messages make wait for nothing that the messages hold.
func TestAgentsAreBounded(t *testing.T) {
	h := newHarness(t, func(c *api.Config) {
		c.AnswerWait = 50 * time.Millisecond
		c.InFlightBytesMax = 200 << 20
		c.AnswerBytesMax = api.AnswerBytesLeast
	})
	h.insights = []query.InsightsRow{{Groups: []string{`"x"`, "null"}, Measures: []query.Number{{Digits: "1"}, {Digits: "0"}}}}
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		arrived <- struct{}{}
		<-release
		_, text, err := ask(r.Context(), rt, "GET", "/analytics/insights?measure=events&measure=errors&interval=1h&limit=10000&group_by=metadata.a&group_by=metadata.b", "")
		if err != nil || !strings.HasPrefix(text, `{"rows":[{`) {
			t.Errorf("a call that takes all the memory of rows was answered %s, %v", text, err)
		}
		_, _ = io.WriteString(w, "{}")
	}
	send := func() answer { return serve(h, request("POST", "/mcp", rpc, agentHeaders...)) }
	answers := make(chan answer, api.AgentCallsMax)
	for range api.AgentCallsMax {
		go func() { answers <- send() }()
	}
	for range api.AgentCallsMax {
		<-arrived
	}
	a := send()
	if a.problem(t, 429, "too_many_queries", ""); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// One at a time, because each needs all the memory of rows.
	for range api.AgentCallsMax {
		release <- struct{}{}
		(<-answers).expect(t, 200, "{}")
	}
	if held := answerBytes(t, h); held != 0 {
		t.Errorf("%v bytes are held", held)
	}
}

func answerBytes(t *testing.T, h *harness) float64 {
	t.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "sluice_api_answer_bytes" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("no gauge")
	return 0
}

// An answer arrives by the piece, so that a long one takes no more memory than a short one, and
// one of which enough was read ends there.
func TestAgentReadsByThePiece(t *testing.T) {
	h := newHarness(t)
	long := event.Event{ID: "a", ConversationID: "c", EventName: "event_a", Input: event.Content{Kind: event.KindString, Data: []byte(strings.Repeat("x", 100_000))}}
	var parts atomic.Int64
	h.readPage = func(_ context.Context, q query.List) (query.Page, error) {
		parts.Add(1)
		return query.Page{Events: []event.Event{long}, Next: new(event.ID), Bytes: 100_000}, nil
	}
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		resp, err := rt.RoundTrip(innerRequest(r.Context(), "/conversation/events?id=c&limit=1000"))
		if err != nil {
			t.Error(err)
			return
		}
		begin := make([]byte, 1000)
		if _, err := io.ReadFull(resp.Body, begin); err != nil || !strings.HasPrefix(string(begin), `{"events":[{"id":"a"`) {
			t.Errorf("read %.50q, %v", begin, err)
		}
		_ = resp.Body.Close()
		_, _ = io.WriteString(w, "{}")
	}
	serve(h, request("POST", "/mcp", rpc, agentHeaders...)).expect(t, 200, "{}")
	if n := parts.Load(); n > 2 {
		t.Errorf("%d parts were read for 1000 bytes", n)
	}
	if n := h.cut(t, "enough"); n != 1 {
		t.Errorf("%v answers are counted as read enough of", n)
	}
	if held := answerBytes(t, h); held != 0 {
		t.Errorf("%v bytes are held", held)
	}
}

// An answer that the API breaks off is no whole answer, and a panic is none either.
func TestAgentAnswersBrokenOff(t *testing.T) {
	h := newHarness(t)
	long := event.Event{ID: "a", Input: event.Content{Kind: event.KindString, Data: []byte(strings.Repeat("x", 100_000))}}
	calls := 0
	h.readPage = func(context.Context, query.List) (query.Page, error) {
		if calls++; calls > 1 {
			return query.Page{}, errors.New("the disk is gone")
		}
		return query.Page{Events: []event.Event{long}, Next: new(event.ID), Bytes: 100_000}, nil
	}
	h.readEvent = func(context.Context, event.Ref, int) (*event.Event, error) { panic("BUG: test") }
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		if _, text, err := ask(r.Context(), rt, "GET", "/conversation/events?id=c&limit=1000", ""); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("half an answer ends with %v after %d bytes", err, len(text))
		}
		if resp, text, err := ask(r.Context(), rt, "GET", "/event?id=a", ""); err != nil || resp.StatusCode != 500 || !strings.Contains(text, `"code":"internal"`) {
			t.Errorf("a panic is answered %s, %v", text, err)
		}
		_, _ = io.WriteString(w, "{}")
	}
	serve(h, request("POST", "/mcp", rpc, agentHeaders...)).expect(t, 200, "{}")
}

// An agent that goes ends what it has asked for.
func TestAgentGone(t *testing.T) {
	h := newHarness(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	h.countErrors = func(ctx context.Context) (query.ErrorCount, error) {
		cancel()
		select {
		case <-ctx.Done():
			ended <- nil
		case <-time.After(10 * time.Second):
			ended <- errors.New("the query went on")
		}
		return query.ErrorCount{}, ctx.Err()
	}
	h.agents.serve = func(_ http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		if _, _, err := ask(r.Context(), rt, "GET", "/analytics/errors", ""); !errors.Is(err, context.Canceled) {
			t.Errorf("the call ended with %v", err)
		}
	}
	serve(h, request("POST", "/mcp", rpc, agentHeaders...).WithContext(ctx))
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if log := h.log.String(); strings.Contains(log, "error") {
		t.Errorf("logged %s", log)
	}
}

func innerRequest(ctx context.Context, target string) *http.Request {
	r, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://sluice%s", target), http.NoBody)
	if err != nil {
		panic(err)
	}
	return r
}

// An answer that took long is sent all the same, and its reader gets the time that all readers
// get.
func TestAgentAnswerThatTookLong(t *testing.T) {
	h := newHarness(t, func(c *api.Config) {
		c.ReadTimeout, c.InflateTimeout, c.WaitMax = 50*time.Millisecond, time.Millisecond, time.Millisecond
		c.AnalyticsWait, c.AnswerWait, c.QueryTimeout = time.Millisecond, time.Millisecond, time.Millisecond
		c.Addr, c.WriteTimeout = "127.0.0.1:0", 100*time.Millisecond
	})
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, _ http.RoundTripper) {
		select {
		case <-r.Context().Done():
		case <-time.After(300 * time.Millisecond):
		}
		_, _ = io.WriteString(w, rpc)
	}
	resp, err := http.Post("http://"+listening(t, h)+"/mcp", "application/json", strings.NewReader(rpc))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != rpc {
		t.Errorf("answered %d %s, %v", resp.StatusCode, text, err)
	}
}

// A stop waits for the message that is being answered, and for the calls that it makes.
func TestAgentIsAnsweredAtStop(t *testing.T) {
	h := newHarness(t, func(c *api.Config) { c.Addr = "127.0.0.1:0" })
	h.event = &event.Event{ID: "a", ConversationID: "c", EventName: "event_a"}
	if err := h.server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.server.Run(ctx) }()
	h.agents.serve = func(w http.ResponseWriter, r *http.Request, rt http.RoundTripper) {
		stop()
		// The server takes no more connections once the stop has begun.
		for dialled := error(nil); dialled == nil; {
			var conn net.Conn
			if conn, dialled = new(net.Dialer).DialContext(r.Context(), "tcp", h.server.Addr().String()); dialled == nil {
				_ = conn.Close()
			}
		}
		if _, text, err := ask(r.Context(), rt, "GET", "/event?id=a", ""); err != nil || !strings.HasPrefix(text, `{"id":"a"`) {
			t.Errorf("a call during the stop was answered %s, %v", text, err)
		}
		_, _ = io.WriteString(w, rpc)
	}
	resp, err := http.Post("http://"+h.server.Addr().String()+"/mcp", "application/json", strings.NewReader(rpc))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != rpc {
		t.Errorf("answered %d %s, %v", resp.StatusCode, text, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
