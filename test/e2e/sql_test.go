package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A pipeline answers in SQL, by HTTP and by the command, what it has been told, and not
// what was deleted. The key needs the scope that reads.
func TestSQL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	reader, readerLine := newKey(t, "reader", "read")
	writer, writerLine := newKey(t, "writer", "write")
	keys := filepath.Join(dir, "keys")
	writeKeys(t, keys, readerLine, writerLine)
	p, c := serve(t, filepath.Join(dir, "data"), "--api-keys", keys)
	call := func(method, path, contentType, key, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, c.base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(answer)
	}
	send := func(method, path, body string) (receipt string) {
		t.Helper()
		status, answer := call(method, path, "application/json", writer, body)
		var written struct{ Receipt string }
		if err := json.Unmarshal([]byte(answer), &written); err != nil || status != http.StatusAccepted {
			t.Fatalf("%s %s answered %d %s, error %v", method, path, status, answer, err)
		}
		return written.Receipt
	}
	ask := func(key, parameters, text string) (int, string) {
		t.Helper()
		return call(http.MethodPost, "/sql"+parameters, "text/plain", key, text)
	}
	send(http.MethodPost, "/event", `{"id":"a","conversation_id":"c","event_name":"event_a","input":"what stays","latency":1.5}`)
	send(http.MethodPost, "/event", `{"id":"b","conversation_id":"c","event_name":"event_b","input":"what goes"}`)
	receipt := send(http.MethodDelete, "/event/b", "")
	const text = "SELECT e.id, c.content, e.latency FROM live_events AS e JOIN live_event_contents AS c USING (id)"
	const columns = `{"columns":[{"name":"id","type":"String"},{"name":"content","type":"String"},{"name":"latency","type":"Nullable(Float64)"}],`
	if status, body := ask(reader, "?after="+receipt, text); status != http.StatusOK || body != columns+`"rows":[["a", "what stays", 1.5]]}`+"\n" {
		t.Errorf("answered %d %s", status, body)
	}
	if status, body := ask(writer, "", text); status != http.StatusForbidden {
		t.Errorf("a key that writes: answered %d %s", status, body)
	}
	for query, code := range map[string]string{
		"SELECT * FROM events":              "query_not_allowed",
		"SELECT file('/etc/passwd')":        "query_not_allowed",
		"SELECT * FROM url('http://[::1]')": "query_not_allowed",
		"SELECT * FROM system.users":        "query_not_allowed",
		"SELECT 1 SETTINGS readonly = 0":    "query_not_allowed",
		"SELECT 1; DROP TABLE events":       "invalid_query",
	} {
		if status, body := ask(reader, "", query); status != http.StatusBadRequest || !strings.Contains(body, `"code":"`+code+`"`) {
			t.Errorf("%s: answered %d %s, want %s", query, status, body, code)
		}
	}

	command := func(code int, args ...string) string {
		t.Helper()
		sql := start(t, append([]string{"sql", "--url", c.base, "--api-key", reader}, args...)...)
		if got := sql.wait(t, startBound); got != code {
			t.Errorf("sluice sql %v exited %d, want %d: %s", args, got, code, sql.log.tail(logTailBytes))
		}
		return string(sql.out.bytes()) + string(sql.log.bytes())
	}
	if got := command(0, "--format", "table", "-q", text); got != " id | content    | latency\n----+------------+---------\n a  | what stays |     1.5\n(1 row)\n" {
		t.Errorf("the table is\n%s", got)
	}
	answer := filepath.Join(dir, "answer.csv")
	if command(0, "-q", text, "-o", answer); string(readBytes(t, answer)) != "\"id\",\"content\",\"latency\"\n\"a\",\"what stays\",1.5\n" {
		t.Errorf("the file is %q", readBytes(t, answer))
	}
	if got := command(1, "-q", "SELECT * FROM events"); !strings.Contains(got, "query_not_allowed: ") || !strings.Contains(got, "live_events") {
		t.Errorf("a refusal prints %q", got)
	}
	if strings.Contains(string(p.log.bytes()), "what stays") || strings.Contains(string(p.log.bytes()), "SELECT") {
		t.Error("the log has a query, or its answer")
	}
	p.stop(t)
}

func readBytes(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
