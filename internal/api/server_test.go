package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/golden"
)

func TestUnknownPathsAndMethods(t *testing.T) {
	h := newHarness(t)
	for _, target := range []string{"/", "/nothing", "/event/", "/event/a/", "/event/a/b", "/analytics", "/analytics/nothing", "/conversations/c", "/Event"} {
		serve(h, request("GET", target, "")).problem(t, 404, "not_found", "")
	}
	for _, tt := range []struct{ method, target, allow string }{
		{"OPTIONS", "/event", "DELETE, GET, HEAD, PATCH, POST, PUT"},
		{"POST", "/conversation/events", "GET, HEAD"},
		{"POST", "/event/a", "DELETE, GET, HEAD, PATCH, PUT"},
		{"POST", "/event/a?x", "DELETE, GET, HEAD, PATCH, PUT"},
		{"POST", "/event/%2F", "DELETE, GET, HEAD, PATCH, PUT"},
		{"OPTIONS", "/event/a", "DELETE, GET, HEAD, PATCH, PUT"},
		{"DELETE", "/events", "GET, HEAD, POST"},
		{"DELETE", "/conversations/c/events", "GET, HEAD"},
		{"POST", "/analytics/errors", "GET, HEAD"},
		{"POST", "/healthz", "GET, HEAD"},
		{"POST", "/metrics", "GET, HEAD"},
	} {
		a := serve(h, request(tt.method, tt.target, ""))
		a.problem(t, 405, "method_not_allowed", "")
		if got := a.header.Get("Allow"); got != tt.allow {
			t.Errorf("%s %s: Allow %q, want %q", tt.method, tt.target, got, tt.allow)
		}
	}
	serve(h, request("HEAD", "/healthz", "")).expect(t, 200, "")
}

// TestProblems pins the bodies of problems.
func TestProblems(t *testing.T) {
	h := newHarness(t)
	away := newHarness(t)
	away.ack = func(*event.Write) event.Ack { return event.Ack{Err: event.ErrUnavailable} }
	away.queryErr = errors.New("away")
	_, line := makeKey(t, "k", "write")
	keyed := newHarness(t, func(c *api.Config) { c.Keys = openKeys(t, line) })
	var b strings.Builder
	for _, tt := range []struct {
		h                    *harness
		method, target, body string
		headers              []string
	}{
		{h: h, method: "POST", target: "/event", body: `{`},
		{h: h, method: "POST", target: "/event", body: `{"a":` + strings.Repeat("[", 40)},
		{h: h, method: "POST", target: "/event", body: `{"error":1,"error":2}`},
		{h: h, method: "POST", target: "/event", body: `{"q\"uote":1}`},
		{h: h, method: "POST", target: "/event", body: `{"conversation_id":1}`},
		{h: h, method: "POST", target: "/event", body: `{}`},
		{h: h, method: "POST", target: "/event", body: `{"conversation_id":"c","event_name":"event_a","latency":-1}`},
		{h: h, method: "POST", target: "/event", body: `{"conversation_id":"` + strings.Repeat("x", 257) + `","event_name":"event_a"}`},
		{h: h, method: "PUT", target: "/event/a", body: `{"conversation_id":"c"}`},
		{h: h, method: "POST", target: "/event", body: `{"id":"0197297b-e800-8000-8000-000000000000","conversation_id":"c","event_name":"event_a"}`},
		{h: h, method: "GET", target: "/event/a"},
		{h: h, method: "GET", target: "/nothing"},
		{h: h, method: "DELETE", target: "/events"},
		{h: h, method: "GET", target: "/event"},
		{h: h, method: "POST", target: "/event", body: "x", headers: []string{"Content-Type", "text/plain"}},
		{h: h, method: "POST", target: "/events", body: "x", headers: []string{"Content-Type", "text/plain"}},
		{h: h, method: "POST", target: "/event", body: "x", headers: []string{"Content-Encoding", "br"}},
		{h: h, method: "POST", target: "/event", body: "x", headers: []string{"Content-Encoding", "gzip"}},
		{h: h, method: "GET", target: "/analytics/errors?x=1"},
		{h: h, method: "GET", target: "/analytics/errors?since=x"},
		{h: away, method: "POST", target: "/event", body: small},
		{h: away, method: "GET", target: "/event/a"},
		{h: keyed, method: "GET", target: "/event/a"},
		{h: keyed, method: "GET", target: "/event/a", headers: []string{"X-API-Key", "x"}},
	} {
		a := serve(tt.h, request(tt.method, tt.target, tt.body, tt.headers...))
		b.WriteString(a.body)
	}
	golden.Compare(t, "testdata/problems.golden", []byte(b.String()))
}

func TestMetrics(t *testing.T) {
	h := newHarness(t)
	h.do(t, "POST", "/event", small).expect(t, 202, "")
	h.do(t, "POST", "/event", "{}").problem(t, 422, "required", "conversation_id")
	h.do(t, "POST", "/events", small+"\n{}\n"+`{"op":"delete","id":"a"}`).expect(t, 207, "")
	h.do(t, "GET", "/event/a", "").problem(t, 404, "unknown_event", "id")
	serve(h, request("GET", "/nothing", ""))
	a := h.do(t, "GET", "/metrics", "")
	a.expect(t, 200, "")
	var lines []string
	for line := range strings.Lines(a.body) {
		if strings.HasPrefix(line, "# HELP") || strings.HasPrefix(line, "sluice_api") && !strings.Contains(line, "_seconds_") {
			lines = append(lines, line)
		}
	}
	golden.Compare(t, "testdata/metrics.golden", []byte(strings.Join(lines, "")))
}

func TestHealthAndReadiness(t *testing.T) {
	failing := func(err error) func(context.Context) error {
		return func(context.Context) error { return fmt.Errorf("dial 10.0.0.1: %w", err) }
	}
	down := failing(errors.New("refused"))
	for _, tt := range []struct {
		name    string
		log, db func(context.Context) error
		// unready are the values of "for" that are answered 503, separated by spaces,
		// of all that there are: everything, writes, reads, traffic.
		unready string
		want    string
	}{
		{name: "ready", want: `"kafka":"ok","clickhouse":"ok","writes":"ok","reads":"ok"`},
		{
			name: "no Kafka", log: down, unready: "everything writes",
			want: `"kafka":"unavailable","clickhouse":"ok","writes":"unavailable","reads":"ok"`,
		},
		{
			name: "no ClickHouse", db: down, unready: "everything reads",
			want: `"kafka":"ok","clickhouse":"unavailable","writes":"ok","reads":"unavailable"`,
		},
		{
			name: "neither", log: down, db: down, unready: "everything writes reads traffic",
			want: `"kafka":"unavailable","clickhouse":"unavailable","writes":"unavailable","reads":"unavailable"`,
		},
		{
			name: "no tables", db: failing(event.ErrSchemaMissing), unready: "everything reads",
			want: `"kafka":"ok","clickhouse":"schema_missing","writes":"ok","reads":"unavailable"`,
		},
		{
			name: "old tables", db: failing(event.ErrSchemaOld), unready: "everything reads",
			want: `"kafka":"ok","clickhouse":"schema_old","writes":"ok","reads":"unavailable"`,
		},
		{
			name: "an old database", db: failing(event.ErrDatabaseOld), unready: "everything reads",
			want: `"kafka":"ok","clickhouse":"version_old","writes":"ok","reads":"unavailable"`,
		},
		{
			name: "an earlier generation", log: failing(event.ErrWritesStopped), unready: "everything writes traffic",
			want: `"kafka":"ok","clickhouse":"ok","writes":"stopped","reads":"ok"`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.logReady, h.dbReady = tt.log, tt.db
			for _, wanted := range []string{"everything", "writes", "reads", "traffic"} {
				target, status, summary := "/readyz?for="+wanted, 200, "ready"
				if wanted == "everything" {
					target = "/readyz"
				}
				if slices.Contains(strings.Fields(tt.unready), wanted) {
					status, summary = 503, "not_ready"
				}
				a := h.do(t, "GET", target, "")
				a.expect(t, status, `{"status":"`+summary+`",`+tt.want+`}`)
				if (a.header.Get("Retry-After") != "") != (status == 503) {
					t.Errorf("%s: Retry-After %q", wanted, a.header.Get("Retry-After"))
				}
			}
			if (tt.unready != "") != strings.Contains(h.log.String(), "10.0.0.1") {
				t.Errorf("log %s", h.log)
			}
			h.do(t, "GET", "/healthz", "").expect(t, 200, `{"status":"ok"}`)
		})
	}
	t.Run("for something else", func(t *testing.T) {
		newHarness(t).do(t, "GET", "/readyz?for=deletes", "").problem(t, 422, "invalid_value", "for")
	})
	t.Run("silent parts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHarness(t)
			silent := func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
			h.logReady, h.dbReady = silent, silent
			start := time.Now()
			h.do(t, "GET", "/readyz", "").expect(t, 503, "")
			if d := time.Since(start); d != 2*time.Second {
				t.Errorf("took %v", d)
			}
		})
	})
}

func TestPanics(t *testing.T) {
	for _, tt := range []struct {
		name   string
		value  any
		shown  string
		hidden string
	}{
		{name: "a bug", value: "BUG: position out of range", shown: "BUG: position out of range"},
		{name: "anything", value: "the user's secret", shown: "value not shown", hidden: "secret"},
		{name: "an error", value: errors.New("the user's secret"), shown: "value not shown", hidden: "secret"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			h.produce = func(context.Context) { panic(tt.value) }
			a := h.do(t, "POST", "/event", small)
			a.problem(t, 500, "internal", "")
			if log := h.log.String(); !strings.Contains(log, tt.shown) || tt.hidden != "" && strings.Contains(log, tt.hidden) {
				t.Errorf("log %s", log)
			}
			if n := h.inFlight(t); n != 0 {
				t.Errorf("%v bytes still in flight", n)
			}
			h.produce = nil
			h.do(t, "POST", "/event", small).expect(t, 202, "")
		})
	}
	t.Run("runtime error", func(t *testing.T) {
		h := newHarness(t)
		h.ack = func(*event.Write) event.Ack {
			var none []event.Ack
			return none[len(h.writes)]
		}
		h.do(t, "POST", "/event", small).problem(t, 500, "internal", "")
		if !strings.Contains(h.log.String(), "index out of range") {
			t.Errorf("log %s", h.log)
		}
	})
	t.Run("abort", func(t *testing.T) {
		h := newHarness(t)
		h.produce = func(context.Context) { panic(http.ErrAbortHandler) }
		defer func() {
			if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
				t.Errorf("recovered %v", v)
			}
			if n := h.inFlight(t); n != 0 {
				t.Errorf("%v bytes still in flight", n)
			}
		}()
		serve(h, request("POST", "/event", small))
	})
}

func TestStopFinishesRequestsAndEndsWaits(t *testing.T) {
	h := newHarness(t, func(c *api.Config) { c.Addr = "127.0.0.1:0" })
	inLog, release, waiting := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h.produce = func(context.Context) {
		close(inLog)
		<-release
	}
	h.wait = func(ctx context.Context, _ []event.Receipt) ([]*event.Error, error) {
		close(waiting)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := h.server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	base := "http://" + h.server.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.server.Run(ctx) }()
	send := func(method, target, body string) chan int {
		status := make(chan int, 1)
		go func() {
			r, err := http.NewRequestWithContext(t.Context(), method, base+target, strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Prefer", "wait=30")
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				status <- 0
				return
			}
			_ = res.Body.Close()
			status <- res.StatusCode
		}()
		return status
	}
	read := send("GET", "/event/a?after=1.1.1", "")
	<-waiting
	h.wait = func(ctx context.Context, _ []event.Receipt) ([]*event.Error, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	write := send("POST", "/event", small)
	<-inLog
	start := time.Now()
	stop()
	if status := <-read; status != http.StatusServiceUnavailable {
		t.Errorf("the waiting read got %d", status)
	}
	close(release)
	if status := <-write; status != http.StatusAccepted {
		t.Errorf("the write under way got %d", status)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if _, err := http.Get(base + "/healthz"); err == nil {
		t.Error("still listens")
	}
}

func TestStopCutsWhatTakesTooLong(t *testing.T) {
	h := newHarness(t, func(c *api.Config) { c.Addr, c.ShutdownTimeout = "127.0.0.1:0", 50*time.Millisecond })
	inLog := make(chan struct{})
	h.produce = func(ctx context.Context) {
		close(inLog)
		<-ctx.Done()
	}
	if err := h.server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.server.Run(ctx) }()
	_ = dial(t, h.server.Addr().String(), "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 47\r\n\r\n"+small)
	<-inLog
	stop()
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestRunReportsATakenPort(t *testing.T) {
	h := newHarness(t, func(c *api.Config) { c.Addr = "127.0.0.1:0" })
	addr := listening(t, h)
	other := newHarness(t, func(c *api.Config) { c.Addr = addr })
	if err := other.server.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "listen on "+addr) {
		t.Errorf("error %v", err)
	}
	if other.server.Addr() != nil {
		t.Error("has an address")
	}
}

func TestConfigNamesEveryField(t *testing.T) {
	cfg := api.Config{
		Addr: ":8080", EventNames: []string{"", "*.paid"}, EventNamesMax: -1, BodyBytesMax: 32 << 20, BatchItemsMax: -1, InFlightBytesMax: 1,
		WaitMax: time.Hour, QueryTimeout: -1,
	}
	_, err := api.New(cfg, api.Ports{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	for _, field := range []string{"Addr", "EventNames[0]", "EventNames[1]", "EventNamesMax", "BodyBytesMax", "BatchItemsMax", "InFlightBytesMax", "WriteTimeout", "QueryTimeout"} {
		if err == nil || !strings.Contains(err.Error(), field+":") {
			t.Errorf("does not name %s: %v", field, err)
		}
	}
	if err := (api.Config{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
}

func TestMetricsAreRegisteredOnce(t *testing.T) {
	h := newHarness(t)
	_, err := api.New(api.Config{}, api.Ports{Metrics: h.reg}, slog.New(slog.DiscardHandler), h.reg)
	var already prometheus.AlreadyRegisteredError
	if !errors.As(err, &already) {
		t.Errorf("error %v", err)
	}
}

// TestNoPayloadInLogs sends a secret everywhere it fits, with all that is logged shown.
func TestNoPayloadInLogs(t *testing.T) {
	var log strings.Builder
	f := &fakePorts{queryErr: errors.New("away"), ack: func(*event.Write) event.Ack { return event.Ack{Err: errors.New("broken")} }}
	reg := prometheus.NewRegistry()
	server, err := api.New(api.Config{}, api.Ports{Log: fakeLog{f}, Applied: f, Histories: f, Events: fakeDB{f}, Analytics: f, Metrics: reg},
		slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), reg)
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{fakePorts: f, server: server, reg: reg}
	for _, r := range []*http.Request{
		request("POST", "/event", `{"id":"s3cret","conversation_id":"s3cret","event_name":"event_a","input":"s3cret"}`, "X-API-Key", "s3cret"),
		request("POST", "/event", `{"s3cret":1}`, "Authorization", "Bearer s3cret"),
		request("POST", "/event?s3cret=1", small),
		request("PUT", "/event/s3cret", `{"error":"s3cret"}`),
		request("GET", "/event/s3cret", ""),
		request("GET", "/conversations/s3cret/events", ""),
		request("GET", "/analytics/errors?metadata.s3cret=s3cret", ""),
		request("GET", "/s3cret", ""),
	} {
		serve(h, r)
	}
	if n := strings.Count(log.String(), "request served"); n != 8 {
		t.Errorf("%d access lines", n)
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("a secret in the log:\n%s", log.String())
	}
}

func TestRoutesAreListed(t *testing.T) {
	if routes := api.Routes(); len(routes) != 29 || !slices.Contains(routes, "POST /events") {
		t.Errorf("routes %v", routes)
	}
}
