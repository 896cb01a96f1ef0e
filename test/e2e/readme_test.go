package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	readmeAddr    = "127.0.0.1:8080"
	readmeBlocks  = 8 // at least, so that a lost marker is noticed
	commandsBound = time.Minute
)

var (
	walkThrough = regexp.MustCompile(`(?s)<!-- walk -->(.*?)<!-- /walk -->`)
	shellBlock  = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	expectation = regexp.MustCompile(`(?m)^# => (.+)$`)
	// refusal is how the answer to a refused request, or to a refused item of a batch, looks.
	refusal = regexp.MustCompile(`"type":"urn:sluice:problem:|"error":\{"status":`)
)

// TestReadme runs the commands of README.md as a reader pastes them, in order.
// Each block must succeed, and print every text that its "# =>" lines name. An
// answer that is an error is a failure unless it holds such a text.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the README's commands need %s: %v", tool, err)
		}
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, part := range walkThrough.FindAllSubmatch(text, -1) {
		for _, block := range shellBlock.FindAllSubmatch(part[1], -1) {
			blocks = append(blocks, string(block[1]))
		}
	}
	if len(blocks) < readmeBlocks {
		t.Fatalf("%d blocks between the markers of the walk-through, want %d or more", len(blocks), readmeBlocks)
	}
	p := start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir())
	addr := p.addr(t)
	newClient(addr).waitReady(t)
	dir := t.TempDir()
	for _, block := range blocks {
		name, _, _ := strings.Cut(strings.TrimPrefix(block, "# "), "\n")
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), commandsBound)
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-e", "-o", "pipefail")
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(block, readmeAddr, addr))
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var wanted []string
			for _, m := range expectation.FindAllStringSubmatch(block, -1) {
				wanted = append(wanted, m[1])
				if !strings.Contains(string(out), m[1]) {
					t.Errorf("the output does not contain %q:\n%s", m[1], out)
				}
			}
			for line := range strings.Lines(string(out)) {
				if refusal.MatchString(line) && !containsAny(line, wanted) {
					t.Errorf("a request was refused: %s", line)
				}
			}
		})
	}
	p.stop(t)
}

func containsAny(s string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}
