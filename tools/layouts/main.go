// Command layouts compares ways to lay out the hot table on the embedded
// engine: sort keys, partitionings, granularities and row shapes. It fills
// each from the same generated events, measures the service's reads and writes
// on all of them in turns, before and after 1 % of the events were updated and
// 1 % deleted, checks that all give the same answers, and writes what it
// measured as JSON and as tables of Markdown. See docs/layouts.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/sluicehq/sluice/internal/engine"
)

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "layouts:", err)
		os.Exit(1)
	}
}

// report is the JSON that is written.
type report struct {
	Engine  string    `json:"engine"`
	CPUs    int       `json:"cpus"`
	Rows    int       `json:"rows"`
	Seed    int       `json:"seed"`
	Repeat  int       `json:"repeat"`
	Layouts []*result `json:"layouts"`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var names []string
	for _, l := range layouts() {
		names = append(names, l.name)
	}
	flags := flag.NewFlagSet("layouts", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rows := flags.Int("rows", 20_000_000, "events in the hot table; the layouts with texts hold a quarter of them")
	only := flags.String("only", "", "layouts to compare, separated by commas; default all: "+strings.Join(names, ", "))
	repeat := flags.Int("repeat", 6, "how often each query is measured; slow operations half as often")
	seed := flags.Int("seed", 1, "what the events are generated from")
	out := flags.String("out", "", "file for the figures as JSON; none when empty")
	library := flags.String("libchdb", "", "path of libchdb.so; default where scripts/install-libchdb.sh puts it")
	dir := flags.String("dir", "", "where to make the directory with the data, which is removed at the end; default the system's temporary directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	selected, err := selectLayouts(*only)
	if err != nil {
		return err
	}
	if *rows < 10_000 || *repeat < 1 {
		return errors.New("-rows must be at least 10000, and -repeat at least 1")
	}

	path, err := engine.Find(*library)
	if err != nil {
		return err
	}
	data, err := os.MkdirTemp(*dir, "sluice-layouts-")
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	e, err := engine.New(engine.Config{Library: path, Dir: data}, log, nil)
	if err != nil {
		return err
	}
	engineCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan error, 1)
	go func() { stopped <- e.Run(engineCtx) }()
	defer func() {
		stop()
		err = errors.Join(err, <-stopped)
	}()
	if err := e.WaitReady(ctx); err != nil {
		return err
	}

	c := &comparison{
		client:  &client{addr: e.HTTPAddr(), user: engine.User, password: e.Password(), database: "default"},
		log:     log,
		plan:    plan{rows: *rows, seed: *seed, lookupKeys: min(keysPerLookup, *rows/100)},
		layouts: selected,
		repeat:  *repeat,
	}
	if err := c.exec(ctx, "CREATE DATABASE layouts ENGINE = Atomic"); err != nil {
		return err
	}
	c.client.database = "layouts"
	if err := c.run(ctx); err != nil {
		return err
	}
	version, err := c.client.query(ctx, "SELECT version()")
	if err != nil {
		return err
	}
	rep := report{Engine: strings.TrimSpace(version.body), CPUs: runtime.NumCPU(), Rows: *rows, Seed: *seed, Repeat: *repeat}
	for _, l := range selected {
		rep.Layouts = append(rep.Layouts, c.results[l.name])
	}
	if *out != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return fmt.Errorf("write figures: %w", err)
		}
		if err := os.WriteFile(*out, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("write figures: %w", err)
		}
	}
	return rep.markdown(stdout)
}

func selectLayouts(only string) ([]layout, error) {
	all := layouts()
	if only == "" {
		return all, nil
	}
	var selected []layout
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(l layout) bool { return l.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only: there is no layout %q", name)
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}
