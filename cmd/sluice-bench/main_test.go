package main

import (
	"io"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sluicehq/sluice/cmd/internal/settingstest"
	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	testscript.Main(m, map[string]func(){"sluice-bench": main})
}

// TestScript runs the program as a user does.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", WorkdirRoot: t.TempDir(), UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

func TestSettingsAreDocumented(t *testing.T) {
	_, section := settingstest.Guide(t)
	settingstest.Check(t, newParser(new(cli), io.Discard, io.Discard).Model, section, 20)
}
