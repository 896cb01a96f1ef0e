package main

import (
	"context"
	"io"
	"os"

	"github.com/sluicehq/sluice/internal/app"
)

type mcpCmd struct{ clientFlags }

// Run serves the client that started the process, until it closes standard input.
func (c *mcpCmd) Run(ctx context.Context, e *env) error {
	to, err := c.client()
	if err != nil {
		return err
	}
	client := app.MCPClient{Client: to, Version: version}
	return client.Run(ctx, os.Stdin, nopCloser{e.stdout})
}

// nopCloser is a writer that the end of the protocol leaves open.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
