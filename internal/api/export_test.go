package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// TestExportLarge: an event that is too large for the stream is read on its own, and left out if it was
// deleted meanwhile.
func TestExportLarge(t *testing.T) {
	h := newHarness(t)
	h.exported = exportedEvents(3)
	large := h.exported[1].Event
	h.exported[0] = query.Exported{Event: event.Event{ID: h.exported[0].Event.ID}, Large: true}
	h.exported[1] = query.Exported{Event: event.Event{ID: large.ID}, Large: true}
	h.readEvent = func(_ context.Context, ref event.Ref, bytesMax int) (*event.Event, error) {
		switch {
		case ref.ID.String() != large.ID:
			return nil, nil
		case bytesMax < 1<<20:
			return nil, &event.LargeError{Bytes: 1 << 20}
		}
		return &large, nil
	}
	h.do(t, "GET", "/export", "").expect(t, 200, string(large.AppendJSON(nil, false))+"\n"+string(h.exported[2].Event.AppendJSON(nil, false)))
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
