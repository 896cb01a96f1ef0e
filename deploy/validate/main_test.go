package validate_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	units     = "../systemd"
	manifests = "../kubernetes"

	// secrets is where the processes find their secrets, in both.
	secrets = "/etc/sluice/"

	// startBound is how long a process may take until it has read its configuration.
	startBound = 30 * time.Second
)

// sluiceBinary is the program that the units and the manifests start. TestMain builds it.
var sluiceBinary string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-validate-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "validate:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	sluiceBinary = filepath.Join(dir, "sluice")
	cmd := exec.Command("go", "build", "-o", sluiceBinary, "./cmd/sluice")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "validate: build sluice: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// command is what the program says of one of its commands.
type command struct{ flags, variables []string }

var (
	helpFlag     = regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--(?:\[no-\])?([a-z0-9-]+)`)
	helpVariable = regexp.MustCompile(`\$(SLUICE_[A-Z0-9_]+)`)
)

func help(t *testing.T, name string) command {
	t.Helper()
	out, err := exec.Command(sluiceBinary, name, "--help").Output()
	if err != nil {
		t.Fatalf("sluice %s --help: %v", name, err)
	}
	var c command
	for _, match := range helpFlag.FindAllSubmatch(out, -1) {
		c.flags = append(c.flags, string(match[1]))
	}
	for _, match := range helpVariable.FindAllSubmatch(out, -1) {
		c.variables = append(c.variables, string(match[1]))
	}
	if len(c.flags) < 3 || len(c.variables) < 3 {
		t.Fatalf("sluice %s --help names the flags %q and the variables %q", name, c.flags, c.variables)
	}
	return c
}

// checkArguments checks that the command has every flag that it is given.
func checkArguments(t *testing.T, args []string) {
	t.Helper()
	if len(args) == 0 {
		t.Fatal("no command")
	}
	known := help(t, args[0]).flags
	for _, arg := range args[1:] {
		name, _, hasValue := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !strings.HasPrefix(arg, "--") || !hasValue {
			t.Errorf("sluice %s: argument %q is not of the form --flag=value", args[0], arg)
		}
		if !slices.Contains(known, name) {
			t.Errorf("sluice %s: there is no flag --%s", args[0], name)
		}
	}
}

// checkVariables checks that one of the commands has every variable that is
// Sluice's by its name.
func checkVariables(t *testing.T, variables []string, commands ...string) {
	t.Helper()
	var known []string
	for _, name := range commands {
		known = append(known, help(t, name).variables...)
	}
	for _, name := range variables {
		if strings.HasPrefix(name, "SLUICE_") && !slices.Contains(known, name) {
			t.Errorf("variable %s is none of %s", name, strings.Join(commands, ", "))
		}
	}
}

// checkStart runs the program with these arguments and variables, and checks
// that it takes its whole configuration, up to where it looks for its servers,
// which are not there. Its secrets are in dir.
func checkStart(t *testing.T, dir string, args, env []string) {
	t.Helper()
	args = slices.Clone(args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], secrets, dir+"/")
		// Ports are chosen freely: others are tested beside this.
		args[i] = listenFlag.ReplaceAllString(args[i], "${1}127.0.0.1:0")
	}
	cmd := exec.Command(sluiceBinary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	log := &watched{want: "trying again", seen: make(chan struct{})}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-log.seen:
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("sluice %s: %v", args[0], err)
		}
		err = <-ended
	case <-time.After(startBound):
		_ = cmd.Process.Kill()
		err = fmt.Errorf("%w, killed after %s", <-ended, startBound)
	}
	switch {
	case args[0] == "migrate":
		// It does not try again.
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log.String(), "dial") {
			t.Errorf("sluice %s: %v, not for want of a server:\n%s", args, err, log)
		}
	case err != nil:
		t.Errorf("sluice %s: %v:\n%s", args, err, log)
	}
}

var listenFlag = regexp.MustCompile(`^(--(?:metrics-)?listen=).*`)

// watched keeps what is written, and tells when it has what is wanted.
type watched struct {
	want string
	seen chan struct{}

	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := strings.Contains(w.buf.String(), w.want)
	w.buf.Write(p)
	if !before && strings.Contains(w.buf.String(), w.want) {
		close(w.seen)
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
