package api

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

// statusMax is above every HTTP status.
const statusMax = 600

// metrics are what the server counts.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	accepted [event.OpDelete + 1]prometheus.Counter
	refused  *prometheus.CounterVec
	cut      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, held *body.Budget, analytics *admission) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_requests_total",
			Help: "Requests answered, by route and HTTP status.",
		}, []string{"route", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_api_request_seconds",
			Help:    "Time from the end of a request's headers to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_api_writes_refused_total",
			Help: "Writes refused or not acknowledged, by the code of the problem.",
		}, []string{"code"}),
	}
	accepted := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_api_writes_accepted_total",
		Help: "Writes that the log acknowledged, by operation.",
	}, []string{"op"})
	for op := event.OpCreate; op <= event.OpDelete; op++ {
		m.accepted[op] = accepted.WithLabelValues(op.String())
	}
	m.cut = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_api_answers_cut_total",
		Help: "Answers that were not sent whole, by reason: the reader was too slow, had gone, or was an agent that had read enough; a later part failed, or the server stopped; or a page that ended early because it took too long, or for want of memory.",
	}, []string{"reason"})
	for _, reason := range []string{"slow", "gone", "failed", "long", "overloaded", "stopping", "enough"} {
		m.cut.WithLabelValues(reason)
	}
	bodies := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sluice_api_in_flight_bytes",
		Help: "Memory of the bodies being read or waiting for the log.",
	}, func() float64 { return float64(held[body.ForBodies].Held()) })
	answers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sluice_api_answer_bytes",
		Help: "Memory of the events and rows being read from the database or on their way to a reader.",
	}, func() float64 { return float64(held[body.ForEvents].Held() + held[body.ForRows].Held()) })
	for _, c := range append(analytics.collectors(), m.requests, m.seconds, m.refused, m.cut, accepted, bodies, answers) {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) refuse(code event.Code) { m.refused.WithLabelValues(string(code)).Inc() }

// routeMetrics are the metrics of one route, found without a lookup by label.
type routeMetrics struct {
	requests *prometheus.CounterVec
	route    string
	seconds  prometheus.Observer
	byStatus [statusMax]atomic.Pointer[prometheus.Counter]
}

func (m *metrics) route(name string) *routeMetrics {
	return &routeMetrics{requests: m.requests, route: name, seconds: m.seconds.WithLabelValues(name)}
}

func (m *routeMetrics) observe(status int, seconds float64) {
	counter := m.byStatus[status].Load()
	if counter == nil {
		c := m.requests.WithLabelValues(m.route, strconv.Itoa(status))
		counter = &c
		m.byStatus[status].Store(counter)
	}
	(*counter).Inc()
	m.seconds.Observe(seconds)
}
