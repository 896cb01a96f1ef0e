package api_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
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

// questions is a database that works on each question until it is told to answer.
type questions struct {
	*harness
	answer chan error

	mu          sync.Mutex
	begun       int
	running     int
	runningMost int
}

// newQuestions must be called within a bubble of synctest.
func newQuestions(t *testing.T, queriesMax, queueMax int) *questions {
	t.Helper()
	q := &questions{answer: make(chan error)}
	q.harness = newHarness(t, func(c *api.Config) {
		c.AnalyticsQueriesMax, c.AnalyticsQueueMax, c.AnalyticsWait = queriesMax, queueMax, 7*time.Second
	})
	q.countErrors = func(ctx context.Context) (query.ErrorCount, error) {
		q.count(1)
		defer q.count(-1)
		select {
		case err := <-q.answer:
			return query.ErrorCount{}, err
		case <-ctx.Done():
			return query.ErrorCount{}, ctx.Err()
		}
	}
	return q
}

func (q *questions) count(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running += n
	q.begun += max(0, n)
	q.runningMost = max(q.runningMost, q.running)
}

// ask asks a question; the answer comes later.
func (q *questions) ask(ctx context.Context) <-chan answer { return q.askOf(ctx, "any") }

func (q *questions) askOf(ctx context.Context, conversation string) <-chan answer {
	answered := make(chan answer, 1)
	r := request("GET", "/analytics/errors?conversation_id="+conversation, "").WithContext(ctx)
	go func() { answered <- serve(q.harness, r) }()
	synctest.Wait()
	return answered
}

// metrics compares what the server counts.
func (q *questions) metrics(t *testing.T, running, queued, full, waited float64) {
	t.Helper()
	families, err := q.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		name, ok := strings.CutPrefix(f.GetName(), "sluice_api_analytics_")
		if !ok {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				name = "rejected_total " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"running": running, "queued": queued, "rejected_total queue_full": full, "rejected_total waited_long": waited,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// A bounded number of questions runs, a bounded number waits in order, and all
// others are told so at once. Nothing else waits for them.
func TestQuestionsAreAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuestions(t, 2, 3)
		var admitted []<-chan answer
		for i := range 5 {
			admitted = append(admitted, q.askOf(t.Context(), strconv.Itoa(i)))
		}
		q.metrics(t, 2, 3, 0, 0)
		for range 4 {
			a := <-q.ask(t.Context())
			a.problem(t, http.StatusTooManyRequests, api.CodeTooManyQueries, "")
			checkContract(t, request("GET", "/analytics/errors", ""), a)
			if got := a.header.Get("Retry-After"); got != "7" {
				t.Errorf("Retry-After %q, want the longest wait", got)
			}
		}
		q.metrics(t, 2, 3, 4, 0)
		q.do(t, "GET", "/event/a", "").problem(t, 404, "unknown_event", "id")
		q.do(t, "GET", "/conversations/c/events", "").expect(t, 200, "")
		q.do(t, "POST", "/event", `{"conversation_id":"c","event_name":"event_a"}`).expect(t, 202, "")
		q.do(t, "GET", "/readyz", "").expect(t, 200, "")
		for range admitted {
			q.answer <- nil
			synctest.Wait()
		}
		for _, answered := range admitted {
			if a := <-answered; a.status != 200 {
				t.Errorf("one that was admitted: %d %s", a.status, a.body)
			}
		}
		var order []string
		for _, asked := range q.asked {
			if f, ok := asked.(query.Filter); ok {
				order = append(order, f.ConversationID)
			}
		}
		if diff := cmp.Diff([]string{"0", "1", "2", "3", "4"}, order); diff != "" {
			t.Errorf("asked in the order (-want +got):\n%s", diff)
		}
		if q.begun != 5 || q.runningMost != 2 {
			t.Errorf("%d questions were asked, up to %d at once, want 5 and 2", q.begun, q.runningMost)
		}
		q.metrics(t, 0, 0, 4, 0)
	})
}

// One that waits for too long is told that it was not asked, and not that it
// is too large.
func TestQuestionsWaitForABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuestions(t, 1, 3)
		running := q.ask(t.Context())
		begun := time.Now()
		a := <-q.ask(t.Context())
		a.problem(t, http.StatusTooManyRequests, api.CodeTooManyQueries, "")
		if waited := time.Since(begun); waited != 7*time.Second { // by the bubble's clock
			t.Errorf("it waited for %s", waited)
		}
		q.metrics(t, 1, 0, 0, 1)
		q.answer <- nil
		if a := <-running; a.status != 200 {
			t.Errorf("the one that ran: %d %s", a.status, a.body)
		}
	})
}

// Whoever leaves gives up the place, in the queue or in the database.
func TestQuestionsOfThoseWhoLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuestions(t, 1, 1)
		ctx, leave := context.WithCancel(t.Context())
		ran, waited := q.ask(ctx), q.ask(ctx)
		q.metrics(t, 1, 1, 0, 0)
		leave()
		<-ran
		<-waited
		q.metrics(t, 0, 0, 0, 0)
		next := q.ask(t.Context())
		q.answer <- nil
		if a := <-next; a.status != 200 {
			t.Errorf("the next one: %d %s", a.status, a.body)
		}
		if q.begun != 2 {
			t.Errorf("%d questions were asked, want the first and the last", q.begun)
		}
	})
}

// A place is free again however the question ended.
func TestQuestionsThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuestions(t, 1, 1)
		var codes []string
		for _, err := range []error{errors.New("refused"), event.ErrQueryTooLarge, event.ErrQueryTimeout, nil} {
			answered := q.ask(t.Context())
			q.answer <- err
			a := <-answered
			checkContract(t, request("GET", "/analytics/errors", ""), a)
			code := strconv.Itoa(a.status)
			if a.status != 200 {
				var p struct{ Code string }
				decode(t, a.body, &p)
				code += " " + p.Code
			}
			codes = append(codes, code)
			q.metrics(t, 0, 0, 0, 0)
		}
		want := []string{"503 unavailable", "422 query_too_large", "422 query_timeout", "200"}
		if diff := cmp.Diff(want, codes); diff != "" {
			t.Error(diff)
		}
	})
}
