// Command sluice-bench measures a whole Sluice, with real conversations.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/sluicehq/sluice/cmd/internal/commandline"
	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/engine"
)

// version is set by the linker.
var version string

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// cli is the command line.
type cli struct {
	commandline.LogFlags

	Run     runCmd     `cmd:"" default:"withargs" help:"Create, update and delete events, and report the time until all of it is visible. Then verify it."`
	Readers readersCmd `cmd:"" help:"Measure how long readers wait, alone and beside many expensive queries."`
	Scale   scaleCmd   `cmd:"" help:"Measure what writes and queries cost as the table grows."`
}

// env is what a command gets from its surroundings.
type env struct {
	stdout io.Writer
	log    *slog.Logger
}

// run runs the command line and returns the process's exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	return commandline.Run(ctx, newParser(&c, stdout, stderr), args, stderr, func() any {
		return &env{stdout: stdout, log: c.Logger(stderr)}
	})
}

func newParser(c *cli, stdout, stderr io.Writer) *kong.Kong {
	return commandline.NewParser(c, "sluice-bench",
		"Measures a Sluice: the time of a load until all of it is visible and verified, what readers wait, and what a large table costs.",
		stdout, stderr)
}

// systemFlags say which Sluice is started to be measured.
type systemFlags struct {
	Binary  string `help:"File of the program sluice that is started. By default the one beside this program, or on the PATH." placeholder:"FILE" type:"path"`
	Libchdb string `help:"File of ClickHouse's library, for the started Sluice." placeholder:"FILE" type:"path"`
}

// system returns the configuration of a Sluice that keeps its data in a new
// directory within parent, which is the system's for temporary files where it is
// empty. Call remove when that Sluice is stopped.
func (f *systemFlags) system(parent string) (cfg bench.SystemConfig, remove func() error, err error) {
	binary, err := f.binary()
	if err != nil {
		return cfg, nil, err
	}
	dir, err := os.MkdirTemp(parent, "sluice-bench-")
	if err != nil {
		return cfg, nil, err
	}
	return bench.SystemConfig{Dir: dir, Binary: binary, Library: f.Libchdb}, func() error { return os.RemoveAll(dir) }, nil
}

// binary finds the program to start.
func (f *systemFlags) binary() (string, error) {
	if f.Binary != "" {
		return f.Binary, nil
	}
	if self, err := os.Executable(); err == nil {
		if beside, err := exec.LookPath(filepath.Join(filepath.Dir(self), "sluice")); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("sluice")
	if err != nil {
		return "", fmt.Errorf("--binary is required: %w", err)
	}
	return path, nil
}
