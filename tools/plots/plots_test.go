package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	if err := run([]string{"-in", "testdata/report.json", "-scale", "testdata/scale.json", "-out", dir}, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		file  string
		texts []string
	}{
		{"phases.svg", []string{
			"Time of each phase", "seconds from the first request", "create", "update", "delete", "acknowledged",
			"visible and verified", "text; batches of 1000 × 4; embedded broker",
			"text; single requests × 64; Apache Kafka 4.1.0", "3.40 s", "20", sourceText,
		}},
		{"limits.svg", []string{"rows inserted straight", "records produced straight", "requests discarded", "drain: Kafka engine", "0.59×", "2.00×", sourceText}},
		{"scale-writes.svg", []string{"delete", "recent update", "cold update", "1 M", "100 M", "µs per write, until visible", scaleSource}},
		{"scale-queries.svg", []string{"errors, 7 days, clean", "one session, changed", "top sessions, 7 days, changed", "ms, median", "10", scaleSource}},
	} {
		t.Run(test.file, func(t *testing.T) {
			texts := svgTexts(t, filepath.Join(dir, test.file))
			for _, want := range test.texts {
				if !texts[want] {
					t.Errorf("no text %q", want)
				}
			}
			if !strings.Contains(stdout.String(), test.file) {
				t.Errorf("not printed: %q", stdout.String())
			}
		})
	}
}

func TestRunWithoutFigures(t *testing.T) {
	dir := t.TempDir()
	var stdout bytes.Buffer
	if err := run([]string{"-in", "", "-scale", "", "-out", dir}, &stdout, io.Discard); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) > 0 || stdout.Len() > 0 {
		t.Errorf("drew %v", files)
	}
	if err := run([]string{"-in", "none.json", "-scale", ""}, &stdout, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
}

// svgTexts parses a file, and returns the content of its texts.
func svgTexts(t *testing.T, path string) map[string]bool {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	texts := map[string]bool{}
	for decoder := xml.NewDecoder(file); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if data, ok := token.(xml.CharData); ok {
			texts[strings.TrimSpace(string(data))] = true
		}
	}
}

func TestShort(t *testing.T) {
	got := map[float64]string{}
	want := map[float64]string{0.1: "0.1", 10: "10", 1000: "1 k", 1e6: "1 M", 1e8: "100 M", 1e9: "1 B"}
	for v := range want {
		got[v] = short(v)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSteps(t *testing.T) {
	for _, test := range []struct {
		high float64
		want string
	}{
		{0.3, "0 0.05 0.1 0.15 0.2 0.25 0.3"},
		{2.4, "0 0.5 1 1.5 2"},
		{10, "0 1 2 3 4 5 6 7 8 9 10"},
		{30, "0 5 10 15 20 25 30"},
		{198, "0 20 40 60 80 100 120 140 160 180"},
	} {
		var labels []string
		for _, tick := range (steps{}).Ticks(0, test.high) {
			labels = append(labels, tick.Label)
		}
		if got := strings.Join(labels, " "); got != test.want {
			t.Errorf("%v: %s, want %s", test.high, got, test.want)
		}
	}
}
