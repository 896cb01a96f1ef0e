package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	committed = "../../docs/walkthrough"

	bytesMax    = 10 << 20
	svgBytesMax = 1 << 20 // the README shows it
	secondsMax  = 300
	// readingSeconds is the least time for a word of a caption.
	readingSeconds = 0.2
)

// step is what the script says of a command.
type step struct {
	chapter, caption string
	command          []string
	wanted           []*regexp.Regexp
	status           string
}

// readScript reads the script, whose format is described at its top.
func readScript(t *testing.T) []step {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(committed, "script"))
	if err != nil {
		t.Fatal(err)
	}
	var (
		steps   []step
		chapter string
		caption []string
	)
	for line := range strings.Lines(string(text)) {
		mark, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch mark {
		case "==":
			chapter = text
		case "--":
			caption = append(caption, text)
		case "$":
			steps = append(steps, step{chapter: chapter, caption: strings.Join(caption, " "), command: []string{text}, status: "0"})
			caption = nil
		case ">":
			last := &steps[len(steps)-1]
			last.command = append(last.command, text)
		case "~":
			last := &steps[len(steps)-1]
			last.wanted = append(last.wanted, regexp.MustCompile("(?m)"+text))
		case "?":
			steps[len(steps)-1].status = text
		}
	}
	if len(steps) == 0 {
		t.Fatal("the script has no steps")
	}
	return steps
}

// castEvent is one of an asciicast: output, or a marker with a caption.
type castEvent struct {
	at   float64
	kind string
	text string
}

func (e *castEvent) UnmarshalJSON(b []byte) error {
	fields := []any{&e.at, &e.kind, &e.text}
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	if len(fields) != 3 {
		return fmt.Errorf("%d fields, want 3", len(fields))
	}
	return nil
}

// readCast reads the cast, and fails the test where it is no asciicast.
func readCast(t *testing.T) []castEvent {
	t.Helper()
	file, err := os.Open(filepath.Join(committed, "walkthrough.cast"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() {
		t.Fatal("the cast is empty")
	}
	var header struct{ Version, Width, Height int }
	if err := json.Unmarshal(lines.Bytes(), &header); err != nil {
		t.Fatal(err)
	}
	if header.Version != 2 || header.Width < 80 || header.Height < 24 {
		t.Errorf("the header is %+v", header)
	}
	var events []castEvent
	for lines.Scan() {
		var e castEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("event %d: %v", len(events), err)
		}
		if n := len(events); n > 0 && e.at < events[n-1].at {
			t.Errorf("event %d is at %g s, after one at %g s", n, e.at, events[n-1].at)
		}
		if e.kind != "o" && e.kind != "m" {
			t.Errorf("event %d is of the kind %q", len(events), e.kind)
		}
		events = append(events, e)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(events) == 0 {
		t.Fatal("the cast has no events")
	}
	return events
}

// played is what the cast has of one step.
type played struct {
	caption    string
	begin, end float64
	text       string // without colours
}

var (
	colors = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]`)
	// ran is a command's output and exit status, between the marks of the shell.
	ran = regexp.MustCompile(`(?s)\x1b\]133;C\x07(.*?)\x1b\]133;D;(\d+)\x07`)
)

// play cuts the cast at its markers.
func play(t *testing.T) []played {
	t.Helper()
	var all []played
	events := readCast(t)
	for i, e := range events {
		switch {
		case e.kind == "m":
			if n := len(all); n > 0 {
				all[n-1].end = e.at
			}
			all = append(all, played{caption: e.text, begin: e.at})
		case len(all) > 0 && events[i-1].kind != "m": // after a marker its caption is drawn
			all[len(all)-1].text += e.text
		}
	}
	if len(all) == 0 {
		t.Fatal("the cast has no captions")
	}
	all[len(all)-1].end = events[len(events)-1].at
	for i := range all {
		all[i].text = colors.ReplaceAllString(all[i].text, "")
	}
	return all
}

// TestCastIsOfTheScript holds the recording against the script that is beside
// it: every step, as it is typed, with a result that the script wants.
func TestCastIsOfTheScript(t *testing.T) {
	steps, all := readScript(t), play(t)
	if len(all) != len(steps) {
		t.Fatalf("%d steps are recorded, the script has %d: make walkthrough records it anew", len(all), len(steps))
	}
	for i, s := range steps {
		if want := s.chapter + ": " + s.caption; all[i].caption != want {
			t.Errorf("step %d: the caption is %q, want %q", i, all[i].caption, want)
		}
		rest := all[i].text
		for _, line := range s.command {
			_, after, found := strings.Cut(rest, line+"\r\n")
			if !found {
				t.Errorf("step %d: %q is not typed", i, line)
			}
			rest = after
		}
		var output strings.Builder
		status := ""
		for _, m := range ran.FindAllStringSubmatch(all[i].text, -1) {
			output.WriteString(strings.ReplaceAll(m[1], "\r\n", "\n"))
			status = m[2]
		}
		if status != s.status {
			t.Errorf("step %d: %q: exit status %s, want %s", i, s.command[0], status, s.status)
		}
		for _, wanted := range s.wanted {
			if !wanted.MatchString(output.String()) {
				t.Errorf("step %d: %q: nothing like %q in its output:\n%s", i, s.command[0], wanted, &output)
			}
		}
	}
}

// TestCastShowsAll has what a walk-through must show, whatever the script says.
func TestCastShowsAll(t *testing.T) {
	var text strings.Builder
	for _, p := range play(t) {
		text.WriteString(p.text)
	}
	for name, must := range map[string]string{
		"a start":              `"status":"ready"`,
		"a create":             `op: OP_CREATE`,
		"an update":            `order-7 │ update`,
		"a delete":             `\d\. │ +│ delete`,
		"a batch":              `15777 acked`,
		"errors":               `"error_rate":0\.`,
		"latency":              `quantiles`,
		"a conversation":       `Help me find a rental car`,
		"top conversations":    `order_by=error_rate`,
		"the killed consumer":  `Killed +sluice consume`,
		"all that was stored":  `(\d+) stored`,
		"a dead letter":        `bad_record`,
		"a replay":             `dead letters replayed: 1`,
		"the benchmark's end":  `delete +200,000`,
		"the benchmark's bars": `\[#+ *\]`,
	} {
		if !regexp.MustCompile(must).MatchString(text.String()) {
			t.Errorf("%s is not shown: nothing like %q", name, must)
		}
	}
	// The addresses hold the database's password; paths say whose machine it was.
	for _, never := range []string{"clickhouse://", "sluice:", "/tmp/", "/home/", "/root"} {
		if strings.Contains(strings.ReplaceAll(text.String(), "urn:sluice:", ""), never) {
			t.Errorf("%q is shown", never)
		}
	}
}

// TestSizes bounds what the repository holds, and how long it plays.
func TestSizes(t *testing.T) {
	files, err := os.ReadDir(committed)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
		if f.Name() == "walkthrough.svg" && info.Size() > svgBytesMax {
			t.Errorf("the SVG has %d bytes, want at most %d", info.Size(), svgBytesMax)
		}
	}
	if total > bytesMax {
		t.Errorf("the files have %d bytes, want at most %d", total, bytesMax)
	}
	events := readCast(t)
	cast := events[len(events)-1].at
	if cast > secondsMax {
		t.Errorf("the cast plays for %g s, want at most %d", cast, secondsMax)
	}
	if video := mp4Seconds(t); video > secondsMax || math.Abs(video-cast) > 1 {
		t.Errorf("the MP4 plays for %g s, want %g, and at most %d", video, cast, secondsMax)
	}
	if svg := svgSeconds(t); math.Abs(svg-cast) > 1 {
		t.Errorf("the SVG plays for %g s, want %g", svg, cast)
	}
}

// mp4Seconds is the duration that the movie's header has.
func mp4Seconds(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(committed, "walkthrough.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(text[min(4, len(text)):], []byte("ftyp")) {
		t.Fatal("the MP4 is none")
	}
	// Version and flags, two times of 4 bytes, then units a second, and units.
	_, header, found := bytes.Cut(text, []byte("mvhd"))
	if !found || len(header) < 20 || header[0] != 0 {
		t.Fatal("the MP4 has no header of version 0")
	}
	return float64(binary.BigEndian.Uint32(header[16:])) / float64(binary.BigEndian.Uint32(header[12:]))
}

// svgSeconds is the duration of the animation, of a file that is well formed.
func svgSeconds(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(committed, "walkthrough.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the SVG: %v", err)
		}
	}
	m := regexp.MustCompile(`animation:a ([0-9.]+)s `).FindSubmatch(text)
	if m == nil {
		t.Fatal("the SVG has no animation")
	}
	seconds, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return seconds
}

// TestCaptions checks that there is time to read each caption.
func TestCaptions(t *testing.T) {
	for _, p := range play(t) {
		if words := len(strings.Fields(p.caption)); p.end-p.begin < readingSeconds*float64(words) {
			t.Errorf("%d words are shown for %.1f s: %s", words, p.end-p.begin, p.caption)
		}
	}
}

// record plays a script, and returns what the recorder prints, and whether it
// says that it succeeded and whether it wrote a cast.
func record(t *testing.T, dir, script string) (out string, succeeded, written bool) {
	t.Helper()
	for _, tool := range []string{"python3", "bash"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the recorder needs %s: %v", tool, err)
		}
	}
	path, cast := filepath.Join(dir, "script"), filepath.Join(dir, "cast")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-B", "record.py", path, cast)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	text, err := cmd.CombinedOutput()
	_, statErr := os.Stat(cast)
	return string(text), err == nil, statErr == nil
}

// TestRecorder plays scripts of its own: one that goes well is recorded, and
// one with a step that fails is not.
func TestRecorder(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         string // of the recorder's last words, empty for success
	}{
		{"all is well", "== One\n-- A caption.\n$ echo a$((40 + 2))\n~ ^a42$\n-- Another.\n$ (exit 3)\n? 3\n", ""},
		{"several lines", "== One\n-- A caption.\n$ for i in 1 2; do\n>   echo $i; done\n> echo three\n~ 1\\n2\\nthree\n", ""},
		{"other output", "== One\n-- A caption.\n$ echo a\n~ ^b$\n", "nothing like '^b$'"},
		{"what is typed is no output", "== One\n-- A caption.\n$ true b\n~ b\n", "nothing like 'b'"},
		{"other status", "== One\n-- A caption.\n$ false\n", "exit status 1, want 0"},
		{"status of a line before the last", "== One\n-- A caption.\n$ false\n> true\n", "exit status 1, want 0"},
		{"the shell ends", "== One\n-- A caption.\n$ exit\n", "the shell has ended"},
		{"no end of the command", "== One\n-- A caption.\n$ echo 'a\n", "goes on after its last line"},
		{"too long a caption", "== One\n-- " + strings.Repeat("A caption. ", 100) + "\n$ true\n", "a caption of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, succeeded, written := record(t, t.TempDir(), c.script)
			if well := c.want == ""; succeeded != well || written != well || !strings.Contains(out, c.want) {
				t.Errorf("succeeded: %t, cast written: %t, want %q; it says:\n%s", succeeded, written, c.want, out)
			}
		})
	}
}

// TestRecorderEndsAll fails a step while a job runs in the background that
// takes its time to end.
func TestRecorderEndsAll(t *testing.T) {
	dir := t.TempDir()
	ended := filepath.Join(dir, "ended")
	script := "== One\n-- A caption.\n$ (trap 'sleep 0.5; echo >" + ended + "; exit' HUP; while :; do sleep 0.05; done) &\n" +
		"-- Another.\n$ sleep 0.2; false\n"
	if out, succeeded, _ := record(t, dir, script); succeeded {
		t.Errorf("it succeeded:\n%s", out)
	}
	if _, err := os.Stat(ended); err != nil {
		t.Errorf("the job has not ended: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "sluice-walkthrough-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
