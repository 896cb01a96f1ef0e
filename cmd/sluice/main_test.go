package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	testscript.Main(m, map[string]func(){"sluice": main})
}

// TestScript runs the command as a user does: testdata/script has a file for
// each subcommand, with its output and exit code.
func TestScript(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: t.TempDir(),
		Setup: func(env *testscript.Env) error {
			// The library is installed for the user, whose home the scripts do not have.
			env.Setenv("XDG_CACHE_HOME", cache)
			return nil
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}
