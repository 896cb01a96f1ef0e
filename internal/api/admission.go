package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// admission bounds how many questions of analytics the database works on at
// once, how many wait for that, and how long. Reads of events are not counted:
// they are short, and have connections of their own.
type admission struct {
	// running has an element for each question that the database works on. Those
	// that wait to send are admitted in the order in which they came.
	running   chan struct{}
	queued    atomic.Int64
	queuedMax int64
	wait      time.Duration

	// queueFull and waitedLong count questions that were turned away.
	queueFull, waitedLong prometheus.Counter
}

func newAdmission(cfg *Config) *admission {
	rejected := func(reason string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Name:        "sluice_api_analytics_rejected_total",
			Help:        "Questions of analytics answered 429, by reason: too many waited already, or it waited too long.",
			ConstLabels: prometheus.Labels{"reason": reason},
		})
	}
	return &admission{
		running:   make(chan struct{}, cfg.AnalyticsQueriesMax),
		queuedMax: int64(cfg.AnalyticsQueueMax),
		wait:      cfg.AnalyticsWait,
		queueFull: rejected("queue_full"), waitedLong: rejected("waited_long"),
	}
}

func (a *admission) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_api_analytics_running",
			Help: "Questions of analytics that the database works on.",
		}, func() float64 { return float64(len(a.running)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_api_analytics_queued",
			Help: "Questions of analytics that wait to be asked.",
		}, func() float64 { return float64(a.queued.Load()) }),
		a.queueFull, a.waitedLong,
	}
}

// enter waits until the database may be asked one question more. leave must be
// called when it has answered. The error is a problem that the caller is
// answered with.
func (a *admission) enter(ctx context.Context) (leave func(), err error) {
	leave = func() { <-a.running }
	select {
	case a.running <- struct{}{}:
		return leave, nil
	default:
	}
	if a.queued.Add(1) > a.queuedMax {
		a.queued.Add(-1)
		a.queueFull.Inc()
		return nil, tooManyQueries("as many questions as may wait are waiting; ask again later")
	}
	defer a.queued.Add(-1)
	timer := time.NewTimer(a.wait)
	defer timer.Stop()
	select {
	case a.running <- struct{}{}:
		return leave, nil
	case <-timer.C:
		a.waitedLong.Inc()
		return nil, tooManyQueries("the question waited for others, and was not asked; ask again later")
	case <-ctx.Done(): // there is nobody to answer
		return nil, tooManyQueries("the caller has gone")
	}
}

func tooManyQueries(detail string) *problem {
	return &problem{status: http.StatusTooManyRequests, code: CodeTooManyQueries, detail: detail}
}
