package sluice_test

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
		return
	}
	os.Exit(m.Run())
}

// An item is an item of a batch, as the server sees it.
type item map[string]any

func (i item) id() string { s, _ := i["id"].(string); return s }

func (i item) op() string { s, _ := i["op"].(string); return cmp.Or(s, "create") }

// A request is a request that the fake API received.
type request struct {
	at     time.Time
	method string
	path   string
	query  string
	header http.Header
	items  []item
	text   string // the body, if it is not a batch
	status int    // the status of the answer
}

// An answer is an answer of the fake API. Nil results acknowledge every item;
// otherwise there is one result for each item.
type answer struct {
	status  int
	header  map[string]string
	body    string
	results []string
	empty   bool // whether the body is really empty
}

const acknowledged = `{"id":"x","receipt":"1.0.7"}`

// refusedItem returns the result of an item that is refused.
func refusedItem(status int, code string) string {
	return fmt.Sprintf(`{"error":{"status":%d,"code":%q,"detail":"no","field":"input"}}`, status, code)
}

// fakeAPI answers as the function answer says, with 202 by default. It serves HTTP, and is
// a transport for tests with fake time.
type fakeAPI struct {
	t      testing.TB
	answer func(n int, r request) answer // n counts requests from 0

	mu       sync.Mutex
	requests []request
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	got := request{at: time.Now(), method: r.Method, path: r.URL.EscapedPath(), query: r.URL.RawQuery, header: r.Header}
	var body io.Reader = r.Body
	if body == nil {
		body = bytes.NewReader(nil)
	}
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			a.t.Errorf("gzip: %v", err)
			return
		}
		body = z
	}
	if got.path != "/events" {
		text, err := io.ReadAll(body)
		if err != nil {
			return // the client went away
		}
		got.text, body = string(text), bytes.NewReader(nil)
	}
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		i := make(item)
		if err := json.Unmarshal(lines.Bytes(), &i); err != nil {
			a.t.Errorf("the item %.100s: %v", lines.Bytes(), err)
		}
		got.items = append(got.items, i)
	}
	if lines.Err() != nil {
		return // the client went away
	}
	a.mu.Lock()
	n := len(a.requests)
	a.requests = append(a.requests, got)
	a.mu.Unlock()

	ans := answer{status: http.StatusAccepted}
	if a.answer != nil {
		ans = a.answer(n, got)
	}
	a.mu.Lock()
	a.requests[n].status = ans.status
	a.mu.Unlock()
	if ans.body == "" && !ans.empty && (ans.status < 300 || ans.results != nil) {
		if ans.results == nil {
			for range got.items {
				ans.results = append(ans.results, acknowledged)
			}
		}
		ans.body = `{"results":[` + string(bytes.Join(toBytes(ans.results), []byte(","))) + `]}`
	}
	for name, value := range ans.header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(ans.status)
	_, _ = io.WriteString(w, ans.body)
}

func toBytes(texts []string) (b [][]byte) {
	for _, text := range texts {
		b = append(b, []byte(text))
	}
	return b
}

func (a *fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	rec := httptest.NewRecorder()
	a.ServeHTTP(rec, r)
	return rec.Result(), nil
}

func (a *fakeAPI) got() []request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

// largest returns the number of items of the largest accepted batch.
func (a *fakeAPI) largest() (n int) {
	for _, r := range a.got() {
		if r.status == http.StatusAccepted {
			n = max(n, len(r.items))
		}
	}
	return n
}

// items returns the items of all requests, in order.
func (a *fakeAPI) items() (all []item) {
	for _, r := range a.got() {
		all = append(all, r.items...)
	}
	return all
}

// errorLog collects what the error callback gets.
type errorLog struct {
	mu   sync.Mutex
	errs []sluice.WriteError
}

func (l *errorLog) add(e sluice.WriteError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, e)
}

func (l *errorLog) all() []sluice.WriteError {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.errs)
}

// open makes a client of the fake API without a network. It is closed at the end of the test.
func open(t testing.TB, api *fakeAPI, o sluice.Options) *sluice.Client {
	t.Helper()
	api.t = t
	o.HTTPClient = &http.Client{Transport: api}
	return openAny(t, o)
}

// serve makes a client of the fake API behind a real HTTP server.
func serve(t testing.TB, api *fakeAPI, o sluice.Options) *sluice.Client {
	t.Helper()
	api.t = t
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	o.URL = server.URL
	return openAny(t, o)
}

func openAny(t testing.TB, o sluice.Options) *sluice.Client {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	client, err := sluice.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { abandon(client) })
	return client
}

// abandon closes the client without a flush. The client may be closed already.
func abandon(client *sluice.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = client.Close(ctx)
}

func event(conversation string) sluice.Event {
	return sluice.Event{ConversationID: conversation, EventName: "event_a"}
}

func mustTrack(t testing.TB, client *sluice.Client, e sluice.Event) string {
	t.Helper()
	id, err := client.TrackEvent(context.Background(), e)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustFlush(t testing.TB, client *sluice.Client) {
	t.Helper()
	if err := client.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}
