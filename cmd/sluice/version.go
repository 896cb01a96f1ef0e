package main

import (
	"fmt"
	"runtime/debug"

	"github.com/sluicehq/sluice/internal/engine"
)

type versionCmd struct{}

func (versionCmd) Run(e *env) error {
	v := version
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		_, err := fmt.Fprintf(e.stdout, "sluice %s, %s, embedded ClickHouse %s\n", v, info.GoVersion, engine.LibraryVersion)
		return err
	}
	_, err := fmt.Fprintf(e.stdout, "sluice %s\n", v)
	return err
}
