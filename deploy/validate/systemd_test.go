package validate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	// systemdVar says what to do without systemd: 1 fails the tests, 0 skips them
	// even with it, unset skips them.
	systemdVar = "SLUICE_TEST_SYSTEMD"

	// installed is where the units expect the program.
	installed = "/usr/local/bin/sluice"

	// exposureMax bounds what "systemd-analyze security" gives a unit, from 0 for
	// no exposure to 100.
	exposureMax = "20"
)

func requireSystemd(t *testing.T, tool string) {
	t.Helper()
	mode := os.Getenv(systemdVar)
	if mode == "0" {
		t.Skipf("%s=0", systemdVar)
	}
	if _, err := exec.LookPath(tool); err != nil {
		if mode == "1" {
			t.Fatalf("%s=1: %v", systemdVar, err)
		}
		t.Skipf("no systemd: %v", err)
	}
}

// unit is a unit file: the values of each key, in order, whatever its section.
type unit struct {
	name   string
	values map[string][]string
}

func readUnits(t *testing.T) []unit {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(units, "*.service"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no units in %s: %v", units, err)
	}
	var all []unit
	for _, path := range paths {
		u := unit{name: filepath.Base(path), values: map[string][]string{}}
		text := strings.ReplaceAll(readFile(t, path), "\\\n", " ")
		for line := range strings.Lines(text) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			if ok && !strings.HasPrefix(key, "#") {
				u.values[key] = append(u.values[key], value)
			}
		}
		all = append(all, u)
	}
	return all
}

// command is the program's arguments.
func (u unit) command(t *testing.T) []string {
	t.Helper()
	starts := u.values["ExecStart"]
	if len(starts) != 1 {
		t.Fatalf("%s: %d ExecStart", u.name, len(starts))
	}
	words := strings.Fields(starts[0])
	if words[0] != installed {
		t.Errorf("%s: starts %s, not %s", u.name, words[0], installed)
	}
	return words[1:]
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// install copies the units into a directory, with the real program's path.
func install(t *testing.T) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for _, u := range readUnits(t) {
		text := strings.ReplaceAll(readFile(t, filepath.Join(units, u.name)), installed, sluiceBinary)
		path := filepath.Join(dir, u.name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// verify is what "systemd-analyze verify" has to say of a unit and of those that it names.
func verify(path string) (string, error) {
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	return string(out), err
}

func TestUnitsVerify(t *testing.T) {
	requireSystemd(t, "systemd-analyze")
	for _, path := range install(t) {
		if out, err := verify(path); err != nil || out != "" {
			t.Errorf("%s: %v\n%s", filepath.Base(path), err, out)
		}
	}
	// That it would say so.
	path := install(t)[0]
	text := strings.Replace(readFile(t, path), "[Service]", "[Service]\nRestartSeconds=1", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := verify(path); !strings.Contains(out, "RestartSeconds") {
		t.Errorf("a key that does not exist goes unnoticed: %q", out)
	}
}

func TestUnitsExposure(t *testing.T) {
	requireSystemd(t, "systemd-analyze")
	for _, path := range install(t) {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager",
			"--threshold="+exposureMax, path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(path), err, out)
		}
	}
}

func TestUnitsUsers(t *testing.T) {
	requireSystemd(t, "systemd-sysusers")
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	config, err := filepath.Abs(filepath.Join(units, "sluice.sysusers"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-sysusers", "--root="+root, config).CombinedOutput(); err != nil {
		t.Fatalf("systemd-sysusers: %v\n%s", err, out)
	}
	groups := readFile(t, filepath.Join(root, "etc", "group"))
	for _, u := range readUnits(t) {
		for _, group := range u.values["SupplementaryGroups"] {
			if !strings.Contains("\n"+groups, "\n"+group+":") {
				t.Errorf("%s: the group %s is not made", u.name, group)
			}
		}
	}
}

func TestUnitsCommands(t *testing.T) {
	var commands []string
	for _, u := range readUnits(t) {
		args := u.command(t)
		checkArguments(t, args)
		commands = append(commands, args[0])
		for _, credential := range u.values["LoadCredential"] {
			name, _, _ := strings.Cut(credential, ":")
			if !slices.ContainsFunc(args, func(arg string) bool {
				return strings.HasSuffix(arg, "=${CREDENTIALS_DIRECTORY}/"+name)
			}) {
				t.Errorf("%s: the credential %s is not used", u.name, name)
			}
		}
	}
	slices.Sort(commands)
	if want := []string{"api", "consume", "migrate", "serve"}; !slices.Equal(commands, want) {
		t.Errorf("units of %v, want %v", commands, want)
	}
	// Those in comments too.
	var names []string
	for line := range strings.Lines(readFile(t, filepath.Join(units, "sluice.env.example"))) {
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "#"), "=")
		if ok && !strings.Contains(name, " ") {
			names = append(names, name)
		}
	}
	if len(names) < 3 {
		t.Errorf("the example has the variables %q", names)
	}
	checkVariables(t, names, "api", "consume")
}

func TestUnitsStart(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"clickhouse-password": "secret\n", "kafka-password": "", "api-keys": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var env []string
	for line := range strings.Lines(readFile(t, filepath.Join(units, "sluice.env.example"))) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			env = append(env, line)
		}
	}
	for _, u := range readUnits(t) {
		args := u.command(t)
		if args[0] == "serve" {
			continue // it has its own servers
		}
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "${CREDENTIALS_DIRECTORY}", dir)
				args[i] = strings.ReplaceAll(args[i], "%i", "9101")
			}
			checkStart(t, dir, args, env)
		})
	}
}
