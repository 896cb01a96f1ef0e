// Command plots draws the figures of the benchmark as SVGs: the times of the
// phases, the ratios to what limits them, and the costs of writes and queries
// against the size of the table. A plot without figures is not drawn.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sluicehq/sluice/internal/bench"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "plots:", err)
		os.Exit(1)
	}
}

// run draws what the arguments say, and prints the names of the files.
func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("plots", flag.ContinueOnError)
	flags.SetOutput(stderr)
	in := flags.String("in", "../docs/benchmarks/report.json", "figures of sluice-bench; empty for none")
	scale := flags.String("scale", "../docs/benchmarks/scale.json", "figures of sluice-bench scale; empty for none")
	out := flags.String("out", "../docs/benchmarks", "directory to write to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var (
		report bench.Report
		sizes  bench.ScaleReport
	)
	if err := errors.Join(readJSON(*in, &report), readJSON(*scale, &sizes)); err != nil {
		return err
	}
	for _, figure := range []struct {
		name string
		draw func() (*figure, error)
	}{
		{"phases.svg", func() (*figure, error) { return drawPhases(report.Cases) }},
		{"limits.svg", func() (*figure, error) { return drawRatios(report.Cases) }},
		{"scale-writes.svg", func() (*figure, error) { return drawWrites(sizes.Sizes) }},
		{"scale-queries.svg", func() (*figure, error) { return drawQueries(sizes.Sizes) }},
	} {
		drawn, err := figure.draw()
		if err != nil {
			return fmt.Errorf("draw %s: %w", figure.name, err)
		}
		if drawn == nil {
			continue
		}
		path := filepath.Join(*out, figure.name)
		if err := drawn.save(path); err != nil {
			return err
		}
		fmt.Fprintln(stdout, path)
	}
	return nil
}

// readJSON reads nothing from a file without a name.
func readJSON(path string, into any) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
