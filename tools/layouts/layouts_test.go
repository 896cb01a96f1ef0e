package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/engine"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	os.Exit(m.Run())
}

// The run itself compares the answers of all layouts, clean, after updates and
// deletes, and after more deletes. One layout of each shape is enough here.
func TestRun(t *testing.T) {
	const only = "date-1024,date-long-hint,conversation,is-deleted,error-string,metadata-json,id-suffix,texts-apart,texts-inline"
	selected, err := selectLayouts(only)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "layouts.json")
	var stdout, stderr bytes.Buffer
	err = run(t.Context(), []string{"-rows", "20000", "-repeat", "1", "-only", only, "-out", out, "-dir", t.TempDir()}, &stdout, &stderr)
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Layouts) != len(selected) {
		t.Fatalf("%d layouts in the report, want %d", len(got.Layouts), len(selected))
	}
	for i, l := range selected {
		r := got.Layouts[i]
		if want := 20_000 / l.share(); r.Name != l.name || math.Abs(float64(int(r.Rows)-want)) > blockEvents {
			t.Errorf("layout %d is %s with %d rows, want %s with %d", i, r.Name, r.Rows, l.name, want)
		}
		for _, op := range operations() {
			if op.only != nil && !op.only(&l) {
				continue
			}
			if f := r.Fresh[op.name]; (op.write || !op.rare) && (f.N == 0 || f.Median <= 0) {
				t.Errorf("%s: %s was not measured with fresh writes", r.Name, op.name)
			}
			if f := r.Clean[op.name]; !op.write && (f.N == 0 || f.Median <= 0) {
				t.Errorf("%s: %s was not measured clean", r.Name, op.name)
			}
		}
		if r.BytesPerRow <= 0 || r.PartsFresh <= r.Parts || r.MergeSeconds <= 0 {
			t.Errorf("%s: sizes are missing: %+v", r.Name, r)
		}
		if !strings.Contains(stdout.String(), "| "+l.name+" |") {
			t.Errorf("%s is not in the tables", l.name)
		}
	}
}

func TestAnswersMustAgree(t *testing.T) {
	c := &comparison{answers: map[string]string{}}
	if err := c.agree("q", "1\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.agree("q", "1\n"); err != nil {
		t.Errorf("the same answer is refused: %v", err)
	}
	if err := c.agree("q", "2\n"); err == nil {
		t.Error("another answer is accepted")
	}
}

func TestSpread(t *testing.T) {
	s := func(elapsed, cpu time.Duration) sample { return sample{elapsed * time.Second, cpu * time.Second, 7} }
	for _, tt := range []struct {
		name string
		in   []sample
		want spread
	}{
		{"none", nil, spread{}},
		{"odd", []sample{s(3, 1), s(1, 2), s(2, 9)}, spread{Median: 2, Min: 1, Max: 3, N: 3, CPU: 2, Rows: 7}},
		{"even", []sample{s(4, 1), s(1, 1), s(2, 3), s(3, 3)}, spread{Median: 2.5, Min: 1, Max: 4, N: 4, CPU: 2, Rows: 7}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, spreadOf(tt.in)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefusesArguments(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown layout", []string{"-only", "date-1024,nonesuch"}, `no layout "nonesuch"`},
		{"too few rows", []string{"-rows", "10"}, "-rows"},
		{"no repetition", []string{"-repeat", "0"}, "-repeat"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), tt.args, &bytes.Buffer{}, &bytes.Buffer{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}
