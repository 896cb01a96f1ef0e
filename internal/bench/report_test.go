package bench

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/sluicehq/sluice/internal/golden"
)

// testReport has every figure once, some targets met and some missed, and one
// small run that no target is about.
func testReport() *Report {
	processes := func(cpu float64) []ProcessUsage {
		return []ProcessUsage{{"ClickHouse", 2 * cpu, 900 << 20}, {"sluice serve", cpu, 410 << 20}, {"load generator", cpu / 4, 64 << 20}}
	}
	phase := func(name string, writes int, bytes int64, acked, visible float64, fresh Quantiles) Phase {
		return Phase{
			Name: name, Writes: writes, Bytes: bytes, AckedSeconds: acked, VisibleSeconds: visible,
			AckMillis: Quantiles{500, 18.2, 61.04, 80}, FreshMillis: fresh,
			Processes: processes(visible), Parts: 41, Merges: 7, Sampled: 300,
		}
	}
	return &Report{
		Machine: Machine{
			CPU: "Example CPU", Cores: 2, Memory: 8 << 30, System: "linux/amd64, Linux 6.1", Go: "go1.26.0",
			Engine: "26.7.3-stable.1", Sluice: "v1", Date: "2026-01-02",
		},
		Cases: []Case{
			{
				Name: "text", Broker: "embedded", Batch: 1000, Connections: 4,
				Phases: []Phase{
					phase("create", 500_000, 260_000_000, 3.1, 3.4, Quantiles{30, 140, 2100.5, 2200}),
					phase("update", 200_000, 40_000_000, 1.2, 1.54, Quantiles{12, 130, 400, 400}),
					phase("delete", 200_000, 12_000_000, 0.6, 0.8, Quantiles{}),
				},
				Limits:      &Limits{InsertPerSecond: 250_000, ProducePerSecond: 900_000, DiscardPerSecond: 1_200_000},
				Alternative: &Alternative{Events: 500_000, SluicePerSecond: 260_000, KafkaEnginePerSecond: 130_000, How: "Both read one topic."},
			},
			{
				Name: "text", Broker: "Apache Kafka 4.1.0", Batch: 1, Connections: 64,
				Phases: []Phase{phase("create", 500_000, 260_000_000, 25, 25.1, Quantiles{9, 20, 90, 95})},
			},
			{
				Name: "embeddings, base64", Broker: "embedded", Batch: 500, Connections: 1,
				Phases: []Phase{phase("create", 1000, 5_000_000, 0.1, 0.2, Quantiles{})},
			},
		},
	}
}

func testScaleReport() *ScaleReport {
	size := func(rows int, deletes, updates, cold float64) ScaleSize {
		return ScaleSize{
			Rows: rows, FillSeconds: float64(rows) / 1e6, DiskBytes: int64(rows) * 30, Parts: 6,
			Queries: []ScaleQuery{
				{ScaleErrors, ScaleTimes{4, 4.5}, ScaleTimes{9, 9.5}},
				{ScaleLatency, ScaleTimes{7, 7.5}, ScaleTimes{9, 700}},
			},
			Writes: []ScaleWrite{
				{Name: ScaleDelete, Writes: 50_000, VisibleSeconds: deletes},
				{Name: ScaleUpdateRecent, Writes: 50_000, VisibleSeconds: updates},
				{Name: ScaleUpdateCold, Writes: 50_000, VisibleSeconds: cold, LookupSeconds: cold / 2},
			},
		}
	}
	return &ScaleReport{
		Days:  150,
		Sizes: []ScaleSize{size(1_000_000, 0.5, 0.6, 0.9), size(100_000_000, 0.6, 0.9, 2.4), size(1_000_000_000, 0.7, 1, 3)},
	}
}

func TestReport(t *testing.T) {
	for _, test := range []struct {
		golden string
		write  func(io.Writer) error
	}{
		{"report.md", testReport().Markdown},
		{"report.txt", testReport().Text},
		{"report_empty.md", (&Report{}).Markdown},
		{"report_scale.md", testScaleReport().Markdown},
		{"report_scale_empty.md", (&ScaleReport{Days: 30}).Markdown},
	} {
		t.Run(test.golden, func(t *testing.T) {
			var got bytes.Buffer
			if err := test.write(&got); err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, filepath.Join("testdata", test.golden), got.Bytes())
		})
	}
}

func TestReportWriteError(t *testing.T) {
	full := errors.New("full")
	for name, write := range map[string]func(io.Writer) error{
		"Markdown": testReport().Markdown, "Text": testReport().Text, "scale": testScaleReport().Markdown,
	} {
		if err := write(failingWriter{full}); !errors.Is(err, full) {
			t.Errorf("%s: %v, want %v", name, err, full)
		}
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestVerdict(t *testing.T) {
	for _, test := range []struct {
		name   string
		target target
		value  float64
		want   string
	}{
		{"at most, met exactly", atMost("", 3.5, seconds, nil), 3.5, "met"},
		{"at most, missed", atMost("", 2, seconds, nil), 2.5, "missed by 25 %"},
		{"at most, just missed", atMost("", 1000, seconds, nil), 1004, "missed by 0.4 %"},
		{"at least, met", atLeast("", 20_000, perSecond, nil), 20_001, "met"},
		{"at least, missed", atLeast("", 20_000, perSecond, nil), 15_000, "missed by 25 %"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.target.verdict(test.value); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestCount(t *testing.T) {
	for value, want := range map[float64]string{0: "0", 999.4: "999", 1000: "1,000", -123456: "-123,456", 1234567.6: "1,234,568"} {
		if got := count(value); got != want {
			t.Errorf("%v: %q, want %q", value, got, want)
		}
	}
}
