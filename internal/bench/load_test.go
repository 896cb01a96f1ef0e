package bench_test

import (
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
)

// A load runs through a real Sluice, and is verified, in every way of sending it.
func TestLoad(t *testing.T) {
	system, to := startSystem(t)
	for _, tt := range []struct {
		name string
		cfg  bench.LoadConfig
	}{
		{"batches", bench.LoadConfig{Events: 5000, Updates: 2000, Deletes: 2000, Batch: 1000, Connections: 4}},
		{"single requests", bench.LoadConfig{Events: 500, Updates: 200, Deletes: 200, Batch: 1, Connections: 8}},
		{"vectors in base64", bench.LoadConfig{Encoding: workload.Base64, Events: 500, Updates: 200, Deletes: 200, Batch: 100, Connections: 2}},
		{"vectors as arrays", bench.LoadConfig{Encoding: workload.JSONArrays, Events: 500, Batch: 100, Connections: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Observe, tt.cfg.Sample = system, 50
			phases, err := bench.Load(t.Context(), to, tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for i := range phases {
				p := &phases[i]
				names = append(names, p.Name)
				if p.AckedSeconds <= 0 || p.VisibleSeconds < p.AckedSeconds || p.Parts == 0 || p.AckMillis.N == 0 {
					t.Errorf("%s: %+v", p.Name, p)
				}
			}
			if got := strings.Join(names, " "); !strings.HasPrefix("create update delete", got) {
				t.Errorf("phases %s", got)
			}
			// Every event's time is in the past, and the next load's must be empty.
			if _, err := system.Query(t.Context(), "sluice", "TRUNCATE TABLE events"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestLoadConfigValidate(t *testing.T) {
	err := bench.LoadConfig{Events: 1, Updates: 2, Deletes: -1}.Validate()
	for _, field := range []string{"Updates", "Deletes", "Batch", "Connections"} {
		if err == nil || !strings.Contains(err.Error(), field+": must be") {
			t.Errorf("error %v does not name %s", err, field)
		}
	}
}
