package bench_test

import (
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
)

// The functions compare what is there afterwards with what was sent, and fail
// where it differs, so that a figure means that the work was done.
func TestMeasure(t *testing.T) {
	s, _ := startSystem(t)
	cases := []struct {
		name string
		cfg  bench.LoadConfig
	}{
		{"text", bench.LoadConfig{Events: 3000, Seed: 1, Batch: 100, Connections: 2}},
		{"single requests", bench.LoadConfig{Events: 500, Seed: 1, Batch: 1, Connections: 8}},
		{"embeddings", bench.LoadConfig{Events: 500, Seed: 1, Batch: 100, Connections: 2, Encoding: workload.JSONArrays}},
	}
	for _, test := range cases {
		t.Run("limits of "+test.name, func(t *testing.T) {
			got, err := bench.MeasureLimits(t.Context(), s, test.cfg, 2000)
			if err != nil {
				t.Fatal(err)
			}
			if got.InsertPerSecond <= 0 || got.ProducePerSecond <= 0 || got.DiscardPerSecond <= 0 {
				t.Errorf("%+v", got)
			}
		})
	}
	t.Run("alternative for text", func(t *testing.T) {
		got, err := bench.MeasureAlternative(t.Context(), s, cases[0].cfg, 2000)
		if err != nil {
			t.Fatal(err)
		}
		if got.Events != 2000 || got.SluicePerSecond <= 0 || got.KafkaEnginePerSecond <= 0 || got.How == "" {
			t.Errorf("%+v, want 2000 events", got)
		}
	})
	// Nothing is left in the engine.
	left, err := s.Query(t.Context(), "system", "SELECT groupArray(name) FROM system.databases WHERE name IN ('sluice_limit', 'sluice_drained', 'kafka_engine_drained')")
	if err != nil || left != "[]" {
		t.Errorf("left are %s, %v", left, err)
	}
}
