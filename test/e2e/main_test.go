package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/engine/enginetest"
)

// sluiceBinary is the program that all tests run. TestMain builds it.
var sluiceBinary string

func TestMain(m *testing.M) {
	engine.ChildMain()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	sluiceBinary = filepath.Join(dir, "sluice")
	if err := build(sluiceBinary); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() {
		for _, end := range slices.Backward(atEnd) {
			end()
		}
	}()
	return enginetest.Main(m)
}

// atEnd is called when all tests have ended, in reverse.
var atEnd []func()

// build builds the binary with the tests' tags, and with the race detector
// where the tests have it.
func build(target string, flags ...string) error {
	cgo := "CGO_ENABLED=0"
	if raceDetector {
		flags, cgo = append(flags, "-race"), "CGO_ENABLED=1"
	}
	args := append([]string{"build", "-tags", buildTags, "-o", target}, flags...)
	cmd := exec.Command("go", append(args, "./cmd/sluice")...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return nil
}

// eventually asks until it gets no error. The test fails with the last error
// when that takes longer than the bound.
func eventually(t *testing.T, bound time.Duration, what string, ask func() error) {
	t.Helper()
	for began := time.Now(); ; {
		err := ask()
		if err == nil {
			return
		}
		waited := time.Since(began)
		if waited > bound {
			t.Fatalf("%s: not within %s: %v", what, bound, err)
		}
		// Some questions cost as much as what they are about.
		<-time.After(min(max(10*time.Millisecond, waited/10), 250*time.Millisecond))
	}
}
