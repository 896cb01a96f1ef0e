// Command scalemodel computes the tables of docs/scale.md and docs/decisions.md
// that are not measured: what a rate of events takes in disk, memory, network
// and cores; what ClickHouse's merges do with the parts that it makes; how long
// a replay takes. It writes them between marks in the documents, so that none
// is computed by hand:
//
//	cd tools && go run ./scalemodel ../docs/scale.md ../docs/decisions.md
//
// What they start from is measured by -measure, on a real engine.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/engine"
)

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "scalemodel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("scalemodel", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "tables to compute, separated by commas; default: those of the documents, or without documents all")
	measured := flags.Bool("measure", false, "measure what an event takes, and compute nothing")
	data := flags.String("data", "", "with -measure: gzipped file of events, one JSON object a line; default: conversations that come with Sluice")
	embedded := flags.Bool("embeddings", false, "with -measure: the events have embeddings")
	events := flags.Int("events", 100_000, "with -measure: events to insert; more than there are repeats them, which compresses better than text would")
	library := flags.String("libchdb", "", "with -measure: path of libchdb.so; default where scripts/install-libchdb.sh puts it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *measured {
		encoding := workload.Text
		if *embedded {
			encoding = workload.Base64
		}
		return printCosts(ctx, stdout, stderr, *library, *data, encoding, *events)
	}
	chosen := strings.Split(*only, ",")
	wanted := func(name string) bool { return *only == "" || slices.Contains(chosen, name) }
	if flags.NArg() == 0 {
		for _, t := range tables() {
			if wanted(t.name) {
				fmt.Fprintf(stdout, "%s\n\n%s\n", t.name, t.make())
			}
		}
		return nil
	}
	for _, path := range flags.Args() {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		renewed, err := renew(text, func(t *table) bool { return wanted(t.name) })
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if bytes.Equal(text, renewed) {
			continue
		}
		if err := os.WriteFile(path, renewed, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(stdout, path)
	}
	return nil
}

// A table stands between these lines.
const (
	beginMark = "<!-- scalemodel: "
	beginEnd  = " -->\n"
	endMark   = "<!-- /scalemodel -->\n"
)

// renew replaces the tables of a document that are wanted.
func renew(text []byte, wanted func(*table) bool) ([]byte, error) {
	var out bytes.Buffer
	for {
		before, rest, found := bytes.Cut(text, []byte(beginMark))
		out.Write(before)
		if !found {
			return out.Bytes(), nil
		}
		name, rest, found := bytes.Cut(rest, []byte(beginEnd))
		old, rest, ended := bytes.Cut(rest, []byte(endMark))
		if !found || !ended {
			return nil, errors.New("a table's mark has no end")
		}
		made := string(old)
		known := false
		for _, t := range tables() {
			if t.name == string(name) {
				known = true
				if wanted(&t) {
					made = t.make()
				}
			}
		}
		if !known {
			return nil, fmt.Errorf("no table is named %q", name)
		}
		out.WriteString(beginMark + string(name) + beginEnd + made + endMark)
		text = rest
	}
}

// printCosts measures what an event takes.
func printCosts(ctx context.Context, stdout, stderr io.Writer, library, data string, encoding workload.Encoding, n int) (err error) {
	d, err := start(ctx, library, "", slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	from, err := newEvents(n, encoding, data)
	if err != nil {
		return err
	}
	costs, err := d.measure(ctx, from, blockEvents)
	if err != nil {
		return err
	}
	rows := [][]string{{"bytes an event", "as inserted", "on disk, merged", "primary index", "a part of one row", "a merge writes"}}
	for _, c := range costs {
		rows = append(rows, []string{
			"`" + c.table + "`", fmt.Sprintf("%.0f", c.raw), fmt.Sprintf("%.1f", c.disk), fmt.Sprintf("%.4f", c.index), bytesText(c.part),
			bytesText(c.mergeBytes/max(c.mergeSeconds, 1e-3)) + "/s",
		})
	}
	fmt.Fprint(stdout, markdown(rows))
	fmt.Fprintf(stdout, "\n%d events: JSON %d bytes each, records %d\n", from.next, from.json/from.next, from.records/from.next)
	return nil
}
