package schema

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatements(t *testing.T) {
	got := statements("-- a; comment\nCREATE a\n(\n  x -- one\n);\n\n-- b\nSELECT ';' ;\nlast")
	want := []string{"CREATE a\n(\n  x -- one\n)", "SELECT ';' ", "last"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
