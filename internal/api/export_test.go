package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

func exportedEvents(n int) []query.Exported {
	latency := 1.5
	events := make([]query.Exported, n)
	for i := range events {
		events[i] = query.Exported{Event: event.Event{
			ID: event.MakeID(now.UnixMicro()+int64(i), 1, uint64(i)).String(), ConversationID: "c", EventName: "event_a", Micros: now.UnixMicro() + int64(i), Metadata: `{"n":18446744073709551617}`,
			Error: "timeout", Latency: &latency, Input: event.Content{Kind: event.KindString, Data: []byte("a\n\"b\"")}, Output: event.Content{Kind: event.KindJSON, Data: []byte(`{"a": [1]}`)},
			InputEmbeddings: event.VectorOf(0.1, -2),
		}}
	}
	return events
}

func TestExport(t *testing.T) {
	h := newHarness(t)
	h.exported = exportedEvents(3)
	var want strings.Builder
	for _, e := range h.exported {
		want.Write(append(e.Event.AppendJSON(nil, true), '\n'))
	}
	h.do(t, "GET", "/export?embeddings=true&metadata.plan=pro&until=2026-05-01T00:00:00Z&event_name=event_a", "").expect(t, 200, strings.TrimSuffix(want.String(), "\n"))
	if diff := cmp.Diff(query.Export{WithEmbeddings: true, Filter: query.Filter{
		EventNames: []string{"event_a"}, UntilMicros: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC).UnixMicro(), Metadata: []query.MetadataFilter{{Key: "plan", Value: "pro"}},
	}}, h.last(t)); diff != "" {
		t.Error(diff)
	}
	// With a limit, the trailer says how to go on.
	r := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(r, request("GET", "/export?limit=2", ""))
	if n := strings.Count(r.Body.String(), "\n"); n != 2 {
		t.Errorf("%d lines with a limit of 2", n)
	}
	if got := r.Result().Trailer.Get("Sluice-Next-Cursor"); got != h.exported[1].Event.ID {
		t.Errorf("next cursor %q, want %q", got, h.exported[1].Event.ID)
	}
	for cursor, id := range map[string]event.ID{h.exported[1].Event.ID: event.MakeID(now.UnixMicro()+1, 1, 1), "known": event.MakeID(now.UnixMicro(), 1, 1).AsInternal()} {
		h.do(t, "GET", "/export?cursor="+cursor, "").expect(t, 200, "")
		if after := h.last(t).(query.Export).After; after == nil || *after != id {
			t.Errorf("cursor %s: after %v, want %v", cursor, after, id)
		}
	}
	h.exported = nil
	h.do(t, "GET", "/export", "").expect(t, 200, "")
	serve(h, request("HEAD", "/export", "")).expect(t, 200, "")
}

func TestExportRefuses(t *testing.T) {
	h := newHarness(t)
	for target, field := range map[string]string{
		"/export?format=csv": "format", "/export?cursor=": "cursor", "/export?cursor=%00": "cursor", "/export?limit=0": "limit", "/export?embeddings=1": "embeddings",
	} {
		serve(h, request("GET", target, "")).problem(t, 422, event.CodeInvalidValue, field)
	}
	serve(h, request("GET", "/export?order=timestamp", "")).problem(t, 400, event.CodeUnknownField, "order")
	h.do(t, "GET", "/export?cursor=unknown", "").problem(t, 404, event.CodeUnknownEvent, "cursor")
	h.exportErr = event.ErrQueryTimeout
	h.do(t, "GET", "/export", "").problem(t, 422, api.CodeQueryTimeout, "")
	h.exportErr = errors.New("gone")
	h.do(t, "GET", "/export", "").problem(t, 503, api.CodeUnavailable, "")
}

// TestExportParquet reads the file with the library that writes it; the end-to-end test reads one with
// another program.
func TestExportParquet(t *testing.T) {
	type row struct {
		ID           string    `parquet:"id"`
		Timestamp    int64     `parquet:"timestamp"`
		Error        *string   `parquet:"error,optional"`
		Latency      *float64  `parquet:"latency,optional"`
		Input        *string   `parquet:"input,optional"`
		InputKind    *string   `parquet:"input_kind,optional"`
		Output       *string   `parquet:"output,optional"`
		OutputKind   *string   `parquet:"output_kind,optional"`
		Conversation string    `parquet:"conversation_id"`
		EventName    string    `parquet:"event_name"`
		Metadata     *string   `parquet:"conversation_metadata,optional"`
		InputVector  []float32 `parquet:"input_embeddings,list"`
		OutputVector []float32 `parquet:"output_embeddings,list"`
	}
	h := newHarness(t)
	h.exported = exportedEvents(5000) // of 1 KiB, so that there are several row groups
	for i := range h.exported {
		h.exported[i].Event.Input.Data = []byte(strings.Repeat("x", 1024))
	}
	h.exported[1].Event = event.Event{ID: "own id", ConversationID: "c", EventName: "event_b", Micros: now.UnixMicro()}
	r := httptest.NewRecorder()
	h.server.Handler().ServeHTTP(r, request("GET", "/export?format=parquet&embeddings=true&limit=4999", ""))
	if got := r.Result().Header.Get("Content-Type"); got != "application/vnd.apache.parquet" {
		t.Errorf("Content-Type %q", got)
	}
	file, err := parquet.OpenFile(bytes.NewReader(r.Body.Bytes()), int64(r.Body.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if next, _ := file.Lookup("sluice.next_cursor"); next != h.exported[4998].Event.ID || r.Result().Trailer.Get("Sluice-Next-Cursor") != next {
		t.Errorf("next cursor %q", next)
	}
	if n := len(file.RowGroups()); n < 2 {
		t.Errorf("%d row groups", n)
	}
	rows, err := parquet.Read[row](bytes.NewReader(r.Body.Bytes()), int64(r.Body.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 4999 {
		t.Fatalf("%d rows", len(rows))
	}
	input, output := strings.Repeat("x", 1024), `{"a": [1]}`
	first := &h.exported[0].Event
	want := []row{
		{
			ID: first.ID, Timestamp: first.Micros, Error: &first.Error, Latency: first.Latency, Input: &input, InputKind: new("string"), Output: &output, OutputKind: new("json"),
			Conversation: "c", EventName: "event_a", Metadata: &first.Metadata, InputVector: []float32{0.1, -2}, OutputVector: []float32{},
		},
		{ID: "own id", Timestamp: now.UnixMicro(), Conversation: "c", EventName: "event_b", InputVector: []float32{}, OutputVector: []float32{}},
	}
	if diff := cmp.Diff(want, rows[:2]); diff != "" {
		t.Error(diff)
	}
	// Nothing at all is a file too.
	h.exported = nil
	r = httptest.NewRecorder()
	h.server.Handler().ServeHTTP(r, request("GET", "/export?format=parquet", ""))
	if rows, err := parquet.Read[row](bytes.NewReader(r.Body.Bytes()), int64(r.Body.Len())); err != nil || len(rows) != 0 {
		t.Errorf("%d rows, error %v", len(rows), err)
	}
}

// TestExportParquetBounds: a file ends when it has as many row groups as it may, within its memory.
func TestExportParquetBounds(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes 256 MiB")
	}
	h := newHarness(t)
	h.exported = exportedEvents(50_000)
	text := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	for i := range h.exported {
		h.exported[i].Event.Input.Data = text
	}
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before, most, events := heap(), 0, 0
	h.exporting = func(context.Context) error {
		if events++; events%2000 == 0 {
			most = max(most, heap()-before)
		}
		return nil
	}
	w := &measured{header: make(http.Header)}
	h.server.Handler().ServeHTTP(w, request("GET", "/export?format=parquet", ""))
	next := w.header.Get("Sluice-Next-Cursor")
	if events < 16_000 || events > 17_500 || next != h.exported[events-1].Event.ID {
		t.Errorf("the file ends after %d events, and goes on with %q", events, next)
	}
	if w.bytes > 64<<20 {
		t.Errorf("a file of texts that repeat has %d bytes", w.bytes)
	}
	if most > 8<<20 {
		t.Errorf("a file of %d bytes took %d bytes of memory", w.bytes, most)
	}
}

// measured is an answer that nobody keeps.
type measured struct {
	header http.Header
	bytes  int
}

func (m *measured) Header() http.Header         { return m.header }
func (m *measured) WriteHeader(int)             {}
func (m *measured) Write(b []byte) (int, error) { m.bytes += len(b); return len(b), nil }

// TestExportLarge: events that are too large for the stream are read some at a time, while those after
// them wait. One that was deleted meanwhile is left out.
func TestExportLarge(t *testing.T) {
	h := newHarness(t)
	h.exported = exportedEvents(1000)
	h.large, h.largeBytes = make(map[event.ID]*event.Event), 3<<20
	var want strings.Builder
	for i := range h.exported {
		e := &h.exported[i]
		e.Key = event.MakeID(now.UnixMicro()+int64(i), 1, uint64(i))
		text := append(e.Event.AppendJSON(nil, true), '\n')
		if i%3 == 1 && i > 100 && i < 900 {
			full := e.Event
			h.large[e.Key] = &full
			e.Event, e.LargeBytes = event.Event{ID: full.ID}, 100<<10
		}
		if i == 202 {
			delete(h.large, e.Key)
			continue
		}
		want.Write(text)
	}
	h.do(t, "GET", "/export?embeddings=true", "").expect(t, 200, strings.TrimSuffix(want.String(), "\n"))
	reads := 0
	for _, q := range h.asked {
		if keys, ok := q.([]event.ID); ok {
			reads++
			if len(keys)*100<<10 > 1<<20 {
				t.Errorf("%d large events at once", len(keys))
			}
		}
	}
	if reads < 20 || reads > 2*40 {
		t.Errorf("%d reads of large events", reads)
	}
	if n := int(h.metric(t, "sluice_api_answer_bytes").GetGauge().GetValue()); n != 0 {
		t.Errorf("%d bytes are held at the end", n)
	}
	h.queryErr = event.ErrQueryTimeout
	func() {
		defer func() { _ = recover() }() // the answer is broken off
		h.server.Handler().ServeHTTP(httptest.NewRecorder(), request("GET", "/export", ""))
	}()
	if n := counted(t, h, "sluice_api_answers_cut_total"); n != 1 {
		t.Errorf("%v answers were cut", n)
	}
}

// TestExportBreaksOff: after the first piece, an error breaks the answer off, and so does a stop.
func TestExportBreaksOff(t *testing.T) {
	h := newHarness(t)
	h.exported, h.exportErr = exportedEvents(1000), errors.New("gone")
	server := httptest.NewServer(h.server.Handler())
	defer server.Close()
	get := func() (string, error) {
		resp, err := http.Get(server.URL + "/export")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if text, err := get(); err == nil || !strings.HasPrefix(text, `{"id"`) {
		t.Errorf("%d bytes, error %v", len(text), err)
	}
	if n := counted(t, h, "sluice_api_answers_cut_total"); n != 1 {
		t.Errorf("%v answers were cut", n)
	}
}

func TestExportStops(t *testing.T) {
	h := newHarness(t, func(cfg *api.Config) { cfg.Addr = "127.0.0.1:0" })
	h.exported = exportedEvents(10)
	begun := make(chan struct{})
	h.exporting = func(ctx context.Context) error {
		select {
		case begun <- struct{}{}:
		default:
		}
		<-ctx.Done() // as a query that finds nothing for long
		return ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if err := h.server.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- h.server.Run(ctx) }()
	answered := make(chan error)
	go func() {
		resp, err := http.Get(fmt.Sprintf("http://%s/export", h.server.Addr()))
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != 503 {
				err = errors.New(resp.Status)
			}
		}
		answered <- err
	}()
	<-begun
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// TestExportStall: a reader that takes nothing for AnswerStallTimeout is cut off, however much the system has taken
// for it, so that it does not keep others from exports.
func TestExportStall(t *testing.T) {
	h := newHarness(t, func(cfg *api.Config) { cfg.AnswerStallTimeout = 100 * time.Millisecond })
	h.exported = exportedEvents(20_000)
	for i := range h.exported {
		h.exported[i].Event.Input.Data = bytes.Repeat([]byte("x"), 4<<10)
	}
	server := httptest.NewServer(h.server.Handler())
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /export HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); counted(t, h, "sluice_api_answers_cut_total") == 0; {
		if time.Since(begun) > 20*time.Second {
			t.Fatal("a reader that takes nothing is not cut off")
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestExportStopsSlowReader: a reader that takes nothing does not hold up a stop.
func TestExportStopsSlowReader(t *testing.T) {
	h := newHarness(t, func(cfg *api.Config) { cfg.Addr = "127.0.0.1:0" })
	h.exported = exportedEvents(20_000)
	for i := range h.exported {
		h.exported[i].Event.Input.Data = bytes.Repeat([]byte("x"), 4<<10)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	if err := h.server.Listen(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- h.server.Run(ctx) }()
	conn, err := net.Dial("tcp", h.server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /export HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1<<10)); err != nil { // it has begun
		t.Fatal(err)
	}
	begun := time.Now()
	stop()
	if err := <-ended; err != nil || time.Since(begun) > api.DefaultShutdownTimeout/2 {
		t.Errorf("stopped in %s, error %v", time.Since(begun), err)
	}
	if n := counted(t, h, "sluice_api_answers_cut_total"); n == 0 {
		t.Error("no answer was cut")
	}
}

// TestExportBounds: two exports are sent at a time, and each holds its memory.
func TestExportBounds(t *testing.T) {
	h := newHarness(t, func(cfg *api.Config) { cfg.AnswerWait = 10 * time.Millisecond })
	h.exported = exportedEvents(1)
	held, release := make(chan struct{}), make(chan struct{})
	h.exporting = func(context.Context) error {
		held <- struct{}{}
		<-release
		return nil
	}
	ended := make(chan answer)
	for range query.ExportsMax {
		go func() { ended <- serve(h, request("GET", "/export", "")) }()
		<-held
	}
	if n := int(h.metric(t, "sluice_api_answer_bytes").GetGauge().GetValue()); n < query.ExportsMax*query.ExportBytes {
		t.Errorf("%v bytes are held", n)
	}
	h.do(t, "GET", "/export", "").problem(t, 429, api.CodeTooManyQueries, "")
	close(release)
	for range query.ExportsMax {
		(<-ended).expect(t, 200, "")
	}
	if n := int(h.metric(t, "sluice_api_answer_bytes").GetGauge().GetValue()); n != 0 {
		t.Errorf("%v bytes are held at the end", n)
	}
}
