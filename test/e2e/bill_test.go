package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestBill runs what the Dockerfile runs to write the bill of materials, of the
// version that the Dockerfile names, on the binary of the tests.
func TestBill(t *testing.T) {
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile(`go install .* (\S*/cyclonedx-gomod@\S+)`).FindSubmatch(dockerfile)
	command := regexp.MustCompile(`RUN cyclonedx-gomod (bin .*) -version \S+ -output \S+ \S+`).FindSubmatch(dockerfile)
	if program == nil || command == nil {
		t.Fatal("the Dockerfile does not install or run cyclonedx-gomod")
	}
	run := func(binary string) (path, out string, err error) {
		path = filepath.Join(t.TempDir(), "bill.json")
		args := append([]string{"run", string(program[1])}, strings.Fields(string(command[1]))...)
		cmd := exec.CommandContext(t.Context(), "go", append(args, "-version", "v1.2.3", "-output", path, binary)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		all, err := cmd.CombinedOutput()
		return path, string(all), err
	}
	path, out, err := run(sluiceBinary)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	checkBill(t, path)
	if _, _, err := run("bill_test.go"); err == nil {
		t.Error("a file that is no program has a bill")
	}
}

// checkBill checks that a bill of materials is of Sluice, and names the standard
// library and a module that Sluice is linked with, with its checksum.
func checkBill(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type component struct {
		Name, Version, PURL string
		Hashes              []struct{ Alg, Content string }
	}
	var bill struct {
		Metadata   struct{ Component component }
		Components []component
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	if got := bill.Metadata.Component.Name; got != "github.com/sluicehq/sluice" {
		t.Errorf("the bill is of %s", got)
	}
	found := map[string]component{}
	for _, c := range bill.Components {
		found[c.Name] = c
	}
	if std := found["std"]; !strings.HasPrefix(std.Version, "go1.") {
		t.Errorf("std has version %q", std.Version)
	}
	lib := found["github.com/twmb/franz-go"]
	if lib.Version == "" || !strings.Contains(lib.PURL, "@"+lib.Version) {
		t.Errorf("the library is %+v", lib)
	}
	if len(lib.Hashes) == 0 || len(lib.Hashes[0].Content) != 64 {
		t.Errorf("the library's checksum is %v", lib.Hashes)
	}
}
