// Command sluice is an event pipeline: HTTP API, Kafka, consumer, ClickHouse.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/sluicehq/sluice/internal/app"
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

// cli is the command line. Every flag is also read from the environment, as
// SLUICE_ and its name in capitals with underscores.
type cli struct {
	LogLevel  slog.Level `help:"Lowest level that is logged: debug, info, warn or error." default:"info"`
	LogFormat string     `help:"Form of the log on standard error: text or json." enum:"text,json" default:"text"`
	Pprof     string     `help:"Serve Go's profiles on this loopback address, host:port, under /debug/pprof/." placeholder:"ADDR"`

	Serve       serveCmd       `cmd:"" help:"Run the whole pipeline: API and consumer, with an embedded broker and database where no other is given."`
	API         apiCmd         `cmd:"" name:"api" help:"Run the HTTP API alone."`
	Consume     consumeCmd     `cmd:"" help:"Run the consumer alone."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database's schema up to date."`
	DLQ         dlqCmd         `cmd:"" name:"dlq" help:"Look into the dead-letter topic, and replay from it."`
	Offsets     offsetsCmd     `cmd:"" help:"Show where the consumer group is in the log, and set it back."`
	Erase       eraseCmd       `cmd:"" help:"Merge, now, every month that has deleted content, so that it leaves ClickHouse's disk. Consumers do it by themselves, later: see --erase-after."`
	Key         keyCmd         `cmd:"" help:"Make API keys."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running sluice whether it is well: exit code 0 if it is."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// env is what a command gets from its surroundings.
type env struct {
	stdout io.Writer
	log    *slog.Logger
	// pprof is where profiles are served, empty for nowhere.
	pprof string
}

// process is the configuration that all long-running commands share.
func (e *env) process(memory *memoryFlags) app.ProcessConfig {
	return app.ProcessConfig{MemoryLimit: memory.MemoryLimit, ProfilesAddr: e.pprof}
}

// exit is how kong's help and errors leave run.
type exit int

// run runs the command line and returns the process's exit code: 0 when all
// went well, 1 when the command failed, 2 when the command line is wrong.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (code int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case exit:
			code = int(r)
		default:
			panic(r)
		}
	}()
	var c cli
	parser := newParser(&c, stdout, stderr)
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "sluice: %v\nRun \"sluice --help\" for what there is.\n", err)
		return 2
	}
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var handler slog.Handler = slog.NewTextHandler(stderr, options)
	if c.LogFormat == "json" {
		handler = slog.NewJSONHandler(stderr, options)
	}
	e := &env{stdout: stdout, log: slog.New(handler), pprof: c.Pprof}
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(e); err != nil {
		fmt.Fprintf(stderr, "sluice %s: %v\n", command.Command(), err)
		return 1
	}
	return 0
}

// newParser returns the parser of a command line, which leaves by panicking with
// an exit code.
func newParser(c *cli, stdout, stderr io.Writer) *kong.Kong {
	parser, err := kong.New(c,
		kong.Name("sluice"),
		kong.Description("Sluice takes events of conversations over HTTP, orders them in Kafka, and keeps them in ClickHouse.\n\n"+
			"Every flag can be given as a variable: --kafka-brokers is SLUICE_KAFKA_BROKERS."),
		kong.DefaultEnvars("SLUICE"),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.ExplicitGroups([]kong.Group{
			{Key: "memory", Title: "Memory:"},
			{Key: "http", Title: "HTTP:"},
			{Key: "kafka", Title: "Kafka:"},
			{Key: "clickhouse", Title: "ClickHouse:"},
			{Key: "embedded", Title: "Embedded broker and database:"},
			{Key: "consumer", Title: "Consumer:"},
		}),
	)
	if err != nil {
		panic(fmt.Sprintf("BUG: command line: %v", err))
	}
	return parser
}
