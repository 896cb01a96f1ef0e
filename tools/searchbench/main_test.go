package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain() // the engine is this program, started once more
	os.Exit(m.Run())
}

// TestReport fills and measures a small size.
func TestReport(t *testing.T) {
	t.Chdir("..") // from where make runs it
	path := filepath.Join(t.TempDir(), "search.md")
	const text = "before\n" + beginMark + "STALE\n" + endMark + "after\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-sizes", "3000:1000", "-queries", "4", "-repeat", "1ms", "-out", path, "-dir", t.TempDir()}, io.Discard, os.Stderr); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + beginMark, "| contents, and events | target | 3,000 |\n|---|---|---|\n| vectors |  | 1,000 |\n", "| recall of the nearest 10, of recombined embeddings | 0.98 | 1.000 |\n", endMark + "after\n"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the document lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "STALE") || strings.Count(string(got), beginMark) != 1 {
		t.Errorf("the figures from before are still there:\n%s", got)
	}
}

func TestFlagsThatAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "search.md")
	if err := os.WriteFile(path, []byte("no place\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"sizes":             {[]string{"-sizes", "1000000"}, "-sizes"},
		"too few contents":  {[]string{"-sizes", "10:10"}, "-sizes"},
		"more vectors":      {[]string{"-sizes", "1000:2000"}, "-sizes"},
		"no searches":       {[]string{"-queries", "0"}, "-queries"},
		"an argument":       {[]string{"more"}, "more"},
		"no such document":  {[]string{"-out", path + "x"}, "no such file"},
		"no place for them": {[]string{"-out", path}, "searchbench"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), c.args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one about %q", err, c.want)
			}
		})
	}
}
