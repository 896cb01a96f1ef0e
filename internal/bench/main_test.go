package bench_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

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
