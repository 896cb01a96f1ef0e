package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// TestRun reads the bill of this very test program.
func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(self, &out); err != nil {
		t.Fatal(err)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(&out, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if got := bom.Metadata.Component.Name; got != "github.com/sluicehq/sluice" {
		t.Errorf("the bill is of %s", got)
	}
	found := map[string]cdx.Component{}
	for _, c := range *bom.Components {
		found[c.Name] = c
	}
	if std := found["std"]; !strings.HasPrefix(std.Version, "go1.") {
		t.Errorf("std has version %q", std.Version)
	}
	lib := found["github.com/CycloneDX/cyclonedx-go"]
	if lib.Version == "" || !strings.HasSuffix(lib.PackageURL, "@"+lib.Version) {
		t.Errorf("the library is %+v", lib)
	}
	if lib.Hashes == nil || len((*lib.Hashes)[0].Value) != 64 {
		t.Errorf("the library's checksum is %v", lib.Hashes)
	}
}

func TestRunRefuses(t *testing.T) {
	if err := run("main_test.go", &bytes.Buffer{}); err == nil {
		t.Error("a file that is no program has a bill")
	}
}
