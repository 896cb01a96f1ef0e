package main

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/bench/workload"
)

// The documents have the tables that the program computes. Those that take a
// minute are left out here.
func TestDocuments(t *testing.T) {
	for _, name := range []string{"scale.md", "decisions.md"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
			if err != nil {
				t.Fatal(err)
			}
			renewed, err := renew(text, func(t *table) bool { return !t.slow })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(text), string(renewed)); diff != "" {
				t.Errorf("renew it: cd tools && go run ./scalemodel ../docs/%s (-document +computed):\n%s", name, diff)
			}
		})
	}
}

func TestRenew(t *testing.T) {
	const document = "before\n<!-- scalemodel: limits -->\nold\n<!-- /scalemodel -->\nafter\n"
	for _, c := range []struct {
		name, text, want, err string
		wanted                bool
	}{
		{"a table", document, "before\n<!-- scalemodel: limits -->\n" + limitsTable() + "<!-- /scalemodel -->\nafter\n", "", true},
		{"a table that is not wanted", document, document, "", false},
		{"none", "text\n", "text\n", "", true},
		{"an unknown one", strings.ReplaceAll(document, "limits", "nothing"), "", `no table is named "nothing"`, true},
		{"no end", strings.ReplaceAll(document, "/scalemodel", "end"), "", "a table's mark has no end", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := renew([]byte(c.text), func(*table) bool { return c.wanted })
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Fatalf("got %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.md")
	if err := os.WriteFile(path, []byte(beginMark+"limits"+beginEnd+endMark), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	for _, want := range []string{path + "\n", ""} { // the second time, nothing is new
		stdout.Reset()
		if err := run(t.Context(), []string{path}, &stdout, &stderr); err != nil {
			t.Fatalf("%v\n%s", err, &stderr)
		}
		if got := stdout.String(); got != want {
			t.Errorf("printed %q, want %q", got, want)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), limitsTable()) {
		t.Errorf("the document is %q", text)
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		got, want string
	}{
		{bytesText(0), "0 B"},
		{bytesText(37), "37 B"},
		{bytesText(999.6), "1.0 kB"},
		{bytesText(3103), "3.1 kB"},
		{bytesText(86.4e9), "86 GB"},
		{si(1e6, ""), "1 M"},
		{si(0.264, ""), "0.3"},
		{rateText(100e3), "100 k/s"},
		{rateText(2.5), "2.5/s"},
		{span(0.4), "0.4 s"},
		{span(90), "1.5 min"},
		{span(25 * 3600), "25 h"},
		{span(50 * 3600), "2.1 d"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

// What the tables start from is what an event takes on a real engine.
func TestCosts(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		encoding   workload.Encoding
		events     int
		body, wire float64
		disk       map[string]float64
	}{
		{workload.Text, 15_000, bodyText, wireText, map[string]float64{"events": diskHot, "event_contents": diskContents}},
		// Of 280 embedded events, repeated: contents compress too well.
		{workload.Base64, 4_000, bodyVectors, wireVectors, map[string]float64{"events": diskHot, "event_embeddings": diskVectors}},
	} {
		t.Run(c.encoding.String(), func(t *testing.T) {
			d := startEngine(t)
			from, err := newEvents(c.events, c.encoding, "")
			if err != nil {
				t.Fatal(err)
			}
			costs, err := d.measure(ctx, from, blockEvents)
			if err != nil {
				t.Fatal(err)
			}
			within := func(what string, got, want, tolerance float64) {
				t.Helper()
				t.Logf("%s: %.4g bytes, %.4g in the tables", what, got, want)
				if math.Abs(got-want) > tolerance*want {
					t.Errorf("%s: %.4g bytes, the tables have %.4g", what, got, want)
				}
			}
			within("a body", float64(from.json)/float64(from.next), c.body, 0.05)
			var wire float64
			for _, got := range costs {
				wire += got.raw
				if want, ok := c.disk[got.table]; ok {
					within(got.table, got.disk, want, 0.2)
				}
				for _, s := range storedTables() {
					if s.name == "`"+got.table+"`" {
						within("a part of one event of "+got.table, got.part, s.part+s.bytes, 0.2)
					}
				}
			}
			within("blocks", wire, c.wire, 0.05)
		})
	}
}

// startEngine starts an engine that ends with the test.
func startEngine(t *testing.T) *database {
	t.Helper()
	d, err := start(t.Context(), "", t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
