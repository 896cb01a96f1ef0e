// Command benchreport runs the benchmark's cases, each on a Sluice of its own,
// on the embedded broker and on an Apache Kafka that it starts, and writes the
// figures as JSON and Markdown. It needs what "make engine kafka" installs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

const apacheKafka = "Apache Kafka " + kafkatest.Version

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "benchreport:", err)
		os.Exit(1)
	}
}

// suite is what the flags say.
type suite struct {
	binary, dir, out string
	creates, changes int
	sample           int
	only             *regexp.Regexp
	version          string
	progress         io.Writer
	log              *slog.Logger
}

// run measures what the arguments say.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s := suite{progress: stdout, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	flags := flag.NewFlagSet("benchreport", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.binary, "binary", "../bin/sluice", "the sluice to measure")
	flags.StringVar(&s.version, "version", "unknown", "the version of it")
	flags.StringVar(&s.out, "out", "../docs/benchmarks", "directory to write report.json and report.md to")
	flags.StringVar(&s.dir, "dir", "", "directory for the data, which is removed; the system's for temporary files where empty")
	flags.IntVar(&s.creates, "creates", 500_000, "events to create in each case")
	flags.IntVar(&s.changes, "changes", 200_000, "random events to update, and then to delete")
	flags.IntVar(&s.sample, "sample", 0, "events to compare in all fields after each phase; 0 for the benchmark's default")
	only := flags.String("only", "", "measure only the cases whose titles match this regular expression, such as '^text.*Apache'")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if s.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	return s.run(ctx)
}

// cases are the loads, and what they are compared with. The one of single
// requests on one connection is the light load, which is about latency alone.
func (s *suite) cases() []bench.CaseConfig {
	load := func(encoding workload.Encoding, batch, connections int) bench.LoadConfig {
		return bench.LoadConfig{
			Encoding: encoding, Batch: batch, Connections: connections, Seed: 1,
			Events: s.creates, Updates: s.changes, Deletes: s.changes, Sample: s.sample, Progress: s.progress,
		}
	}
	light := load(workload.Text, 1, 1)
	light.Events, light.Updates, light.Deletes = max(1, s.creates/250), 0, 0
	vectors := min(s.creates, 100_000) // those of the limits are held in memory
	return []bench.CaseConfig{
		{Load: load(workload.Text, 1000, 4), LimitEvents: s.creates, AlternativeEvents: s.creates},
		{Load: load(workload.Text, 1, 64), LimitEvents: s.creates},
		{Load: light},
		{Load: load(workload.Base64, 1000, 4), LimitEvents: vectors, AlternativeEvents: vectors},
		{Load: load(workload.JSONArrays, 1000, 4), LimitEvents: vectors},
	}
}

// run writes the report anew after each case, so that a long run that fails
// leaves what it had.
func (s *suite) run(ctx context.Context) error {
	report := bench.Report{Machine: bench.ThisMachine(s.version)}
	for _, cfg := range s.cases() {
		for _, broker := range []string{bench.EmbeddedBroker, apacheKafka} {
			cfg.Broker = broker
			title := bench.NewCase(cfg.Load, broker).Title()
			if !s.only.MatchString(title) {
				continue
			}
			fmt.Fprintf(s.progress, "\n%s\n", title)
			measured, err := s.measure(ctx, cfg)
			if err != nil {
				return fmt.Errorf("%s: %w", title, err)
			}
			report.Cases = append(report.Cases, *measured)
			if err := s.write(&report); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure measures one case, on a Kafka of its own if it needs one.
func (s *suite) measure(ctx context.Context, cfg bench.CaseConfig) (_ *bench.Case, err error) {
	dir, err := os.MkdirTemp(s.dir, "sluice-report-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg.System = bench.SystemConfig{Dir: filepath.Join(dir, "system"), Binary: s.binary}
	if cfg.Broker != bench.EmbeddedBroker {
		kafkaDir := filepath.Join(dir, "kafka")
		if err := os.Mkdir(kafkaDir, 0o700); err != nil {
			return nil, err
		}
		kafka, err := kafkatest.New(kafkaDir, kafkatest.Options{}) //nolint:contextcheck // starting has a bound of its own
		if err != nil {
			return nil, err
		}
		defer kafka.Close()
		cfg.System.Brokers, cfg.System.BrokerPIDs = kafka.Addrs, kafka.PIDs()
	}
	return bench.MeasureCase(ctx, cfg, s.log)
}

func (s *suite) write(report *bench.Report) error {
	if err := bench.WriteJSON(filepath.Join(s.out, "report.json"), report); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(s.out, "report.md"))
	if err != nil {
		return err
	}
	return errors.Join(report.Markdown(file), file.Close())
}
