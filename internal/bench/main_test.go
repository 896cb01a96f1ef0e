package bench_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sluicehq/sluice/internal/bench"
	"github.com/sluicehq/sluice/internal/bench/workload"
	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	code := m.Run()
	if dir, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(dir))
	}
	os.Exit(code)
}

// startSystem starts the engine and sluice serve on the embedded broker, until
// the test's end.
func startSystem(t *testing.T) (*bench.System, workload.Target) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	system, err := bench.Start(t.Context(), bench.SystemConfig{Dir: t.TempDir(), Binary: path}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := system.Close(); err != nil {
			t.Error(err)
		}
	})
	to, err := system.Serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return system, to
}

// binary builds the program that the tests measure, at the first call.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-bench-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "sluice")
	if out, err := exec.Command("go", "build", "-o", path, "../../cmd/sluice").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sluice: %w: %s", err, out)
	}
	return path, nil
})
