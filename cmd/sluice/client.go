package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/sluicehq/sluice/internal/app"
)

// clientFlags are the flags of the commands that ask a running Sluice.
type clientFlags struct {
	URL        string `name:"url" help:"API of a running Sluice." default:"http://127.0.0.1:8080" placeholder:"URL"`
	APIKey     string `name:"api-key" help:"API key. Better given as a variable or a file." placeholder:"KEY"`
	APIKeyFile string `name:"api-key-file" help:"File that holds the API key." placeholder:"FILE" type:"path"`
}

func (c *clientFlags) client() (app.Client, error) {
	client := app.Client{URL: c.URL, Key: c.APIKey}
	if c.APIKeyFile != "" {
		key, err := os.ReadFile(c.APIKeyFile)
		if err != nil {
			return client, fmt.Errorf("--api-key-file: %w", err)
		}
		client.Key = strings.TrimSpace(string(key))
	}
	return client, nil
}
