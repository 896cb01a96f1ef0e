package main

import (
	"fmt"

	"github.com/sluicehq/sluice/internal/api"
)

type keyCmd struct {
	New keyNewCmd `cmd:"" help:"Make a key. It is printed once; the file of keys gets the line below it."`
}

type keyNewCmd struct {
	Name   string `arg:"" help:"Who has it, for the log: letters, digits, dots, dashes and underscores."`
	Scopes string `help:"What it may do: write, read, admin." default:"write,read"`
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
