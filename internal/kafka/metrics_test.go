package kafka_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// Dashboards and alerts know the metrics by these names.
func TestProducerMetrics(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	cfg := b.topics(t)
	cfg.Producer.BufferRecordsMax, cfg.Producer.AckTimeout = 10, time.Second
	reg := prometheus.NewRegistry()
	p, err := kafka.NewProducer(cfg, kafkatest.Log(t), reg)
	if err != nil {
		t.Fatal(err)
	}
	kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 10))
	p.Produce(t.Context(), kafkatest.Updates(0, 11, 10))
	restart := b.kill(t)
	p.Produce(t.Context(), kafkatest.Updates(0, 3, 3))
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

// Every kind of client is measured, side by side in one registry, and leaves it
// when it is closed.
func TestClientMetrics(t *testing.T) {
	t.Parallel()
	b := embeddedBackend(t)
	cfg := b.topics(t)
	reg := prometheus.NewRegistry()
	cfg.ClientMetrics = reg
	p, err := kafka.NewProducer(cfg, kafkatest.Log(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	letters, err := kafka.NewDeadLetters(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := kafka.NewWatcher(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- watcher.Run(ctx) }()
	c, err := kafka.NewConsumer(cfg, nil, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 10))
	if _, err := c.Poll(t.Context(), 100); err != nil {
		t.Fatal(err)
	}

	// Sums over brokers, by name and client.
	gather := func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "client" {
						got[f.GetName()+" "+l.GetValue()] += m.GetCounter().GetValue() + m.GetGauge().GetValue() +
							float64(m.GetHistogram().GetSampleCount())
					}
				}
			}
		}
		return got
	}
	got := gather()
	for _, name := range []string{
		"sluice_kafka_client_produce_records_total producer", "sluice_kafka_client_fetch_records_total consumer",
	} {
		if got[name] != 10 {
			t.Errorf("%s is %v, want 10", name, got[name])
		}
	}
	for _, name := range []string{
		"sluice_kafka_client_connects_total producer", "sluice_kafka_client_read_bytes_total consumer",
		"sluice_kafka_client_request_duration_e2e_seconds consumer",
	} {
		if got[name] <= 0 {
			t.Errorf("%s is %v, want more", name, got[name])
		}
	}
	for _, name := range []string{"watcher", "dead_letters"} {
		if _, ok := got["sluice_kafka_client_buffered_fetch_bytes "+name]; !ok {
			t.Errorf("the client of %s is not measured: %v", name, got)
		}
	}

	cancel()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	letters.Close()
	if err := errors.Join(p.Close(t.Context()), c.Close(t.Context())); err != nil {
		t.Error(err)
	}
	if got := gather(); len(got) > 0 {
		t.Errorf("left of closed clients: %v", got)
	}
}
