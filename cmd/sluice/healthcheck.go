package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// healthBytesMax is how much of a bad answer is shown.
const healthBytesMax = 500

type healthcheckCmd struct {
	URL     string        `arg:"" optional:"" help:"URL to ask. /healthz says that the process runs, /readyz that it takes writes and answers reads, /readyz?for=writes that it takes writes." default:"http://127.0.0.1:8080/healthz"`
	Timeout time.Duration `help:"How long to wait for the answer." default:"3s"`
}

// Run asks a running sluice how it is. It is for container images, which have
// no other program that could.
func (c *healthcheckCmd) Run(ctx context.Context, e *env) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, healthBytesMax))
	if err != nil {
		return fmt.Errorf("GET %s: %w", c.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", c.URL, resp.Status, text)
	}
	_, err = fmt.Fprintf(e.stdout, "%s\n", resp.Status)
	return err
}
