package api_test

import (
	"bytes"
	"context"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
	"github.com/sluicehq/sluice/internal/record"
)

// now is what the servers under test take for the time.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// fakePorts stand for Kafka and ClickHouse: they record what the API asks of
// them, and answer what the test says.
type fakePorts struct {
	mu     sync.Mutex
	writes []event.Write // of all calls, in order
	calls  int
	asked  []any // the queries, in order

	ack     func(w *event.Write) event.Ack // nil acknowledges
	produce func(ctx context.Context)      // called first, if set
	wait    func(ctx context.Context, receipts []event.Receipt) ([]*event.Error, error)
	// uncertain: some refusals may not be known.
	uncertain bool
	marked    int64
	// histories is asked after Outcomes; nil knows what was written, and takes what
	// was not created for old.
	histories func(ctx context.Context, refs []event.Ref) (map[event.Ref]event.History, error)
	logReady  func(ctx context.Context) error
	dbReady   func(ctx context.Context) error

	event                *event.Event
	page                 query.Page // and none after it
	readEvent            func(ctx context.Context, ref event.Ref, bytesMax int) (*event.Event, error)
	readPage             func(ctx context.Context, q query.List) (query.Page, error)
	count                query.ErrorCount
	latency              []query.LatencyRow
	conversations        []query.ConversationRow
	summaries            []query.ConversationSummary
	byText, bySimilarity query.Hits
	series               []query.TimeSeriesRow
	insights             []query.InsightsRow
	funnel               []query.FunnelRow
	retention            []query.RetentionRow
	queryErr             error
	// exported are the events of an export, and after them exportErr, if it is not nil.
	exported    []query.Exported
	exportErr   error
	large       map[event.ID]*event.Event                           // what ExportedEvents reads
	largeBytes  int                                                 // that it takes
	exporting   func(ctx context.Context) error                     // called before each event, if set
	countErrors func(ctx context.Context) (query.ErrorCount, error) // answers Errors, if set
}

func (f *fakePorts) Produce(ctx context.Context, writes []event.Write) []event.Ack {
	if f.produce != nil {
		f.produce(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	acks := make([]event.Ack, len(writes))
	for i := range writes {
		if f.ack != nil {
			if acks[i] = f.ack(&writes[i]); acks[i].Err != nil {
				continue
			}
		} else {
			acks[i].Receipt = event.Receipt{Generation: 1, Partition: 3, Offset: int64(len(f.writes))}
		}
		// Through the codec, because a write aliases the body.
		var w event.Write
		if err := record.DecodeWrite(&w, record.AppendWrite(nil, &writes[i])); err != nil {
			panic(err)
		}
		f.writes = append(f.writes, w)
	}
	return acks
}

func (f *fakePorts) Wait(ctx context.Context, receipts []event.Receipt) error {
	_, _, err := f.Outcomes(ctx, f.marked, receipts)
	return err
}

func (f *fakePorts) Mark() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marked = int64(1 + len(f.writes))
	return f.marked
}

func (f *fakePorts) Outcomes(ctx context.Context, mark int64, receipts []event.Receipt) ([]*event.Error, bool, error) {
	f.ask(append([]event.Receipt(nil), receipts...))
	if mark != f.marked {
		panic("the mark is another one")
	}
	if f.wait != nil {
		refused, err := f.wait(ctx, receipts)
		return refused, !f.uncertain, err
	}
	return make([]*event.Error, len(receipts)), !f.uncertain, nil
}

func (f *fakePorts) Histories(ctx context.Context, refs []event.Ref) (map[event.Ref]event.History, error) {
	f.ask(slices.SortedFunc(slices.Values(refs), func(a, b event.Ref) int { return strings.Compare(a.String(), b.String()) }))
	if f.histories != nil {
		return f.histories(ctx, refs)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[event.Ref]event.History)
	for _, ref := range refs {
		h := event.History{Stored: true}
		for i, w := range f.writes {
			if w.Ref() == ref {
				h.Add(w.Op, event.MakePosition(1, int64(i)))
			}
		}
		if h.Created == 0 {
			h.Created = 1
		}
		all[ref] = h
	}
	return all, nil
}

func (f *fakePorts) ask(q any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, q)
}

// last is the last query asked.
func (f *fakePorts) last(tb testing.TB) any {
	tb.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		tb.Fatal("nothing was asked")
	}
	return f.asked[len(f.asked)-1]
}

func (f *fakePorts) Event(ctx context.Context, ref event.Ref, bytesMax int) (*event.Event, error) {
	f.ask(ref)
	if f.readEvent != nil {
		return f.readEvent(ctx, ref, bytesMax)
	}
	return f.event, f.queryErr
}

func (f *fakePorts) List(ctx context.Context, q query.List) (query.Page, error) {
	if f.readPage != nil {
		return f.readPage(ctx, q)
	}
	q.BytesMax = 0 // depends on what others read
	f.ask(q)
	if f.page.Next != nil && q.After != nil && *q.After == *f.page.Next {
		return query.Page{}, f.queryErr
	}
	return f.page, f.queryErr
}

func (f *fakePorts) Errors(ctx context.Context, q query.Filter) (query.ErrorCount, error) {
	f.ask(q)
	if f.countErrors != nil {
		return f.countErrors(ctx)
	}
	return f.count, f.queryErr
}

func (f *fakePorts) Latency(_ context.Context, q query.Latency) ([]query.LatencyRow, error) {
	f.ask(q)
	return f.latency, f.queryErr
}

func (f *fakePorts) Conversations(_ context.Context, q query.Conversations) ([]query.ConversationRow, error) {
	f.ask(q)
	return f.conversations, f.queryErr
}

func (f *fakePorts) SearchText(_ context.Context, q query.TextSearch) (query.Hits, error) {
	q.BytesMax = 0
	f.ask(q)
	return f.byText, f.queryErr
}

func (f *fakePorts) SearchSimilar(_ context.Context, q query.SimilarSearch) (query.Hits, error) {
	q.BytesMax = 0
	f.ask(q)
	return f.bySimilarity, f.queryErr
}

func (f *fakePorts) ConversationList(_ context.Context, q query.ConversationList) ([]query.ConversationSummary, error) {
	f.ask(q)
	return f.summaries[:min(len(f.summaries), q.LimitRows)], f.queryErr
}

func (f *fakePorts) TimeSeries(_ context.Context, q query.TimeSeries) ([]query.TimeSeriesRow, error) {
	f.ask(q)
	return f.series, f.queryErr
}

func (f *fakePorts) Insights(_ context.Context, q query.Insights) ([]query.InsightsRow, error) {
	f.ask(q)
	return f.insights, f.queryErr
}

func (f *fakePorts) Funnel(_ context.Context, q query.Funnel) ([]query.FunnelRow, error) {
	f.ask(q)
	return f.funnel, f.queryErr
}

func (f *fakePorts) Retention(_ context.Context, q query.Retention) ([]query.RetentionRow, error) {
	f.ask(q)
	return f.retention, f.queryErr
}

func (f *fakePorts) Export(ctx context.Context, q query.Export) iter.Seq2[query.Exported, error] {
	f.ask(q)
	return func(yield func(query.Exported, error) bool) {
		for _, e := range f.exported {
			if f.exporting != nil {
				if err := f.exporting(ctx); err != nil {
					yield(query.Exported{}, err)
					return
				}
			}
			if !yield(e, nil) {
				return
			}
		}
		if f.exportErr != nil {
			yield(query.Exported{}, f.exportErr)
		}
	}
}

func (f *fakePorts) ExportedEvents(_ context.Context, _ query.Filter, keys []event.ID, _ bool, bytesMax int) (events []event.Event, err error) {
	f.ask(slices.Clone(keys))
	if bytesMax < f.largeBytes {
		return nil, &event.LargeError{Bytes: f.largeBytes}
	}
	for _, key := range keys {
		if e := f.large[key]; e != nil {
			events = append(events, *e)
		}
	}
	return events, f.queryErr
}

func (f *fakePorts) Place(_ context.Context, ref event.Ref) (event.ID, bool, error) {
	if ref.Alias == "known" {
		return event.MakeID(now.UnixMicro(), 1, 1).AsInternal(), true, f.queryErr
	}
	return ref.ID, ref.Alias == "", f.queryErr
}

// fakeLog and fakeDB tell the two Ready methods apart.
type (
	fakeLog struct{ *fakePorts }
	fakeDB  struct{ *fakePorts }
)

func (f fakeLog) Ready(ctx context.Context) error {
	if f.logReady == nil {
		return nil
	}
	return f.logReady(ctx)
}

func (f fakeDB) Ready(ctx context.Context) error {
	if f.dbReady == nil {
		return nil
	}
	return f.dbReady(ctx)
}

// harness is a server over fakes, called without a network.
type harness struct {
	*fakePorts
	agents *fakeAgents
	server *api.Server
	reg    *prometheus.Registry
	log    *bytes.Buffer
}

func newHarness(tb testing.TB, configure ...func(*api.Config)) *harness {
	tb.Helper()
	return newHarnessSQL(tb, nil, configure...)
}

// newHarnessSQL is newHarness with a port for SQL, if it is not nil.
func newHarnessSQL(tb testing.TB, sql api.SQL, configure ...func(*api.Config)) *harness {
	tb.Helper()
	cfg := api.Config{Now: func() time.Time { return now }}
	for _, f := range configure {
		f(&cfg)
	}
	h := &harness{fakePorts: &fakePorts{}, agents: new(fakeAgents), reg: prometheus.NewRegistry(), log: new(bytes.Buffer)}
	server, err := api.New(cfg, api.Ports{
		Log: fakeLog{h.fakePorts}, Applied: h.fakePorts, Histories: h.fakePorts, Events: fakeDB{h.fakePorts}, Analytics: h.fakePorts, Search: h.fakePorts, Exports: h.fakePorts, SQL: sql, Agents: h.agents, Metrics: h.reg,
	}, slog.New(slog.NewJSONHandler(h.log, nil)), h.reg)
	if err != nil {
		tb.Fatal(err)
	}
	h.server = server
	return h
}

// answer is an answer, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// request makes a request; headers alternate name and value.
func request(method, target, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body == "" {
		r.Body = http.NoBody
	}
	r.Host = "127.0.0.1:8080"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

// serve sends a request as it is.
func serve(h *harness, r *http.Request) answer {
	recorder := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(recorder, r)
	return answer{status: recorder.Code, header: recorder.Result().Header, body: recorder.Body.String()}
}

// do sends a request and holds both sides to the OpenAPI document.
func (h *harness) do(tb testing.TB, method, target, body string, headers ...string) answer {
	tb.Helper()
	a := serve(h, request(method, target, body, headers...))
	// The library that reads the document knows no byte order marks.
	checkContract(tb, request(method, target, strings.TrimPrefix(body, "\ufeff"), headers...), a)
	return a
}

// expect compares status and, if it is not empty, body.
func (a answer) expect(tb testing.TB, status int, body string) {
	tb.Helper()
	if a.status != status {
		tb.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if diff := cmp.Diff(body, strings.TrimSuffix(a.body, "\n")); body != "" && diff != "" {
		tb.Errorf("body (-want +got):\n%s", diff)
	}
}

// problem checks that the answer is the problem of the code and field.
func (a answer) problem(tb testing.TB, status int, code event.Code, field string) {
	tb.Helper()
	var got struct {
		Status int        `json:"status"`
		Code   event.Code `json:"code"`
		Field  string     `json:"field"`
	}
	decode(tb, a.body, &got)
	if a.status != status || got.Status != status || got.Code != code || got.Field != field {
		tb.Errorf("got %d, want %d %s at %q: %s", a.status, status, code, field, a.body)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		tb.Errorf("Content-Type %q", ct)
	}
	again := status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
	if again != (a.header.Get("Retry-After") != "") {
		tb.Errorf("Retry-After %q with status %d", a.header.Get("Retry-After"), status)
	}
}
