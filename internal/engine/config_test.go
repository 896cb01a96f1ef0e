package engine_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/engine"
)

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*engine.Config)
		want []string // fields that the error names; none: valid
	}{
		{"minimal", func(*engine.Config) {}, nil},
		{"everything", func(c *engine.Config) {
			c.Host, c.TCPPort, c.HTTPPort = "::1", 9000, 8123
			c.MemoryMaxBytes = engine.MemoryMinBytes
			c.Settings = map[string]string{"max_threads": "2"}
			c.ServerSettings = map[string]string{"mark_cache_size": "1"}
			c.StartTimeout, c.StopTimeout = time.Second, time.Second
		}, nil},
		{"no library", func(c *engine.Config) { c.Library = "" }, []string{"Library"}},
		{"no directory", func(c *engine.Config) { c.Dir = "" }, []string{"Dir"}},
		{"every address", func(c *engine.Config) { c.Host = "0.0.0.0" }, []string{"Host"}},
		{"host name", func(c *engine.Config) { c.Host = "localhost" }, []string{"Host"}},
		{"negative port", func(c *engine.Config) { c.TCPPort = -1 }, []string{"TCPPort"}},
		{"port too high", func(c *engine.Config) { c.HTTPPort = 65536 }, []string{"HTTPPort"}},
		{"same port", func(c *engine.Config) { c.TCPPort, c.HTTPPort = 9000, 9000 }, []string{"HTTPPort"}},
		{"little memory", func(c *engine.Config) { c.MemoryMaxBytes = engine.MemoryMinBytes - 1 }, []string{"MemoryMaxBytes"}},
		{"not a setting", func(c *engine.Config) { c.Settings = map[string]string{"a><b": "1"} }, []string{"Settings"}},
		{"not a server setting", func(c *engine.Config) { c.ServerSettings = map[string]string{"": "1"} }, []string{"ServerSettings"}},
		{"negative timeouts", func(c *engine.Config) { c.StartTimeout, c.StopTimeout = -1, -1 }, []string{"StartTimeout", "StopTimeout"}},
		{"nothing right", func(c *engine.Config) { *c = engine.Config{TCPPort: -1} }, []string{"Library", "Dir", "TCPPort"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := engine.Config{Library: "libchdb.so", Dir: "data"}
			tt.edit(&cfg)
			err := cfg.Validate()
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatalf("no error, want %v", tt.want)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("got %q, want one error for each of %v", lines, tt.want)
			}
			for i, field := range tt.want {
				if !strings.HasPrefix(lines[i], "engine: "+field+": ") {
					t.Errorf("got %q, want an error that names %s", lines[i], field)
				}
			}
			if _, err := engine.New(cfg, nil, nil); err == nil {
				t.Error("New takes the configuration")
			}
		})
	}
}

func TestFind(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache) // what os.UserCacheDir goes by, except on darwin
	t.Setenv("HOME", cache)
	userCache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}

	_, err = engine.Find("")
	if !errors.Is(err, engine.ErrNoLibrary) || !strings.Contains(err.Error(), "scripts/install-libchdb.sh") {
		t.Errorf("nowhere: got %v, want ErrNoLibrary and how to install it", err)
	}

	installed := filepath.Join(userCache, "sluice", "libchdb-"+engine.LibraryVersion, "libchdb.so")
	touch(t, installed)
	if got, err := engine.Find(""); err != nil || got != installed {
		t.Errorf("installed: got %q, %v, want %q", got, err, installed)
	}

	explicit := filepath.Join(t.TempDir(), "my.so")
	if got, err := engine.Find(explicit); !errors.Is(err, engine.ErrNoLibrary) {
		t.Errorf("explicit and missing: got %q, %v, want ErrNoLibrary", got, err)
	}
	touch(t, explicit)
	if got, err := engine.Find(explicit); err != nil || got != explicit {
		t.Errorf("explicit: got %q, %v, want %q", got, err, explicit)
	}
	if got, err := engine.Find(filepath.Dir(explicit)); err == nil {
		t.Errorf("a directory: got %q, want an error", got)
	}

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(exe), "libchdb.so")
	touch(t, beside)
	t.Cleanup(func() { _ = os.Remove(beside) })
	if got, err := engine.Find(""); err != nil || got != beside {
		t.Errorf("beside the program: got %q, %v, want %q", got, err, beside)
	}
}

func touch(tb testing.TB, path string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func TestScriptInstallsLibraryVersion(t *testing.T) {
	script, err := os.ReadFile("../../scripts/install-libchdb.sh")
	if err != nil {
		t.Fatal(err)
	}
	if want := "\nversion=" + engine.LibraryVersion + "\n"; !strings.Contains(string(script), want) {
		t.Errorf("install-libchdb.sh has no line %q", strings.TrimSpace(want))
	}
}
