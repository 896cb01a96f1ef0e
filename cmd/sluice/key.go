package main

import (
	"fmt"

	"github.com/sluicehq/sluice/internal/api"
)

type keyCmd struct {
	New keyNewCmd `cmd:"" help:"Make an API key. It prints the key, which is stored nowhere, and the line for the file of --api-keys."`
}

type keyNewCmd struct {
	Name   string `arg:"" help:"Name of the key's owner, which the log shows: letters, digits, dots, dashes and underscores."`
	Scopes string `help:"What the key allows: write, read, admin." default:"write,read"`
}

// Run prints a new key and its line.
func (c *keyNewCmd) Run(e *env) error {
	scopes, err := api.ParseScopes(c.Scopes)
	if err != nil {
		return fmt.Errorf("--scopes: %w", err)
	}
	key, line, err := api.GenerateKey(c.Name, scopes)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "key:  %s\nline: %s\n", key, line)
	return err
}
