package consumer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/event"
)

type metrics struct {
	records        prometheus.Counter
	noEffect       prometheus.Counter
	rows           *prometheus.CounterVec
	lookups        *prometheus.CounterVec
	retries        *prometheus.CounterVec
	deadLetters    *prometheus.CounterVec
	batchRecords   prometheus.Histogram
	flushSeconds   prometheus.Histogram
	insertTime     prometheus.Histogram
	freshness      prometheus.Histogram
	recentBytes    prometheus.Gauge
	minutesUnknown prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const ns = "sluice_consumer"
	m := &metrics{
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "records_total", Help: "Records fetched from the events topic.",
		}),
		noEffect: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "no_effect_total", Help: "Writes of deleted events, and creates that lost to an earlier one.",
		}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "rows_total", Help: "Rows inserted, by table.",
		}, []string{"table"}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "lookups_total", Help: "Keys looked up in the database, by kind.",
		}, []string{"kind"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "retries_total", Help: "Tries that did not succeed, by step.",
		}, []string{"step"}),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Name: "dead_letters_total", Help: "Records sent to the dead-letter topic, by reason.",
		}, []string{"reason"}),
		batchRecords: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Name: "batch_records", Help: "Records per flush.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9),
		}),
		flushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Name: "flush_seconds", Help: "Time of a flush, from lookup to commit, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}),
		insertTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Name: "insert_seconds", Help: "Time of the inserts of a flush, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}),
		freshness: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Name: "freshness_seconds",
			Help:    "Age of the oldest record of a flush when it is applied, since the broker appended it, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 16),
		}),
		recentBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: ns, Name: "recent_bytes", Help: "Memory of the recent core rows, in bytes, estimated.",
		}),
		minutesUnknown: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Name: "minutes_unknown_total",
			Help: "Times that the database took too long to say which minutes have events. Updates are looked up for a while then.",
		}),
	}
	// The first of a kind is an increase only where there was a zero before it.
	for _, step := range []string{stepLookup, stepSend, stepInsert, stepCommit} {
		m.retries.WithLabelValues(step)
	}
	for _, reason := range []event.Code{
		event.CodeUnknownEvent, event.CodeBadRecord, event.CodeUnsupportedVersion, event.CodeRejectedByStore,
		event.CodeUnreadableBatch, event.CodeTooLarge,
	} {
		m.deadLetters.WithLabelValues(string(reason))
	}
	reg.MustRegister(m.records, m.noEffect, m.rows, m.lookups, m.retries, m.deadLetters,
		m.batchRecords, m.flushSeconds, m.insertTime, m.freshness, m.recentBytes, m.minutesUnknown)
	return m
}

func (m *metrics) inserted(rows *event.Rows, start time.Time) {
	m.insertTime.Observe(time.Since(start).Seconds())
	m.rows.WithLabelValues("events").Add(float64(len(rows.Cores)))
	m.rows.WithLabelValues("event_contents").Add(float64(len(rows.Contents)))
	m.rows.WithLabelValues("event_embeddings").Add(float64(len(rows.Embeddings)))
	m.rows.WithLabelValues("event_aliases").Add(float64(len(rows.Aliases)))
}

func (m *metrics) flushed(b *batch, start time.Time, recentBytes int) {
	m.flushSeconds.Observe(time.Since(start).Seconds())
	m.batchRecords.Observe(float64(b.len()))
	m.recentBytes.Set(float64(recentBytes))
	oldest := time.Time{}
	for i := range b.items {
		if t := b.items[i].record.AppendTime; oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
	}
	if !oldest.IsZero() {
		m.freshness.Observe(time.Since(oldest).Seconds())
	}
}
