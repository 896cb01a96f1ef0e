// Package commandline runs the command line of a program: it parses flags and
// their variables, makes the log, runs the chosen command, and turns what comes of
// it into an exit code.
package commandline

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/alecthomas/kong"
)

// LogFlags are the flags of a program's log.
type LogFlags struct {
	LogLevel  slog.Level `help:"Lowest level that is logged: debug, info, warn or error." default:"info"`
	LogFormat string     `help:"Format of the log on standard error: text or json." enum:"text,json" default:"text"`
}

// Logger returns a logger that writes to w as the flags say.
func (f *LogFlags) Logger(w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: f.LogLevel}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// exit is how kong's help and errors leave [Run].
type exit int

// Run parses args and runs the chosen command. It binds ctx for the command's Run
// method, and what bind returns, which is called after parsing. Run returns the
// process's exit code: 0 when all went well, 1 when the command failed, 2 when the
// command line is wrong.
func Run(ctx context.Context, parser *kong.Kong, args []string, stderr io.Writer, bind func() any) (code int) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case exit:
			code = int(r)
		default:
			panic(r)
		}
	}()
	name := parser.Model.Name
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "%[1]s: %[2]v\nRun \"%[1]s --help\" for what there is.\n", name, err)
		return 2
	}
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(bind()); err != nil {
		fmt.Fprintf(stderr, "%s %s: %v\n", name, command.Command(), err)
		return 1
	}
	return 0
}

// NewParser returns the parser of a program's command line, for [Run]. Every flag
// is also read from the environment, as SLUICE_ and its name in capitals with
// underscores. The parser leaves by panicking with an exit code.
func NewParser(flags any, name, description string, stdout, stderr io.Writer, options ...kong.Option) *kong.Kong {
	parser, err := kong.New(flags, append([]kong.Option{
		kong.Name(name),
		kong.Description(description + "\n\nEvery flag can be given as a variable: --kafka-brokers is SLUICE_KAFKA_BROKERS."),
		kong.DefaultEnvars("SLUICE"),
		kong.UsageOnError(),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	}, options...)...)
	if err != nil {
		panic(fmt.Sprintf("BUG: command line: %v", err))
	}
	return parser
}
