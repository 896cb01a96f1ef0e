package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	os.Exit(m.Run())
}

// Two cases, with a comparison and without, run at a small size on both brokers,
// and are all in the report.
func TestReport(t *testing.T) {
	kafkatest.Require(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", binary, "./cmd/sluice")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build sluice: %v: %s", err, out)
	}
	if err := run(t.Context(), []string{"-binary", binary, "-out", dir, "-dir", dir, "-creates", "2000", "-changes", "500", "-sample", "20", "-only", "^text; (batches|single requests on 1 connection)"}, io.Discard, t.Output()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var report bench.Report
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Cases) != 4 {
		t.Fatalf("%d cases, want 2 on each of 2 brokers", len(report.Cases))
	}
	for _, c := range report.Cases {
		light := c.Connections == 1
		if (len(c.Phases) == 3) == light || (c.Limits != nil) == light {
			t.Errorf("%s on %s: %d phases, limits %v", c.Name, c.Broker, len(c.Phases), c.Limits)
		}
		brokers := 0
		for _, u := range c.Phases[0].Processes {
			if u.Name == "Apache Kafka" {
				brokers++
			}
		}
		if want := map[string]int{bench.EmbeddedBroker: 0, apacheKafka: 1}[c.Broker]; brokers != want {
			t.Errorf("%s on %s: %d processes of Kafka were measured, want %d", c.Name, c.Broker, brokers, want)
		}
	}
	tables, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(tables), "\n## "); n != 1+len(report.Cases) {
		t.Errorf("report.md has %d sections, want the targets and each case:\n%s", n, tables)
	}
}
