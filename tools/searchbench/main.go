// Command searchbench measures searches and lists of events at given sizes, and
// writes the figures into docs/search.md. It fills a ClickHouse of its own inside ClickHouse,
// with texts and embeddings that are recombined from real conversations. It needs
// what "make engine" installs.
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
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/engine"
)

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "searchbench:", err)
		os.Exit(1)
	}
}

// size is how much is searched.
type size struct{ contents, vectors int }

// suite is what the flags say.
type suite struct {
	texts, embeddings, dir string
	sizes                  []size
	queries                int
	repeat                 time.Duration
	progress               io.Writer
	log                    *slog.Logger
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s := suite{progress: stdout, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	flags := flag.NewFlagSet("searchbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	sizes := flags.String("sizes", "1000000:1000000", "contents:vectors, for several sizes with commas between them; there is an event for each content")
	data := flags.String("data", "", "directory with the whole corpus, sgd-train.ndjson.gz and sgd-train-embedded.ndjson.gz; default: the slice of it that comes with Sluice")
	out := flags.String("out", "../docs/search.md", "document whose figures are renewed")
	version := flags.String("version", "unknown", "the version of Sluice that is measured")
	flags.StringVar(&s.dir, "dir", "", "directory for the data, which is removed; the system's for temporary files where empty")
	flags.IntVar(&s.queries, "queries", 40, "searches whose recall is measured, at each size")
	flags.DurationVar(&s.repeat, "repeat", 3*time.Second, "how long each question is asked again and again, at most 50 times")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	if s.sizes, err = parseSizes(*sizes); err != nil {
		return fmt.Errorf("-sizes: %w", err)
	}
	if s.queries < 1 {
		return errors.New("-queries: must be at least 1")
	}
	s.texts, s.embeddings = "../internal/bench/workload/corpus/conversations.ndjson.gz", "../internal/bench/workload/corpus/embedded.ndjson.gz"
	if *data != "" {
		s.texts, s.embeddings = filepath.Join(*data, "sgd-train.ndjson.gz"), filepath.Join(*data, "sgd-train-embedded.ndjson.gz")
	}
	document, err := os.ReadFile(*out)
	if err != nil {
		return err
	}
	if _, err := renew(document, nil); err != nil {
		return fmt.Errorf("%s: %w", *out, err)
	}
	machine := bench.ThisMachine(*version)
	// The figures are written after each size, because a large one takes an hour.
	return s.measure(ctx, func(r *results) error {
		renewed, err := renew(document, []byte(report(machine, r)))
		if err != nil {
			return err
		}
		return os.WriteFile(*out, renewed, 0o644)
	})
}

// parseSizes parses a list of sizes.
func parseSizes(text string) ([]size, error) {
	var sizes []size
	for part := range strings.SplitSeq(text, ",") {
		contents, vectors, ok := strings.Cut(part, ":")
		c, err1 := strconv.Atoi(contents)
		v, err2 := strconv.Atoi(vectors)
		if !ok || err1 != nil || err2 != nil || c < 1000 || c > 1_000_000_000 || v < 100 || v > c {
			return nil, fmt.Errorf("%q is not contents:vectors, with from 1000 to a billion contents, and from 100 vectors to as many as there are contents", part)
		}
		sizes = append(sizes, size{c, v})
	}
	return sizes, nil
}

// The figures stand between these lines.
const (
	beginMark = "<!-- searchbench -->\n"
	endMark   = "<!-- /searchbench -->\n"
)

// renew replaces the figures of the document.
func renew(document, figures []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(document, []byte(beginMark))
	_, after, ended := bytes.Cut(rest, []byte(endMark))
	if !found || !ended {
		return nil, errors.New("has no place for the figures: " + strings.TrimSpace(beginMark) + " and " + strings.TrimSpace(endMark))
	}
	return bytes.Join([][]byte{before, []byte(beginMark), figures, []byte(endMark), after}, nil), nil
}
