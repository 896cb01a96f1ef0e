package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// checkExport compares an export with the model, event by event, in two parts.
func checkExport(t *testing.T, c *client, m *model, f filter) {
	t.Helper()
	want := make(map[string]*modelEvent)
	for _, e := range m.where(f) {
		want[e.id] = e
	}
	query := f.query()
	query.Set("embeddings", "true")
	query.Set("limit", fmt.Sprint(len(want)/2+1))
	var last time.Time
	for part := range 2 {
		a, err := c.do(http.MethodGet, "/export?"+query.Encode(), nil, "")
		if err != nil || a.status != http.StatusOK {
			t.Errorf("export: status %d, error %v: %.300s", a.status, err, a.body)
			return
		}
		lines := bufio.NewScanner(bytes.NewReader(a.body))
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var got eventObject
			var at struct{ Timestamp time.Time }
			if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(lines.Bytes(), &at); err != nil {
				t.Fatal(err)
			}
			id := got.text("id")
			e := want[id]
			if e == nil {
				t.Errorf("%s, part %d: %s is not wanted, or comes twice", f.query().Encode(), part, id)
				return
			}
			delete(want, id)
			if at.Timestamp.Before(last) {
				t.Errorf("%s is out of order", id)
			}
			last = at.Timestamp
			if err := e.differs(got, true); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			query.Set("cursor", id)
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
		query.Del("limit")
	}
	if len(want) > 0 {
		t.Errorf("%s: %d events are missing", f.query().Encode(), len(want))
	}
}

// What the command exports, another Sluice imports, and exports again as it was. An export
// that broke off goes on.
func TestExportAndImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, c := serve(t, filepath.Join(dir, "from"))
	var creates [][]byte
	for i := range 300 {
		line := fmt.Sprintf(`{"conversation_id":"c%d","event_name":"event_%c","timestamp":"2026-0%d-01T00:00:00.%06dZ","latency":%d.5,"error":%s,"input":"<%d & é\n>","output":{"n":18446744073709551617.0},"conversation_metadata":{"plan":"pro","n":%d},"input_embeddings":[0.1,-%d]}`,
			i%7, 'a'+rune(i%3), 1+i%3, i, i, []string{"null", `"timeout"`}[i%2], i, i, i)
		if i%5 == 0 {
			line = strings.Replace(line, "{", fmt.Sprintf(`{"id":"own id/%d",`, i), 1)
		}
		creates = append(creates, []byte(line))
	}
	results, err := c.post(creates)
	if err != nil {
		t.Fatal(err)
	}
	// An event that grew by updates is larger than a create may be.
	large := results[1].ID
	var done receipts
	if err := done.add(results...); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"input", "output", "error"} {
		r, err := c.single(http.MethodPut, large, []byte(`{"`+field+`":"`+strings.Repeat("é", 500_000)+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := done.add(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range results[10:20] {
		r, err := c.single(http.MethodDelete, r.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := done.add(r); err != nil {
			t.Fatal(err)
		}
	}
	done.waitApplied(t, c, startBound)
	command := func(code int, args ...string) string {
		t.Helper()
		p := start(t, args...)
		if got := p.wait(t, startBound); got != code {
			t.Errorf("sluice %v exited %d, want %d: %s", args, got, code, p.log.tail(logTailBytes))
		}
		return string(p.out.bytes()) + string(p.log.bytes())
	}
	whole := filepath.Join(dir, "events.ndjson")
	command(0, "export", "--url", c.base, "-o", whole)
	text := readBytes(t, whole)
	if n := bytes.Count(text, []byte("\n")); n != 290 {
		t.Errorf("%d events are exported, want 290", n)
	}
	// In the middle of a line, at the end of one, and before the first one.
	middle := filepath.Join(dir, "resumed.ndjson")
	for _, at := range []int{len(text) / 2, bytes.IndexByte(text, '\n') + 1, 10, 0} {
		if err := os.WriteFile(middle+".part", text[:at], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := command(1, "export", "--url", c.base, "-o", middle); !strings.Contains(got, "--resume") {
			t.Errorf("a part that is there: %s", got)
		}
		command(0, "export", "--url", c.base, "-o", middle, "--resume")
		if !bytes.Equal(readBytes(t, middle), text) {
			t.Errorf("an export that went on after %d bytes is another one", at)
		}
	}
	to, other := serve(t, filepath.Join(dir, "to"))
	if got := command(0, "import", "--url", other.base, whole); !strings.Contains(got, "created 290 events; 0 were there already, 0 were refused") {
		t.Errorf("import: %s", got)
	}
	if got := command(0, "import", "--url", other.base, whole); !strings.Contains(got, "created 0 events; 290 were there already, 0 were refused") {
		t.Errorf("import again: %s", got)
	}
	again := filepath.Join(dir, "again.ndjson")
	command(0, "export", "--url", other.base, "-o", again)
	if !bytes.Equal(sortedLines(readBytes(t, again)), sortedLines(text)) {
		t.Error("what was imported is not what was exported")
	}
	parquet := filepath.Join(dir, "events.parquet")
	command(0, "export", "--url", c.base, "-o", parquet)
	if file := readBytes(t, parquet); !bytes.HasPrefix(file, []byte("PAR1")) || !bytes.HasSuffix(file, []byte("PAR1")) {
		t.Errorf("a Parquet file of %d bytes is none", len(file))
	}
	// What is wrong is named by its line, and nothing else is lost.
	bad := filepath.Join(dir, "bad.ndjson")
	if err := os.WriteFile(bad, []byte("{\"conversation_id\":\"c\",\"event_name\":\"event_a\"}\n\n{\"event_name\":\"nope\",\"conversation_id\":\"c\"}\nnot JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := command(1, "import", "--url", other.base, bad); !strings.Contains(got, "created 1 events; 0 were there already, 2 were refused") || !strings.Contains(got, "line=3") || !strings.Contains(got, "line=4") {
		t.Errorf("import of bad lines: %s", got)
	}
	from.stop(t)
	to.stop(t)
	if got := command(1, "export", "--url", c.base); !strings.Contains(got, "connection refused") {
		t.Errorf("an export from nowhere: %s", got)
	}
}

// sortedLines returns the lines of events in the order of their bytes: events of one time are
// exported in the order of internal ids, which an import makes anew.
func sortedLines(text []byte) []byte {
	lines := bytes.Split(text, []byte("\n"))
	slices.SortFunc(lines, bytes.Compare)
	return bytes.Join(lines, []byte("\n"))
}
