package bench_test

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/bench"
)

// All steps are run, and there are reads, probes and answers to askers. A busy
// machine may have none of them in one step.
func TestReaders(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	report, err := bench.Readers(t.Context(), bench.ReadersConfig{
		System: bench.SystemConfig{Dir: t.TempDir(), Binary: path},
		Events: 2000, Step: 3 * time.Second, Askers: 3, Progress: io.Discard,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	reads, probes, questions := 0, 0, 0
	for _, s := range report.Steps {
		reads, probes, questions = reads+s.Millis.N, probes+s.FreshMillis.N, questions+s.Questions
	}
	if len(report.Steps) != 7 || reads == 0 || probes == 0 || questions == 0 {
		t.Errorf("%+v", report.Steps)
	}
}

func TestReadersConfigValidate(t *testing.T) {
	_, err := bench.Readers(t.Context(), bench.ReadersConfig{}, nil)
	for _, field := range []string{"Events", "Step", "Askers"} {
		if err == nil || !strings.Contains(err.Error(), field+": must be") {
			t.Errorf("error %v does not name %s", err, field)
		}
	}
}
