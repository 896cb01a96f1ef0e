package body_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api/body"
	"github.com/sluicehq/sluice/internal/event"
)

var update = flag.Bool("update", false, "write vectors instead of comparing with them")

// newParser returns a parser with the default rules.
func newParser() *body.Parser {
	return &body.Parser{Rules: &event.Rules{EventNames: event.DefaultEventNames()}}
}

// now is when the tests' requests are received.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// golden compares got with the file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what the code gives; run go test -update and look at the difference.\ngot:\n%s", path, got)
	}
}

// indented is the JSON of v as the vector files have it.
func indented(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
