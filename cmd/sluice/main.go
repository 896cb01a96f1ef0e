// Command sluice is an event pipeline: HTTP API, Kafka, consumer, ClickHouse.
package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/sluicehq/sluice/cmd/internal/commandline"
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

// cli is the command line.
type cli struct {
	commandline.LogFlags
	Pprof string `help:"Serve Go's profiles on this loopback address, host:port, under /debug/pprof/." placeholder:"ADDR"`

	Serve       serveCmd       `cmd:"" help:"Run the whole pipeline: the API and the consumer, with an embedded broker and an embedded ClickHouse unless addresses of others are given."`
	API         apiCmd         `cmd:"" name:"api" help:"Run the HTTP API alone."`
	Consume     consumeCmd     `cmd:"" help:"Run the consumer alone."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database's schema up to date."`
	SQL         sqlCmd         `cmd:"" name:"sql" help:"Ask a running sluice in SQL: a prompt, or one query whose answer is a table, JSON, CSV or Parquet."`
	Export      exportCmd      `cmd:"" help:"Write the events of a running sluice to a file, as NDJSON or Parquet."`
	Import      importCmd      `cmd:"" help:"Create the events of files of NDJSON in a running sluice, through its log."`
	MCP         mcpCmd         `cmd:"" name:"mcp" help:"Serve a client of the Model Context Protocol, such as an agent, on standard input and output, with the API of a running sluice."`
	DLQ         dlqCmd         `cmd:"" name:"dlq" help:"List or replay dead letters."`
	Offsets     offsetsCmd     `cmd:"" help:"Show where the consumer group is in the log, or set it back."`
	Erase       eraseCmd       `cmd:"" help:"Merge every month that has contents of deleted events now, so that these leave ClickHouse's disk. Without this command the consumer does it later: see --erase-after."`
	Key         keyCmd         `cmd:"" help:"Make API keys."`
	Healthcheck healthcheckCmd `cmd:"" help:"Ask a running sluice whether it is healthy. The exit code is 0 if it is."`
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

// run runs the command line and returns the process's exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	return commandline.Run(ctx, newParser(&c, stdout, stderr), args, stderr, func() any {
		return &env{stdout: stdout, log: c.Logger(stderr), pprof: c.Pprof}
	})
}

func newParser(c *cli, stdout, stderr io.Writer) *kong.Kong {
	return commandline.NewParser(c, "sluice",
		"Sluice takes events of conversations over HTTP, orders them in Kafka, and keeps them in ClickHouse.", stdout, stderr,
		kong.ExplicitGroups([]kong.Group{
			{Key: "memory", Title: "Memory:"},
			{Key: "http", Title: "HTTP:"},
			{Key: "kafka", Title: "Kafka:"},
			{Key: "clickhouse", Title: "ClickHouse:"},
			{Key: "embedded", Title: "Embedded broker and database:"},
			{Key: "consumer", Title: "Consumer:"},
		}),
	)
}
