package kafka_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/kafka"
)

// Dashboards and alerts know the metrics by these names.
func TestProducerMetrics(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	cfg := b.topics(t)
	cfg.Producer.BufferRecordsMax, cfg.Producer.AckTimeout = 10, time.Second
	reg := prometheus.NewRegistry()
	p, err := kafka.NewProducer(cfg, logTo(t), reg)
	if err != nil {
		t.Fatal(err)
	}
	produce(t, p, updates(0, 10, 10))
	p.Produce(t.Context(), updates(0, 11, 10))
	restart := b.kill(t)
	p.Produce(t.Context(), updates(0, 3, 3))
	restart()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	// Which way the three of the outage went, no one can say.
	delivered, failed := got["sluice_produced_records_total"], got["sluice_produce_failed_records_total"]
	if delivered < 10 || delivered+failed != 13 {
		t.Errorf("%v delivered and %v failed, want 10 or more, and 13 in all", delivered, failed)
	}
	if got["sluice_produced_bytes_total"] <= 0 {
		t.Error("no bytes")
	}
	for _, name := range []string{"sluice_produced_records_total", "sluice_produce_failed_records_total", "sluice_produced_bytes_total"} {
		delete(got, name)
	}
	want := map[string]float64{
		"sluice_produce_buffered_bytes":        0,
		"sluice_produce_buffered_records":      0,
		"sluice_produce_refused_records_total": 11,
		"sluice_produce_seconds":               2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
