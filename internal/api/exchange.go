package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

// outBytesKept is the largest answer whose memory is kept for the next one.
const outBytesKept = 64 << 10

// Header values that every answer of a kind shares; net/http only reads them.
//
//nolint:gochecknoglobals // never written
var (
	headerJSON    = []string{typeJSON}
	headerProblem = []string{typeProblem}
	headerNoStore = []string{"no-store"}
	headerNosniff = []string{"nosniff"}
	headerClose   = []string{"close"}
)

// exchange is one request and its answer. It is pooled: nothing of it may be
// used after the handler returned.
type exchange struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	status int
	out    []byte
	// sent is how many bytes of the answer went out by the piece, and sending how
	// long that took.
	sent    int
	sending time.Duration
	// steady says that the reader may take nothing for no longer than AnswerStallTimeout,
	// however much it took before.
	steady bool
	// body is the memory of the request's body, nil where there is none.
	body *body.Buffer
	// held is what x holds of the budget besides body.
	held [body.Uses]int64
	// contentType is that of an answer that is not JSON.
	contentType []string
	// batch has the lists of a POST /events, otherwise nil.
	batch *batch
	// bodyEnded says that there is no more of the request's body to read: its end
	// was reached, or reading it failed.
	bodyEnded bool
	// drains says that the rest of the body is read after the answer.
	drains  bool
	write   [1]event.Write
	receipt [1]event.Receipt
}

// reserve takes n bytes of the use's share until the end of the request.
func (x *exchange) reserve(u body.Use, n int64) bool {
	if !x.s.budget[u].Take(n) {
		return false
	}
	x.held[u] += n
	return true
}

// releaseBody gives the memory of the request's body back. Nothing that aliases the
// body may be used afterwards.
func (x *exchange) releaseBody() {
	x.s.bodies.Release(x.body)
	x.body = nil
}

// head sets the headers that all answers have.
func (x *exchange) head(status int, contentType []string) {
	h := x.w.Header()
	h["Content-Type"] = contentType
	h["Cache-Control"] = headerNoStore
	h["X-Content-Type-Options"] = headerNosniff
	x.status = status
}

// reply sends x.out as the body of the answer.
func (x *exchange) reply(status int, contentType []string) {
	x.head(status, contentType)
	if x.drains = x.willDrain(); x.drains {
		x.w.Header()["Connection"] = headerClose
	}
	// net/http sets the length of small answers by itself, unless they are flushed.
	if len(x.out) >= 2<<10 || x.drains {
		x.w.Header()["Content-Length"] = []string{strconv.Itoa(len(x.out))}
	}
	x.w.WriteHeader(status)
	_, _ = x.w.Write(x.out) // the client is gone; there is nobody to tell
}

// endpoint serves one route.
type endpoint struct {
	s       *Server
	route   *route
	metrics *routeMetrics
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	s := e.s
	x := s.exchanges.Get().(*exchange)
	x.s, x.w, x.r = s, w, r
	ctx := r.Context()
	defer e.finish(ctx, x, start)
	defer e.recover(ctx, x)
	if err := e.serve(x); err != nil {
		if x.status != 0 {
			e.breakOff(ctx, x, err)
		}
		e.fail(ctx, x, err)
	}
}

func (e *endpoint) serve(x *exchange) error {
	if e.s.local {
		if err := e.s.checkLocal(x.r); err != nil {
			return err
		}
	}
	if err := e.s.authorize(x, e.route.scopes); err != nil {
		return err
	}
	return e.route.handle(e.s, x)
}

// fail answers with a problem.
func (e *endpoint) fail(ctx context.Context, x *exchange, err error) {
	p := asProblem(err)
	h := x.w.Header()
	switch p.status {
	case http.StatusServiceUnavailable:
		h["Retry-After"] = e.s.retryAfter
	case http.StatusTooManyRequests:
		h["Retry-After"] = e.s.retryQuestion
	}
	if p.closes {
		h["Connection"] = headerClose
	}
	x.out = appendProblem(x.out[:0], p)
	x.reply(p.status, headerProblem)
	if e.route.writes {
		e.s.metrics.refuse(p.code)
	}
	// Only faults of the server have a cause. A caller that has gone away makes
	// errors of its own, which are not logged.
	if p.cause != nil && ctx.Err() == nil {
		x.log().LogAttrs(ctx, slog.LevelError, "request failed",
			slog.String("route", e.route.name()), slog.String("code", string(p.code)), slog.Any("error", p.cause))
	}
}

// breakOff ends the connection of an answer that has begun and cannot be
// finished. The reader sees it: the JSON is not complete, and the last chunk is
// missing.
func (e *endpoint) breakOff(ctx context.Context, x *exchange, err error) {
	if !errors.Is(err, errGone) && ctx.Err() == nil {
		e.s.metrics.cut.WithLabelValues("failed").Inc()
		x.log().LogAttrs(ctx, slog.LevelError, "answer broken off",
			slog.String("route", e.route.name()), slog.Any("error", errors.Join(err, errors.Unwrap(err))))
	}
	panic(http.ErrAbortHandler)
}

// recover answers a panic of the handler; it must be deferred. The value of the
// panic is logged only if it cannot contain a payload.
func (e *endpoint) recover(ctx context.Context, x *exchange) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
		panic(v)
	}
	reason := "value not shown"
	switch v := v.(type) {
	case runtime.Error:
		reason = v.Error()
	case string:
		if strings.HasPrefix(v, "BUG: ") {
			reason = v
		}
	}
	x.log().LogAttrs(ctx, slog.LevelError, "handler panicked",
		slog.String("route", e.route.name()), slog.String("reason", reason), slog.String("stack", string(debug.Stack())))
	if x.status != 0 {
		panic(http.ErrAbortHandler) // or what was sent so far would look like all
	}
	x.out = appendProblem(x.out[:0], asProblem(errPanic))
	x.reply(http.StatusInternalServerError, headerProblem)
}

// errPanic is what a panic is answered with.
var errPanic = &problem{
	status: http.StatusInternalServerError, code: CodeInternal, detail: "the server failed; its log says more",
}

// finish counts the request, gives back what x holds, and drains the request's
// body where that is due.
func (e *endpoint) finish(ctx context.Context, x *exchange, start time.Time) {
	s := e.s
	elapsed := time.Since(start)
	if x.status != 0 {
		e.metrics.observe(x.status, elapsed.Seconds())
	}
	if s.debug {
		x.log().LogAttrs(ctx, slog.LevelDebug, "request served",
			slog.String("route", e.route.name()), slog.Int("status", x.status), slog.Duration("elapsed", elapsed))
	}
	x.releaseBody()
	for u := range body.Use(body.Uses) {
		x.keep(u, 0)
	}
	if x.batch != nil {
		x.batch.reset()
		s.batches.Put(x.batch)
	}
	w, r, drains, idle := x.w, x.r, x.drains, s.cfg.DrainIdleTimeout
	if x.expectsContinue() {
		idle = min(idle, expectedWait)
	}
	out := x.out[:0]
	if cap(out) > outBytesKept {
		out = nil
	}
	*x = exchange{out: out}
	s.exchanges.Put(x)
	if drains {
		s.drain(w, r, idle)
	}
}
