// Walkthrough runs the servers of the recorded walk-through, one Apache Kafka
// and one ClickHouse, apart from any Sluice, so that its halves can be started,
// killed and looked behind. It needs what "make engine kafka" installs.
//
//	walkthrough -dir DIR -env FILE
//
// It writes their addresses to FILE, as assignments that a shell can read, when
// both answer, and runs until it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "walkthrough:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("walkthrough", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", "servers", "directory for the data, which is made")
	env := flags.String("env", "servers.env", "file to write the addresses to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kafkaDir := filepath.Join(*dir, "kafka")
	if err := os.MkdirAll(kafkaDir, 0o700); err != nil {
		return err
	}
	kafka, err := kafkatest.New(kafkaDir, kafkatest.Options{}) //nolint:contextcheck // starting has a bound of its own
	if err != nil {
		return err
	}
	defer kafka.Close()
	library, err := engine.Find("")
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := engine.New(engine.Config{Library: library, Dir: filepath.Join(*dir, "clickhouse")}, log, nil)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	if err := e.WaitReady(ctx); err != nil {
		return err
	}
	if err := writeEnv(*env, kafka.Addrs[0], e); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Apache Kafka %s, ClickHouse %s\n", kafkatest.Version, engine.LibraryVersion)
	<-ctx.Done()
	return nil
}

// writeEnv writes the addresses whole or not at all: a shell waits for the file.
func writeEnv(path, broker string, e *engine.Engine) error {
	database := url.URL{Scheme: "clickhouse", User: url.UserPassword(engine.User, e.Password()), Host: e.Addr(), Path: "/" + engine.Database}
	web := url.URL{Scheme: "http", User: url.UserPassword(engine.User, e.Password()), Host: e.HTTPAddr(), Path: "/"}
	text := fmt.Sprintf("export SLUICE_KAFKA_BROKERS='%s' SLUICE_CLICKHOUSE_URL='%s'\nCLICKHOUSE_HTTP='%s'\n", broker, database.String(), web.String())
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
