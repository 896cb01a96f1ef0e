// Package golden compares what tests get with files of the repository. The flag
// -update of go test writes the files instead.
package golden

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//nolint:gochecknoglobals // a flag of the test's program
var update = flag.Bool("update", false, "write golden files and vectors instead of comparing with them")

// Compare fails the test if got differs from the file. With -update it writes the
// file instead, and its directory where there is none.
func Compare(tb testing.TB, path string, got []byte) {
	tb.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // as git checks it out
			tb.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path) //nolint:gosec // the test says which
	if err != nil {
		tb.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		tb.Errorf("%s differs from what the code gives (-want +got); run go test -update and look at the difference:\n%s",
			path, cmp.Diff(string(want), string(got)))
	}
}

// JSON is v as the files of vectors have it: indented, with no HTML escaped.
func JSON(tb testing.TB, v any) []byte {
	tb.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}
