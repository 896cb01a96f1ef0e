package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sluicehq/sluice/internal/app"
)

type importCmd struct {
	clientFlags
	Files []string `arg:"" optional:"" help:"Files of NDJSON, as sluice export writes them: an event a line. Without any: standard input." type:"existingfile"`
}

// Run creates the events of files.
func (c *importCmd) Run(ctx context.Context, e *env) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	into := app.ImportClient{Client: client, Log: e.log}
	if len(c.Files) == 0 {
		return importFrom(ctx, e, into, os.Stdin)
	}
	for _, name := range c.Files {
		file, err := os.Open(name) //nolint:gosec // the caller's own file
		if err != nil {
			return err
		}
		err = importFrom(ctx, e, into, file)
		_ = file.Close() // it was only read
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func importFrom(ctx context.Context, e *env, into app.ImportClient, in io.Reader) error {
	sum, err := into.Run(ctx, in)
	_, printErr := fmt.Fprintf(e.stdout, "created %d events; %d were there already, %d were refused\n", sum.Created, sum.Known, sum.Refused)
	if err == nil && sum.Refused > 0 {
		err = errors.New("some events were refused")
	}
	return errors.Join(err, printErr)
}
