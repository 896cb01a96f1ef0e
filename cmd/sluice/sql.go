package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/sluicehq/sluice/internal/app"
)

// queryBytesMax is more than the API takes for a query.
const queryBytesMax = 1 << 20

type sqlCmd struct {
	clientFlags
	Query  string `short:"q" help:"Query. Without it and --file: a prompt on a terminal, otherwise standard input." placeholder:"SQL"`
	File   string `short:"f" help:"File that holds the query." placeholder:"FILE" type:"path"`
	Output string `short:"o" help:"File for the answer, which is replaced when the answer is whole." placeholder:"FILE" type:"path"`
	Format string `help:"table, json, csv or parquet. auto: what the name of --output ends in; otherwise table on a terminal, and json." enum:"auto,table,json,csv,parquet" default:"auto"`
}

// Run asks a query, or prompts for queries.
func (c *sqlCmd) Run(ctx context.Context, e *env) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	client := app.SQLClient{Client: to}
	if c.Query != "" && c.File != "" {
		return errors.New("--query and --file: only one can be given")
	}
	input, screen := int(os.Stdin.Fd()), c.Output == "" && isTerminal(e.stdout)
	if c.Query == "" && c.File == "" && screen && term.IsTerminal(input) {
		return prompt(ctx, client, input)
	}
	text, err := c.text()
	if err != nil {
		return err
	}
	format := c.format(screen)
	if c.Output == "" {
		return client.Run(ctx, text, format, e.stdout)
	}
	return writeWhole(c.Output, func(out io.Writer) error { return client.Run(ctx, text, format, out) })
}

// text is the query.
func (c *sqlCmd) text() (string, error) {
	if c.Query != "" {
		return c.Query, nil
	}
	in := io.Reader(os.Stdin)
	if c.File != "" {
		file, err := os.Open(c.File)
		if err != nil {
			return "", fmt.Errorf("--file: %w", err)
		}
		defer func() { _ = file.Close() }() // it was only read
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, queryBytesMax))
	if err != nil {
		return "", fmt.Errorf("read the query: %w", err)
	}
	return string(text), nil
}

func (c *sqlCmd) format(screen bool) string {
	ending := strings.TrimPrefix(strings.ToLower(filepath.Ext(c.Output)), ".")
	switch {
	case c.Format != "auto":
		return c.Format
	case screen:
		return app.SQLTable
	case ending == app.SQLCSV || ending == app.SQLParquet:
		return ending
	}
	return app.SQLJSON
}

// writeWhole replaces a file when all of it is written.
func writeWhole(path string, write func(io.Writer) error) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	err = write(file)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// prompt reads queries from the terminal.
func prompt(ctx context.Context, client app.SQLClient, terminal int) error {
	cooked, err := term.MakeRaw(terminal)
	if err != nil {
		return fmt.Errorf("prompt: %w", err)
	}
	restore := func() { _ = term.Restore(terminal, cooked) } // the terminal is gone
	defer restore()
	pause := func() (resume func()) {
		restore()
		return func() { _, _ = term.MakeRaw(terminal) }
	}
	width, _, _ := term.GetSize(terminal)
	return client.Prompt(ctx, struct {
		io.Reader
		io.Writer
	}{os.Stdin, os.Stdout}, pause, width)
}
