package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/sluicehq/sluice/internal/api"
)

// sdk is a client library, by the program that sdk/README.md describes.
type sdk struct {
	name string
	// command is that of the program, examples are those of the examples. They
	// are built by make sdk.
	command  func(t *testing.T) []string
	examples func(t *testing.T) [][]string
}

var sdks = []sdk{
	{
		"go",
		func(t *testing.T) []string { return []string{buildInSDK(t, "./internal/driver")} },
		func(t *testing.T) (all [][]string) {
			for _, dir := range filesInSDK(t, "go", "examples", "*") {
				all = append(all, []string{buildInSDK(t, "./examples/"+filepath.Base(dir))})
			}
			return all
		},
	},
	{
		"typescript",
		func(t *testing.T) []string {
			return append([]string{"node"}, filesInSDK(t, "typescript", "build", "driver", "driver.js")...)
		},
		func(t *testing.T) (all [][]string) {
			for _, file := range filesInSDK(t, "typescript", "build", "examples", "*.js") {
				all = append(all, []string{"node", file})
			}
			return all
		},
	},
	{
		"python",
		func(t *testing.T) []string {
			return append([]string{"python3"}, filesInSDK(t, "python", "driver", "driver.py")...)
		},
		func(t *testing.T) (all [][]string) {
			for _, file := range filesInSDK(t, "python", "examples", "*.py") {
				all = append(all, []string{"python3", file})
			}
			return all
		},
	},
}

// sdkEnv says what to do where a client library is not built: 1 fails the test,
// anything else skips it.
const sdkEnv = "SLUICE_TEST_SDK"

// TestBrowser tracks events from a page of another origin, in a real browser, with
// a key that can only write, and leaves the page at once.
func TestBrowser(t *testing.T) {
	t.Parallel()
	program := filesInSDK(t, "typescript", "build", "driver", "page.js")[0]
	if _, err := exec.LookPath("chromium"); err != nil {
		if os.Getenv(sdkEnv) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	_, port, err := net.SplitHostPort(freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	var lines, keys []string
	for _, scope := range []api.Scope{api.ScopeWrite, api.ScopeRead} {
		key, line, err := api.GenerateKey(scope.String(), scope)
		if err != nil {
			t.Fatal(err)
		}
		lines, keys = append(lines, line), append(keys, key)
	}
	keyFile := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keyFile, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir(), "--clickhouse-url", databaseURL(t),
		"--api-keys", keyFile, "--cors-origins", "http://127.0.0.1:"+port)
	out, err := exec.CommandContext(t.Context(), "node", program, port, "http://"+p.addr(t), keys[0]).Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			out = append(out, failed.Stderr...)
		}
		t.Fatalf("%v: %s", err, out)
	}
	var got struct {
		IDs     []string
		Refused string
	}
	if err := json.Unmarshal(out, &got); err != nil || len(got.IDs) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Refused != "forbidden" {
		t.Errorf("a read was answered %q to the page, want forbidden", got.Refused)
	}
	for i, want := range []object{{"input": "flushed", "output": nil}, {"input": "left", "output": "as well"}} {
		eventually(t, applyBound, "the event of the page", func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr(t)+"/event/"+got.IDs[i], nil)
			if err != nil {
				return err
			}
			req.Header.Set("X-API-Key", keys[1])
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			var event object
			if err := json.NewDecoder(resp.Body).Decode(&event); err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK || event["input"] != want["input"] || event["output"] != want["output"] {
				return fmt.Errorf("status %d: %v, want %v", resp.StatusCode, event, want)
			}
			return nil
		})
	}
}

func sdkDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "sdk"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// filesInSDK are the files of a pattern, at least one.
func filesInSDK(t *testing.T, elem ...string) []string {
	t.Helper()
	pattern := filepath.Join(append([]string{sdkDir(t)}, elem...)...)
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		if os.Getenv(sdkEnv) == "1" {
			t.Fatalf("no %s, error %v: run make sdk", pattern, err)
		}
		t.Skipf("no %s, error %v: run make sdk", pattern, err)
	}
	return files
}

// buildInSDK builds a program of the Go library's module.
func buildInSDK(t *testing.T, path string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), filepath.Base(path))
	cmd := exec.Command("go", "build", "-o", binary, path)
	cmd.Dir = filepath.Join("..", "..", "sdk", "go")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", path, err, out)
	}
	return binary
}

// driver is a running program of a client library.
type driver struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr logBuffer
}

type object = map[string]any

// reply is what a command was answered.
type reply struct {
	ID     string          `json:"id"`
	IDs    []string        `json:"ids"`
	Raised string          `json:"raised"`
	Event  object          `json:"event"`
	Events []object        `json:"events"`
	Errors []reported      `json:"errors"`
	Error  *driverError    `json:"error"`
	Raw    json.RawMessage `json:"-"`
}

// reported is what an error callback got.
type reported struct {
	Op     string `json:"op"`
	ID     string `json:"id"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Field  string `json:"field"`
}

type driverError struct {
	Kind   string `json:"kind"`
	Field  string `json:"field"`
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func startDriver(t *testing.T, command []string, env ...string) *driver {
	t.Helper()
	d := &driver{cmd: exec.CommandContext(t.Context(), command[0], command[1:]...)}
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stderr = &d.stderr
	d.cmd.SysProcAttr = processAttr()
	var err error
	if d.stdin, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stdout = bufio.NewReader(stdout)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.kill()
		if t.Failed() {
			t.Logf("what the driver wrote to its standard error:\n%s", d.stderr.tail(logTailBytes))
		}
	})
	return d
}

// kill ends it with SIGKILL.
func (d *driver) kill() {
	_ = d.cmd.Process.Kill() // or it has ended
	_ = d.cmd.Wait()
}

// do has it do one thing. An error is the caller's to look at.
func (d *driver) do(t *testing.T, what string, args object) reply {
	t.Helper()
	command := object{"do": what}
	for name, value := range args {
		command[name] = value
	}
	text, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.stdin.Write(append(text, '\n')); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	line, err := d.stdout.ReadBytes('\n')
	if err != nil {
		t.Fatalf("%s: no answer: %v", what, err)
	}
	var fails struct {
		Error json.RawMessage `json:"error"`
	}
	r := reply{Raw: line}
	err = json.Unmarshal(line, &fails)
	if err == nil && (args["query"] == nil || fails.Error != nil) { // else the members are the API's
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		t.Fatalf("%s: answer %q: %v", what, line, err)
	}
	return r
}

// must is do of what has to succeed.
func (d *driver) must(t *testing.T, what string, args object) reply {
	t.Helper()
	r := d.do(t, what, args)
	if r.Error != nil {
		t.Fatalf("%s %.500v: %+v", what, args, *r.Error)
	}
	return r
}

func (d *driver) requireError(t *testing.T, kind, what string, args object) *driverError {
	t.Helper()
	r := d.do(t, what, args)
	if r.Error == nil || r.Error.Kind != kind {
		t.Fatalf("%s %.500v: answered %.500s, want an error of kind %s", what, args, r.Raw, kind)
	}
	return r.Error
}

// flushTime is far above what a flush takes, in seconds.
const flushTime = 30

// sdkTest has one client library work with one server.
type sdkTest struct {
	command []string
	server  *client
	// name is that of the test, for ids and conversations.
	name string
	// listed are the events that testSDKLists lists, in order of time.
	listed []object
}

// open starts a driver with a client.
func (s *sdkTest) open(t *testing.T, options object) *driver {
	t.Helper()
	d := startDriver(t, s.command)
	all := object{"url": s.server.base}
	for name, value := range options {
		all[name] = value
	}
	d.must(t, "open", object{"options": all})
	return d
}

// TestSDK has every client library do the same against real servers.
func TestSDK(t *testing.T) {
	t.Parallel()
	_, server := serve(t, t.TempDir())
	listed := writeListed(t, server)
	writeAsked(t, server)
	for _, one := range sdks {
		t.Run(one.name, func(t *testing.T) {
			command := one.command(t)
			for name, test := range map[string]func(t *testing.T, s *sdkTest){
				"ids":            testSDKIDs,
				"life":           testSDKLife,
				"bodies":         testSDKBodies,
				"refused calls":  testSDKInvalid,
				"refused writes": testSDKRefused,
				"order":          testSDKOrder,
				"conversation":   testSDKConversation,
				"queries":        testSDKQueries,
				"lists":          testSDKLists,
				"questions":      testSDKQuestions,
				"broken exports": testSDKBrokenExports,
				"trace":          testSDKTrace,
				"closed":         testSDKClosed,
				"keys":           testSDKKeys,
				"proxy":          testSDKProxy,
				"held spool":     testSDKHeldSpool,
				"forward proxy":  testSDKForwardProxy,
				"outage":         testSDKOutage,
				"spool":          testSDKSpool,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, &sdkTest{command: command, server: server, name: one.name + " " + name, listed: listed})
				})
			}
			t.Run("examples", func(t *testing.T) {
				for _, example := range one.examples(t) {
					cmd := exec.CommandContext(t.Context(), example[0], example[1:]...)
					cmd.Dir = t.TempDir()
					cmd.Env = append(os.Environ(), "SLUICE_URL="+server.base, "PYTHONPATH="+filepath.Join(sdkDir(t), "python", "src"))
					out, err := cmd.CombinedOutput()
					if err != nil {
						t.Errorf("%s: %v\n%s", filepath.Base(example[len(example)-1]), err, out)
					}
				}
			})
		})
	}
}

func readVectors(t *testing.T, file string, v any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "sdk", "spec", "vectors", file))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func testSDKIDs(t *testing.T, s *sdkTest) {
	var vectors struct {
		Mint []struct {
			Name           string `json:"name"`
			ConversationID string `json:"conversation_id"`
			UnixMicros     int64  `json:"unix_micros"`
			Random         string `json:"random"`
			ID             string `json:"id"`
		} `json:"mint"`
		Sequences []struct {
			Name  string   `json:"name"`
			First string   `json:"first"`
			Steps []object `json:"steps"`
		} `json:"sequences"`
	}
	readVectors(t, "ids.json", &vectors)
	d := startDriver(t, s.command)
	for _, v := range vectors.Mint {
		r := d.must(t, "mint", object{"conversation_id": v.ConversationID, "unix_micros": v.UnixMicros, "random": v.Random})
		if r.ID != v.ID {
			t.Errorf("%s: id %s, want %s", v.Name, r.ID, v.ID)
		}
	}
	for _, v := range vectors.Sequences {
		var want []string
		for _, step := range v.Steps {
			want = append(want, step["id"].(string))
		}
		got := d.must(t, "sequence", object{"first": v.First, "steps": v.Steps}).IDs
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s: ids (-want +got):\n%s", v.Name, diff)
		}
	}
}

// testSDKConversation tracks many events of one conversation, which are read in
// the order of the calls.
func testSDKConversation(t *testing.T, s *sdkTest) {
	const events = 700 // more than a batch
	d := s.open(t, nil)
	for kind, members := range map[string]object{
		"untimed":        {},
		"equal":          {"timestamp": "2026-01-02T03:04:05.678Z"},
		"repeated hours": {},
		"own ids":        {},
	} {
		conversation := s.name + " " + kind
		for i := range events {
			event := with(members, object{"conversation_id": conversation, "event_name": "event_a", "latency": i})
			switch kind {
			case "repeated hours": // of the end of summer time
				event["timestamp"] = "2025-10-26T02:30:00.000001+02:00"
				if i >= events/2 {
					event["timestamp"] = "2025-10-26T02:30:00.000001+01:00"
				}
			case "own ids":
				event["id"] = fmt.Sprint(conversation, " ", i)
			}
			d.must(t, "track", object{"event": event})
		}
		got := d.must(t, "conversation", object{"id": conversation, "limit": 300, "wait": flushTime}).Events
		if len(got) != events {
			t.Errorf("%s: %d events, want %d", kind, len(got), events)
		}
		for i, e := range got {
			if e["latency"] != float64(i) {
				t.Errorf("%s: event %d is %v", kind, i, e["latency"])
				break
			}
		}
	}
	if errs := d.must(t, "reported", nil).Errors; len(errs) > 0 {
		t.Errorf("reported: %v", errs)
	}
}

// testSDKLife is of one event from its create to its delete.
func testSDKLife(t *testing.T, s *sdkTest) {
	d := s.open(t, object{"gzip": true})
	vector := make([]float64, 384)
	for i := range vector {
		vector[i] = float64(float32(math.Sin(float64(i))))
	}
	event := object{
		"conversation_id": s.name, "conversation_metadata": object{"plan": "pro"}, "event_name": "event_a",
		"error": "late", "latency": 12.5, "input": strings.Repeat("Hello, 世界. ", 200), "output": []any{object{"role": "assistant", "content": "Hi"}},
		"input_embeddings": vector, "output_embeddings": []float64{1, -0.5},
	}
	began := time.Now()
	id := d.must(t, "track", object{"event": event}).ID
	got := d.must(t, "event", object{"id": id, "wait": flushTime}).Event
	at, err := time.Parse(time.RFC3339, fmt.Sprint(got["timestamp"]))
	if err != nil || at.Before(began.Truncate(time.Millisecond)) || at.After(time.Now()) {
		t.Errorf("timestamp %v, error %v", got["timestamp"], err)
	}
	want := with(event, object{"id": id, "timestamp": got["timestamp"]})
	if diff := gocmp.Diff(plain(t, want), plain(t, got)); diff != "" {
		t.Error(diff)
	}
	d.must(t, "update", object{"id": id, "fields": object{"error": nil, "latency": 99, "output": "text", "output_embeddings": nil}})
	got = d.must(t, "event", object{"id": id, "wait": flushTime}).Event
	want = with(want, object{"error": nil, "latency": 99, "output": "text", "output_embeddings": nil})
	if diff := gocmp.Diff(plain(t, want), plain(t, got)); diff != "" {
		t.Error(diff)
	}
	d.must(t, "delete", object{"id": id})
	fault := d.requireError(t, "api", "event", object{"id": id, "wait": flushTime})
	if fault.Status != http.StatusNotFound || fault.Code != "unknown_event" {
		t.Errorf("of a deleted event: %+v", *fault)
	}
	d.must(t, "close", object{"timeout": flushTime})
}

// with is an object with other members.
func with(o, members object) object {
	all := make(object)
	for _, from := range []object{o, members} {
		for name, value := range from {
			all[name] = value
		}
	}
	return all
}

// plain is the object as it would be read, its embeddings rounded to float32,
// of which there are several decimals.
func plain(t *testing.T, o object) object {
	t.Helper()
	text, err := json.Marshal(o)
	var again object
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"input_embeddings", "output_embeddings"} {
		vector, _ := again[name].([]any)
		for i := range vector {
			vector[i] = float64(float32(vector[i].(float64)))
		}
	}
	return again
}

type sdkCall struct {
	Name   string `json:"name"`
	Call   string `json:"call"`
	ID     string `json:"id"`
	Event  object `json:"event"`
	Fields object `json:"fields"`
	Field  string `json:"field"`

	RepeatDimensions int `json:"repeat_dimensions"`
}

type sdkCalls struct {
	Bodies  []sdkCall `json:"bodies"`
	Invalid []sdkCall `json:"invalid"`
}

// testSDKBodies creates the events of the vectors, and reads them back.
func testSDKBodies(t *testing.T, s *sdkTest) {
	var vectors sdkCalls
	readVectors(t, "clients.json", &vectors)
	d := s.open(t, nil)
	ids := make(map[string]object)
	for i, v := range vectors.Bodies {
		if v.Call != "track" {
			continue
		}
		if v.Event["id"] != nil {
			v.Event["id"] = fmt.Sprintf("%s %d", s.name, i)
		}
		ids[d.must(t, "track", object{"event": v.Event}).ID] = v.Event
	}
	for id, event := range ids {
		got := plain(t, d.must(t, "event", object{"id": id, "wait": flushTime}).Event)
		for name, want := range plain(t, event) {
			if diff := gocmp.Diff(want, got[name]); diff != "" {
				t.Errorf("%s: %s: %s", id, name, diff)
			}
		}
	}
}

func testSDKInvalid(t *testing.T, s *sdkTest) {
	var vectors sdkCalls
	readVectors(t, "clients.json", &vectors)
	d := s.open(t, nil)
	for _, v := range vectors.Invalid {
		args := object{"id": v.ID}
		switch v.Call {
		case "track":
			if v.RepeatDimensions > 0 {
				v.Event["output_embeddings"] = make([]float64, v.RepeatDimensions)
			}
			args = object{"event": v.Event}
		case "update":
			args["fields"] = v.Fields
		}
		if err := d.requireError(t, "invalid", v.Call, args); !strings.HasPrefix(err.Field, v.Field) || v.Field == "" && err.Field != "" {
			t.Errorf("%s: field %q, want %q", v.Name, err.Field, v.Field)
		}
	}
	d.must(t, "close", object{"timeout": flushTime})
}

// testSDKRefused writes what only the server can refuse, beside what it does not.
func testSDKRefused(t *testing.T, s *sdkTest) {
	d := s.open(t, nil)
	good := d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}).ID
	bad := d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "of nobody"}}).ID
	d.must(t, "update", object{"id": good, "fields": object{"event_name": "of nobody"}})
	d.must(t, "flush", object{"timeout": flushTime})
	want := []reported{
		{"create", bad, http.StatusUnprocessableEntity, "invalid_value", "event_name"},
		{"update", good, http.StatusUnprocessableEntity, "invalid_value", "event_name"},
	}
	if diff := gocmp.Diff(want, d.must(t, "reported", nil).Errors); diff != "" {
		t.Error(diff)
	}
	events := d.must(t, "conversation", object{"id": s.name, "limit": 10, "wait": flushTime}).Events
	if len(events) != 1 || events[0]["id"] != good {
		t.Errorf("the conversation has %v, want %s alone", events, good)
	}
}

// testSDKOrder writes to a few events again and again.
func testSDKOrder(t *testing.T, s *sdkTest) {
	d := s.open(t, object{"batch_writes_max": 7})
	const updates = 40
	var ids []string
	for range 3 {
		ids = append(ids, d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}).ID)
	}
	for i := range updates {
		for _, id := range ids {
			d.must(t, "update", object{"id": id, "fields": object{"latency": i, "output": fmt.Sprint(i)}})
		}
	}
	d.must(t, "delete", object{"id": ids[2]})
	d.must(t, "update", object{"id": ids[2], "fields": object{"latency": 1}})
	events := d.must(t, "conversation", object{"id": s.name, "limit": 1, "wait": flushTime}).Events
	if len(events) != 2 {
		t.Fatalf("%d events, want 2: %v", len(events), events)
	}
	for _, e := range events {
		if e["latency"] != float64(updates-1) || e["output"] != fmt.Sprint(updates-1) {
			t.Errorf("latency %v, output %v, want those of the last update", e["latency"], e["output"])
		}
	}
	if errs := d.must(t, "reported", nil).Errors; len(errs) > 0 {
		t.Errorf("reported: %v", errs)
	}
}

// testSDKQueries asks the four queries.
func testSDKQueries(t *testing.T, s *sdkTest) {
	d := s.open(t, nil)
	const events = 20
	for i := range events {
		e := object{"conversation_id": s.name, "event_name": "event_b", "latency": 10 * (i + 1), "conversation_metadata": object{"of": s.name}}
		if i%4 == 0 {
			e["error"] = "failed"
		}
		d.must(t, "track", object{"event": e})
	}
	filter := object{"metadata": object{"of": s.name}, "since": "1h"}
	ask := func(what string, query object) object {
		t.Helper()
		var got object
		if err := json.Unmarshal(d.must(t, what, object{"query": with(filter, query), "wait": flushTime}).Raw, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := ask("errors", object{"event_name": "event_b"})
	if got["events"] != 20.0 || got["errors"] != 5.0 || got["error_rate"] != 0.25 {
		t.Errorf("errors: %v", got)
	}
	rows := func(o object) []any { all, _ := o["rows"].([]any); return all }
	got = ask("latency", object{"q": []float64{0.5, 1 - 0.05}, "group_by": []string{"conversation"}})
	want := object{"conversation_id": s.name, "event_name": nil, "events": 20.0}
	if r := rows(got); len(r) != 1 || !contains(r[0], want) || len(r[0].(object)["quantiles"].(object)) != 2 {
		t.Errorf("latency: %v, want %v with two quantiles", got, want)
	}
	got = ask("conversations", object{"order_by": "error_rate", "min_events": 2, "limit": 1})
	want = object{"conversation_id": s.name, "events": 20.0, "errors": 5.0, "error_rate": 0.25}
	if r := rows(got); len(r) != 1 || !contains(r[0], want) {
		t.Errorf("conversations: %v, want %v", got, want)
	}
	got = ask("timeseries", object{"interval": "1h"})
	sum := 0.0
	for _, r := range rows(got) {
		n, _ := r.(object)["events"].(float64)
		sum += n
	}
	if sum != events {
		t.Errorf("timeseries: %v, want %d events in all", got, events)
	}
	// Where the parameter has a type, the call refuses it; else the server does.
	if r := d.do(t, "errors", object{"query": object{"since": "yesterday"}}); r.Error == nil || r.Error.Field != "since" {
		t.Errorf("of a wrong parameter: %s", r.Raw)
	}
}

// writeListed writes the events that testSDKLists lists, and returns them as they are
// read, in order of time.
func writeListed(t *testing.T, server *client) []object {
	t.Helper()
	var events []object
	var lines [][]byte
	for i, e := range []object{
		{"conversation_id": "listed 1", "event_name": "event_a", "latency": 10, "input": "first", "input_embeddings": []float64{0.5, -1}},
		{"conversation_id": "listed/2", "event_name": "event_b", "latency": 20, "error": "late", "input": []int{1, 2}, "output": "漢"},
		{"conversation_id": "listed 1", "event_name": "event_a", "error": "late", "output": object{"first_input": ""}},
		{"conversation_id": "listed/2", "event_name": "event_c", "latency": 30},
		{"conversation_id": "listed 3", "event_name": "event_b", "latency": 20.5},
	} {
		metadata := []object{
			{"n": 1, "plan": "pro"}, {"n": 2, "plan": "free"}, {"n": 9007199254740993, "plan": "pro"}, {"n": "x"}, {"n": 2.5, "plan>": "b", "trial": nil},
		}[i]
		metadata["of"] = "lists"
		e = with(object{"error": nil, "latency": nil, "input": nil, "output": nil}, e)
		e["id"], e["timestamp"], e["conversation_metadata"] = fmt.Sprintf("listed %d", i), fmt.Sprintf("2026-02-01T00:00:0%d.25Z", i), metadata
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		events, lines = append(events, plain(t, e)), append(lines, text)
	}
	a, err := server.do(http.MethodPost, "/events", bytes.Join(lines, []byte{'\n'}), "wait=30")
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("write the events to list: status %d, error %v: %.500s", a.status, err, a.body)
	}
	return events
}

// testSDKLists lists the same events with each library, by filters of all kinds, in both
// orders and over pages of two.
func testSDKLists(t *testing.T, s *sdkTest) {
	d := s.open(t, nil)
	conditions := func(all ...string) []object {
		var list []object
		for i := 0; i+2 < len(all); i += 3 {
			list = append(list, object{"key": all[i], "op": all[i+1], "value": all[i+2]})
		}
		return list
	}
	for name, tt := range map[string]struct {
		query object
		want  []int // of s.listed
	}{
		"everything":           {object{}, []int{0, 1, 2, 3, 4}},
		"with an error":        {object{"error": true}, []int{1, 2}},
		"without an error":     {object{"error": false}, []int{0, 3, 4}},
		"one name":             {object{"event_name": "event_b"}, []int{1, 4}},
		"several names":        {object{"event_name": "event_c", "event_names": []string{"event_a"}}, []int{0, 2, 3}},
		"latency":              {object{"latency_min": 20, "latency_max": 20.5}, []int{1, 4}},
		"time":                 {object{"since": "2026-02-01T00:00:01.25Z", "until": "2026-02-01T00:00:03.25Z"}, []int{1, 2}},
		"a conversation":       {object{"conversation_id": "listed/2"}, []int{1, 3}},
		"embeddings":           {object{"conversation_id": "listed 1", "embeddings": true}, []int{0, 2}},
		"nothing":              {object{"conversation_id": "listed 4"}, nil},
		"metadata":             {object{"metadata": object{"of": "lists", "plan": "pro"}, "conditions": conditions("n", "<", "5")}, []int{0}},
		"equal":                {object{"conditions": conditions("n", "=", "2")}, []int{1}},
		"not equal":            {object{"conditions": conditions("plan", "!=", "pro", "plan", "!=", "free")}, []int{3, 4}},
		"less":                 {object{"conditions": conditions("n", "<", "2.5")}, []int{0, 1}},
		"less or equal":        {object{"conditions": conditions("n", "<=", "2.5")}, []int{0, 1, 4}},
		"greater":              {object{"conditions": conditions("n", ">", "2")}, []int{2, 4}},
		"greater or equal":     {object{"conditions": conditions("n", ">=", "2")}, []int{1, 2, 4}},
		"greater, all digits":  {object{"conditions": conditions("n", ">", "9007199254740992")}, []int{2}},
		"greater than a text":  {object{"conditions": conditions("plan", ">", "free")}, []int{0, 2}},
		"exists":               {object{"conditions": conditions("trial", "exists", "")}, []int{4}},
		"missing":              {object{"conditions": conditions("trial", "missing", "")}, []int{0, 1, 2, 3}},
		"a key with operators": {object{"conditions": conditions("plan>", ">=", "b")}, []int{4}},
		"all at once": {object{
			"error": true, "event_names": []string{"event_a", "event_b"}, "latency_max": 1000, "since": "2026-01-01T00:00:00Z",
			"conditions": conditions("n", ">", "1", "trial", "missing", ""),
		}, []int{1}},
	} {
		query := with(object{"metadata": object{"of": "lists"}, "limit": 2}, tt.query)
		want := []object{}
		for _, i := range tt.want {
			e := with(s.listed[i], nil)
			if query["embeddings"] == nil {
				delete(e, "input_embeddings")
			}
			want = append(want, e)
		}
		newest := slices.Clone(want)
		slices.Reverse(newest)
		for order, want := range map[string][]object{"timestamp": want, "-timestamp": newest, "": newest} {
			if diff := gocmp.Diff(want, d.list(t, "list_events", object{"query": inOrder(query, order)})); diff != "" {
				t.Errorf("%s in order %q (-want +got):\n%s", name, order, diff)
			}
		}
		delete(query, "embeddings")
		if diff := gocmp.Diff(summaries(want), d.list(t, "list_conversations", object{"query": query})); diff != "" {
			t.Errorf("conversations of %s (-want +got):\n%s", name, diff)
		}
	}

	for order, want := range map[string][]any{
		"timestamp": {"listed 0", "listed 2"}, "-timestamp": {"listed 2", "listed 0"}, "": {"listed 0", "listed 2"},
	} {
		var got []any
		query := inOrder(object{"conditions": conditions("n", ">=", "1"), "event_names": []string{"event_a"}}, order)
		for _, e := range d.list(t, "conversation", object{"id": "listed 1", "limit": 1, "query": query}) {
			got = append(got, e["id"])
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("a conversation in order %q (-want +got):\n%s", order, diff)
		}
	}
	var count object
	query := object{"since": "2026-01-01T00:00:00Z", "metadata": object{"of": "lists"}, "conditions": conditions("n", "<", "5"), "error": true}
	if err := json.Unmarshal(d.must(t, "errors", object{"query": query}).Raw, &count); err != nil || count["events"] != 1.0 || count["errors"] != 1.0 {
		t.Errorf("errors: %v, error %v, want one event", count, err)
	}
	for _, what := range []string{"list_events", "list_conversations", "errors", "latency", "conversations", "timeseries"} {
		err := d.requireError(t, "invalid", what, object{"query": object{"conditions": conditions("plan>", "=", "b")}})
		if err.Field != "metadata.plan>" {
			t.Errorf("%s: a condition that cannot be sent is refused for the field %q", what, err.Field)
		}
	}
}

// writeAsked writes the events that testSDKQuestions asks about. Their metadata have
// integers beyond 2^53, whose sum is beyond 2^64.
func writeAsked(t *testing.T, server *client) {
	t.Helper()
	lines := `{"id":"asked 0","conversation_id":"asked a","event_name":"event_a","timestamp":"2026-03-01T00:00:00Z","latency":10,"input":"the red fox","input_embeddings":[1,0],"conversation_metadata":{"of":"asked","user":"u1","n":9007199254740993}}
{"id":"asked 1","conversation_id":"asked a","event_name":"event_b","timestamp":"2026-03-01T00:00:01.5Z","error":"late","input":{"say":"the blue fox"},"input_embeddings":[0.8,0.6],"conversation_metadata":{"of":"asked","user":"u1","n":18446744073709551615}}
{"id":"asked 2","conversation_id":"asked b","event_name":"event_a","timestamp":"2026-03-01T12:00:00Z","latency":30,"output":"漢字 a;b","conversation_metadata":{"of":"asked","user":"u2","plan":"a;b"}}
{"id":"asked 3","conversation_id":"asked c","event_name":"event_b","timestamp":"2026-03-02T12:00:00Z","conversation_metadata":{"of":"asked","user":"u2","n":2}}
`
	a, err := server.do(http.MethodPost, "/events", []byte(lines), "wait=30")
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("write the events to ask about: status %d, error %v: %.500s", a.status, err, a.body)
	}
}

// testSDKQuestions searches, exports, and asks for insights, a funnel, a retention and SQL.
func testSDKQuestions(t *testing.T, s *sdkTest) {
	var options object
	if strings.HasPrefix(s.name, "typescript") {
		options = object{"big_integers": true} // the others always keep the digits
	}
	d := s.open(t, options)
	filter := object{"since": "2026-03-01T00:00:00Z", "until": "2026-03-03T00:00:00Z", "metadata": object{"of": "asked"}}
	// ask compares an answer, whose numbers keep their digits. A library may have null or
	// nothing where there is no value.
	ask := func(name, what string, query object, want string) {
		t.Helper()
		got, wanted := exactly(t, d.must(t, what, object{"query": query}).Raw), exactly(t, []byte(want))
		if diff := gocmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	for name, tt := range map[string]struct {
		query object
		want  string // id, score and what was found of each result
	}{
		"words":                 {object{"text": "FOX red"}, "asked 0 1 [red fox]"},
		"pages of one":          {object{"text": "fox", "limit": 1}, "asked 1 1 [fox], asked 0 1 [fox]"},
		"a field":               {object{"text": "漢字", "field": "output"}, "asked 2 1 [漢字]"},
		"a field without it":    {object{"text": "漢字", "field": "input"}, ""},
		"a filter":              {object{"text": "fox", "error": true, "conditions": []object{{"key": "n", "op": ">", "value": "9007199254740993"}}}, "asked 1 1 [fox]"},
		"a vector, exactly":     {object{"vector": []float64{1, 0}, "exact": true}, "asked 0 1 [], asked 1 0.8 []"},
		"a vector":              {object{"vector": []float64{1, 0}}, "asked 0 1 [], asked 1 0.8 []"},
		"an event like another": {object{"like": "asked 0"}, "asked 1 0.8 []"},
		"a text and a vector":   {object{"text": "fox", "vector": []float64{0.8, 0.6}}, "asked 1 0.0328 [fox], asked 0 0.0323 [fox]"},
	} {
		var got struct {
			Results []struct {
				Event      object
				Score      float64
				Highlights []struct {
					Field     string
					Fragments []struct {
						Text  string
						Match bool
					}
				}
			}
		}
		if err := json.Unmarshal(d.must(t, "search", object{"query": with(filter, tt.query)}).Raw, &got); err != nil {
			t.Fatal(err)
		}
		var results []string
		for _, r := range got.Results {
			var found []string
			for _, h := range r.Highlights {
				for _, f := range h.Fragments {
					if f.Match {
						found = append(found, f.Text)
					}
				}
			}
			results = append(results, fmt.Sprint(r.Event["id"], " ", math.Round(r.Score*1e4)/1e4, " ", found))
		}
		if all := strings.Join(results, ", "); all != tt.want {
			t.Errorf("a search by %s found %s, want %s", name, all, tt.want)
		}
	}

	ask("insights", "insights", with(filter, object{"measures": []string{"events", "sum(metadata.n)", "error_rate", "max(latency)"}}),
		`{"rows":[{"events":4,"sum(metadata.n)":18455751272964292610,"error_rate":0.25,"max(latency)":30}],"truncated":false}`)
	ask("insights by user and day", "insights", with(filter, object{
		"measures": []string{"events", "sum(metadata.n)", "avg(latency)"}, "group_by": []string{"metadata.user"}, "interval": "1d", "tz": "Asia/Kolkata", "limit": 2,
	}), `{"rows":[{"time":"2026-02-28T18:30:00Z","metadata.user":"u1","events":2,"sum(metadata.n)":18455751272964292608,"avg(latency)":10},
		{"time":"2026-02-28T18:30:00Z","metadata.user":"u2","events":1,"sum(metadata.n)":0,"avg(latency)":30}],"truncated":true}`)
	ask("insights by conversation, name and number", "insights", with(filter, object{
		"measures": []string{"avg(latency)"}, "group_by": []string{"conversation", "event_name", "metadata.n"}, "order": "asc", "order_by": "avg(latency)",
	}), `{"rows":[{"conversation_id":"asked a","event_name":"event_a","metadata.n":9007199254740993,"avg(latency)":10},{"conversation_id":"asked b","event_name":"event_a","metadata.n":null,"avg(latency)":30},
		{"conversation_id":"asked a","event_name":"event_b","metadata.n":18446744073709551615,"avg(latency)":null},{"conversation_id":"asked c","event_name":"event_b","metadata.n":2,"avg(latency)":null}],"truncated":false}`)
	ask("a funnel", "funnel", with(filter, object{"steps": []any{"event_a", object{"event_name": "event_b", "error": true}}, "per": "metadata.user"}),
		`{"rows":[{"steps":[{"event_name":"event_a","subjects":2,"conversion":1,"conversion_from_previous":1,"median_ms_from_previous":null},
		{"event_name":"event_b","subjects":1,"conversion":0.5,"conversion_from_previous":0.5,"median_ms_from_previous":1500}]}],"truncated":false}`)
	ask("a funnel by plan within 25 hours", "funnel", with(filter, object{
		"steps": []any{object{"event_name": "event_a", "metadata": object{"plan": "a;b"}}, "event_b"}, "per": "metadata.user", "group_by": "metadata.plan", "window": "90000s",
	}), `{"rows":[{"metadata.plan":"a;b","steps":[{"event_name":"event_a","subjects":1,"conversion":1,"conversion_from_previous":1,"median_ms_from_previous":null},
		{"event_name":"event_b","subjects":1,"conversion":1,"conversion_from_previous":1,"median_ms_from_previous":86400000}]}],"truncated":false}`)
	ask("a retention", "retention", with(filter, object{"did": "event_a", "returned": object{"event_name": "event_b"}, "interval": "1d", "per": "metadata.user"}),
		`{"rows":[{"time":"2026-03-01T00:00:00Z","complete":true,"subjects":2,"returned":[1,1]},{"time":"2026-03-02T00:00:00Z","complete":true,"subjects":0,"returned":[0]}]}`)

	for name, tt := range map[string]struct {
		query object
		want  []any // ids
	}{
		"everything": {object{}, []any{"asked 0", "asked 1", "asked 2", "asked 3"}},
		"the rest":   {object{"cursor": "asked 1"}, []any{"asked 2", "asked 3"}},
		"a filter":   {object{"error": true, "embeddings": true}, []any{"asked 1"}},
		"nothing":    {object{"event_name": "event_c"}, nil},
	} {
		var got []any
		for _, e := range d.list(t, "export_events", object{"query": with(filter, tt.query)}) {
			got = append(got, e["id"])
			if (tt.query["embeddings"] != nil) != (e["input_embeddings"] != nil) {
				t.Errorf("an export of %s has the embeddings %v", name, e["input_embeddings"])
			}
		}
		if diff := gocmp.Diff(tt.want, got); diff != "" {
			t.Errorf("an export of %s (-want +got):\n%s", name, diff)
		}
	}

	const query = "SELECT id, toUInt256('115792089237316195423570985008687907853269984665640564039457584007913129639935') AS large, error, timestamp" +
		" FROM live_events WHERE id IN ('asked 0', 'asked 1') ORDER BY id"
	ask("SQL", "sql", object{"query": query}, `{"columns":[{"name":"id","type":"String"},{"name":"large","type":"UInt256"},{"name":"error","type":"Nullable(String)"},{"name":"timestamp","type":"DateTime64(6, 'UTC')"}],
		"rows":[["asked 0",115792089237316195423570985008687907853269984665640564039457584007913129639935,null,"2026-03-01T00:00:00.000000Z"],
		["asked 1",115792089237316195423570985008687907853269984665640564039457584007913129639935,"late","2026-03-01T00:00:01.500000Z"]]}`)
	written := func(format string) string {
		t.Helper()
		var got struct{ Bytes []byte }
		if err := json.Unmarshal(d.must(t, "write_sql", object{"query": object{"query": query, "format": format}}).Raw, &got); err != nil {
			t.Fatal(err)
		}
		return string(got.Bytes)
	}
	if got := written("csv"); !strings.HasPrefix(got, `"id","large","error","timestamp"`) || !strings.Contains(got, "115792089237316195423570985008687907853269984665640564039457584007913129639935") {
		t.Errorf("CSV: %s", got)
	}
	if got := written("parquet"); !strings.HasPrefix(got, "PAR1") || !strings.HasSuffix(got, "PAR1") {
		t.Errorf("Parquet: %q", got)
	}
	for _, what := range []string{"sql", "write_sql"} {
		fault := d.requireError(t, "api", what, object{"query": object{"query": "SELECT nothing FROM live_events", "format": "csv"}})
		if fault.Code != "invalid_query" || fault.Field != "query" {
			t.Errorf("a wrong query: %+v", *fault)
		}
	}
	for what, query := range map[string]object{
		"search": {"text": "a"}, "insights": {"measures": []string{"events"}}, "funnel": {"steps": []string{"event_a", "event_b"}}, "retention": {"did": "event_a"},
	} {
		query = with(query, object{"conditions": []object{{"key": "plan>", "op": "=", "value": "b"}}})
		if err := d.requireError(t, "invalid", what, object{"query": query}); err.Field != "metadata.plan>" {
			t.Errorf("%s: a condition that cannot be sent is refused for the field %q", what, err.Field)
		}
	}

	// With a wait, a search and SQL see what the library has just tracked.
	id := d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_a", "input": "heliotrope"}}).ID
	var found struct{ Results []struct{ Event object } }
	if err := json.Unmarshal(d.must(t, "search", object{"query": object{"text": "heliotrope", "conversation_id": s.name}, "wait": flushTime}).Raw, &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Results) != 1 || found.Results[0].Event["id"] != id {
		t.Errorf("the search after the write found %v, want %s", found, id)
	}
	id = d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}).ID
	var rows struct{ Rows [][]any }
	r := d.must(t, "sql", object{"query": object{"query": fmt.Sprintf("SELECT count() FROM live_events WHERE id = '%s'", id)}, "wait": flushTime})
	if err := json.Unmarshal(r.Raw, &rows); err != nil || len(rows.Rows) != 1 || rows.Rows[0][0] != 1.0 {
		t.Errorf("SQL after the write: %s, error %v", r.Raw, err)
	}
}

// testSDKBrokenExports exports events past a proxy that breaks every answer off after a
// few of them, within a line.
func testSDKBrokenExports(t *testing.T, s *sdkTest) {
	const (
		events     = 200
		lineBytes  = 1000
		answerMost = 20 * lineBytes
	)
	var lines []byte
	var want []any
	for i := range events {
		id := fmt.Sprintf("%s %03d", s.name, i)
		lines = fmt.Appendf(lines, `{"id":%q,"conversation_id":%q,"event_name":"event_a","timestamp":%d,"input":%q}`+"\n",
			id, s.name, 1772323200000+i, strings.Repeat("x", lineBytes))
		want = append(want, id)
	}
	a, err := s.server.do(http.MethodPost, "/events", lines, "wait=30")
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("write the events to export: status %d, error %v: %.500s", a.status, err, a.body)
	}
	target, err := url.Parse(s.server.base)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, FlushInterval: -1}
	var requests atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		forward.ServeHTTP(&breakingWriter{ResponseWriter: w, left: answerMost}, r)
	}))
	t.Cleanup(proxy.Close)
	d := s.open(t, object{"url": proxy.URL})
	var got []any
	for _, e := range d.list(t, "export_events", object{"query": object{"conversation_id": s.name}}) {
		got = append(got, e["id"])
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("exported events (-want +got):\n%s", diff)
	}
	if n := requests.Load(); n < events*lineBytes/answerMost {
		t.Errorf("%d requests, so the answers did not break off", n)
	}
}

// breakingWriter breaks an answer off when its bytes are written.
type breakingWriter struct {
	http.ResponseWriter
	left int
}

func (w *breakingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	if w.left -= n; w.left == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // the client has left, or gets them
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// Unwrap lets the proxy flush.
func (w *breakingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// exactly parses JSON. Numbers keep their digits, and members that are null are left out.
func exactly(t *testing.T, text []byte) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		t.Fatalf("%v in %.500s", err, text)
	}
	return withoutNulls(v)
}

func withoutNulls(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = withoutNulls(v[i])
		}
	case object:
		for name, member := range v {
			if member == nil {
				delete(v, name)
			}
			withoutNulls(member)
		}
	}
	return v
}

// list returns the events or conversations of an answer. Where an event has no embedding,
// a library may have null or nothing.
func (d *driver) list(t *testing.T, what string, args object) []object {
	t.Helper()
	var answer map[string][]object
	if err := json.Unmarshal(d.must(t, what, args).Raw, &answer); err != nil || len(answer) != 1 {
		t.Fatalf("%s: %d members, error %v", what, len(answer), err)
	}
	for _, list := range answer {
		for _, o := range list {
			for _, name := range []string{"input_embeddings", "output_embeddings"} {
				if o[name] == nil {
					delete(o, name)
				}
			}
		}
		return list
	}
	return nil
}

// inOrder is a query with an order; empty for the default.
func inOrder(query object, order string) object {
	if order == "" {
		return query
	}
	return with(query, object{"order": order})
}

// summaries is what a list of conversations says about events, which are given in order
// of time.
func summaries(events []object) []object {
	list := []object{}
	for _, e := range slices.Backward(events) {
		if !slices.ContainsFunc(list, func(o object) bool { return o["conversation_id"] == e["conversation_id"] }) {
			list = append(list, object{"conversation_id": e["conversation_id"], "last": e["timestamp"]})
		}
	}
	text := func(content any) any {
		if _, ok := content.(string); ok || content == nil {
			return content
		}
		b, err := json.Marshal(content)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	for _, o := range list {
		var count, errs float64
		var names []any
		var input, output any
		for _, e := range events {
			if e["conversation_id"] != o["conversation_id"] {
				continue
			}
			if count == 0 {
				o["first"] = e["timestamp"]
			}
			count++
			if e["error"] != nil {
				errs++
			}
			if !slices.Contains(names, e["event_name"]) {
				names = append(names, e["event_name"])
			}
			if input == nil {
				input = text(e["input"])
			}
			if e["output"] != nil {
				output = text(e["output"])
			}
		}
		slices.SortFunc(names, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
		o["events"], o["errors"], o["error_rate"], o["event_names"] = count, errs, errs/count, names
		o["first_input"], o["last_output"] = input, output
	}
	return list
}

// contains reports whether the object has the members.
func contains(v any, members object) bool {
	o, ok := v.(object)
	for name, want := range members {
		ok = ok && gocmp.Equal(o[name], want)
	}
	return ok
}

func testSDKTrace(t *testing.T, s *sdkTest) {
	d := s.open(t, nil)
	began := time.Now()
	good := d.must(t, "trace", object{"conversation_id": s.name, "input": "question", "output": object{"answer": 42}, "sleep": 0.05})
	bad := d.must(t, "trace", object{"conversation_id": s.name, "input": "question", "error": "the model is away", "sleep": 0})
	if !strings.Contains(bad.Raised, "the model is away") {
		t.Errorf("the caller got %q", bad.Raised)
	}
	took := float64(time.Since(began)) / float64(time.Millisecond)
	e := d.must(t, "event", object{"id": good.ID, "wait": flushTime}).Event
	latency, _ := e["latency"].(float64)
	if !contains(e, object{"event_name": "event_a", "input": "question", "output": object{"answer": 42.0}, "error": nil}) || latency < 50 || latency > took {
		t.Errorf("traced in %v ms: %v", took, e)
	}
	e = d.must(t, "event", object{"id": bad.ID, "wait": flushTime}).Event
	if text, _ := e["error"].(string); !strings.Contains(text, "the model is away") || e["output"] != nil {
		t.Errorf("traced: %v", e)
	}
}

func testSDKClosed(t *testing.T, s *sdkTest) {
	d := s.open(t, nil)
	event := object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}
	id := d.must(t, "track", event).ID
	d.must(t, "close", object{"timeout": flushTime})
	d.requireError(t, "closed", "track", event)
	d.requireError(t, "closed", "delete", object{"id": id})
	// What was tracked before was sent.
	again := s.open(t, nil)
	eventually(t, applyBound, "the event", func() error {
		if r := again.do(t, "event", object{"id": id}); r.Error != nil {
			return fmt.Errorf("%+v", *r.Error)
		}
		return nil
	})
}

// testSDKKeys is of a server that asks for keys.
func testSDKKeys(t *testing.T, s *sdkTest) {
	file := filepath.Join(t.TempDir(), "keys")
	key, line := newKey(t, "sdk", "write,read")
	writeKeys(t, file, line)
	_, server := serve(t, t.TempDir(), "--api-keys", file)
	s = &sdkTest{command: s.command, server: server, name: s.name}
	event := object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}

	d := s.open(t, object{"api_key": key})
	id := d.must(t, "track", event).ID
	d.must(t, "event", object{"id": id, "wait": flushTime})

	// A key that is not known yet: the writes are held until it is.
	later, laterLine := newKey(t, "later", "write,read")
	d = s.open(t, object{"api_key": later})
	id = d.must(t, "track", event).ID
	d.requireError(t, "timeout", "flush", object{"timeout": 0.5})
	if err := d.requireError(t, "api", "event", object{"id": id}); err.Status != http.StatusUnauthorized {
		t.Errorf("a read without a key: %+v", *err)
	}
	writeKeys(t, file, line, laterLine)
	d.must(t, "flush", object{"timeout": flushTime})
	d.must(t, "event", object{"id": id, "wait": flushTime})
	if errs := d.must(t, "reported", nil).Errors; len(errs) > 0 {
		t.Errorf("reported: %v", errs)
	}
}

// A hurdle is what a proxy does with a request before it comes to Sluice; false
// lets it pass.
type hurdle func(w http.ResponseWriter, r *http.Request) bool

// startProxy starts a proxy in front of the server. set changes its hurdle, and
// the second function counts requests that it stopped.
func startProxy(t *testing.T, server *client) (address string, set func(hurdle), stopped func() int64) {
	t.Helper()
	target, err := url.Parse(server.base)
	if err != nil {
		t.Fatal(err)
	}
	var current atomic.Pointer[hurdle]
	var count atomic.Int64
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.URL.Path = strings.TrimPrefix(r.Out.URL.Path, "/moved")
	}}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := current.Load(); h != nil && (*h)(w, r) {
			count.Add(1)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL, func(h hurdle) { current.Store(&h) }, count.Load
}

// page is a hurdle that answers so many requests with a page of HTML.
func page(requests int64, status int, header ...string) hurdle {
	var n atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > requests {
			return false
		}
		w.Header().Set("Content-Type", "text/html")
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html>This is not Sluice</html>")
		return true
	}
}

// above is a hurdle that bodies of more bytes do not take.
func above(bytesMax int64) hurdle {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.ContentLength <= bytesMax {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		return page(1, http.StatusRequestEntityTooLarge)(w, r)
	}
}

// testSDKProxy has a proxy between the client and Sluice that refuses and
// redirects. The one event that it does not let through is told, no other is
// lost, and no write overtakes another of its event.
func testSDKProxy(t *testing.T, s *sdkTest) {
	address, set, stopped := startProxy(t, s.server)
	d := s.open(t, object{"url": address})
	var ids []string
	track := func(output string) string {
		t.Helper()
		e := object{"conversation_id": s.name, "event_name": "event_a", "output": output}
		return d.must(t, "track", object{"event": e}).ID
	}

	// No request is answered until all are tracked, so that the last ones are
	// above the limit however slow the tracking is.
	const limit = 64 << 10
	tracked := make(chan struct{})
	release := sync.OnceFunc(func() { close(tracked) })
	defer release()
	limited := above(limit)
	set(func(w http.ResponseWriter, r *http.Request) bool {
		<-tracked
		return limited(w, r)
	})
	var tooLarge string
	for i := range 300 {
		ids = append(ids, track(strings.Repeat("x", 1000)))
		if i == 150 {
			tooLarge = track(strings.Repeat("y", 2*limit))
		}
	}
	release()
	d.must(t, "flush", object{"timeout": flushTime})
	if stopped() < 3 {
		t.Errorf("the proxy stopped %d requests: the limit was not tested", stopped())
	}

	for name, h := range map[string]hurdle{
		"404": page(2, http.StatusNotFound), "403": page(2, http.StatusForbidden), "401": page(2, http.StatusUnauthorized),
		"400": page(1, http.StatusBadRequest), "408": page(1, http.StatusRequestTimeout), "425": page(1, http.StatusTooEarly),
		"451": page(1, http.StatusUnavailableForLegalReasons), "429": page(1, http.StatusTooManyRequests, "Retry-After", "1"),
		"502": page(1, http.StatusBadGateway), "a captive portal": page(2, http.StatusOK), "202": page(1, http.StatusAccepted),
		"301": page(1, http.StatusMovedPermanently, "Location", "/moved/events"), "302": page(1, http.StatusFound, "Location", "/moved/events"),
		"307 to another host": page(1, http.StatusTemporaryRedirect, "Location", "http://sluice.invalid/events"),
		"307":                 page(1, http.StatusTemporaryRedirect, "Location", "/moved/events"),
		"308":                 page(1, http.StatusPermanentRedirect, "Location", address+"/moved/events"),
		"a broken connection": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
	} {
		before := stopped()
		set(h)
		id := track(name)
		ids = append(ids, id)
		gone := track("to be deleted")
		d.must(t, "update", object{"id": id, "fields": object{"output": "after " + name}})
		d.must(t, "delete", object{"id": gone})
		if name == "a broken connection" {
			d.requireError(t, "timeout", "flush", object{"timeout": 0.3})
			set(page(0, 0))
		}
		d.must(t, "flush", object{"timeout": flushTime})
		if stopped() == before && name != "a broken connection" {
			t.Errorf("%s: the proxy let everything pass", name)
		}
		if e := d.must(t, "event", object{"id": id, "wait": flushTime}).Event; e["output"] != "after "+name {
			t.Errorf("%s: the output is %v", name, e["output"])
		}
	}
	requireConversation(t, d, s.name, ids)
	if diff := gocmp.Diff([]reported{{"create", tooLarge, http.StatusRequestEntityTooLarge, "", ""}}, d.must(t, "reported", nil).Errors); diff != "" {
		t.Error(diff)
	}
}

// testSDKForwardProxy has the client reach Sluice through the proxy of its
// environment alone, by HTTP and by a tunnel for TLS with an authority of its own.
func testSDKForwardProxy(t *testing.T, s *sdkTest) {
	target, err := url.Parse(s.server.base)
	if err != nil {
		t.Fatal(err)
	}
	secure := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	t.Cleanup(secure.Close)
	var asked sync.Map
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method+" "+r.Host, true)
		if r.Method == http.MethodConnect {
			tunnel(t, w, secure.Listener.Addr().String())
			return
		}
		(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, ""
		}}).ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := os.WriteFile(authority, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]object{
		"POST sluice.example:8080": {"url": "http://sluice.example:8080"},
		"CONNECT example.com:443":  {"url": "https://example.com", "ca_file": authority},
	} {
		d := startDriver(t, s.command, "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "NO_PROXY=elsewhere.example")
		d.must(t, "open", object{"options": options})
		conversation := s.name + " " + name
		id := d.must(t, "track", object{"event": object{"conversation_id": conversation, "event_name": "event_a"}}).ID
		d.must(t, "flush", object{"timeout": flushTime})
		requireConversation(t, d, conversation, []string{id})
		if _, ok := asked.Load(name); !ok {
			t.Errorf("the proxy was not asked for %s", name)
		}
	}
}

// tunnel joins the connection of a CONNECT with one to the address.
func tunnel(t *testing.T, w http.ResponseWriter, address string) {
	var dialer net.Dialer
	there, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Errorf("dial for the tunnel: %v", err)
		return
	}
	defer there.Close()
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Errorf("take over the connection: %v", err)
		return
	}
	defer here.Close()
	if _, err := io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return // the client went away
	}
	go func() {
		_, _ = io.Copy(there, buffered)
		_ = there.Close()
	}()
	_, _ = io.Copy(here, there)
}

// testSDKHeldSpool has a client end while a proxy refuses all of its writes. The
// next one sends them.
func testSDKHeldSpool(t *testing.T, s *sdkTest) {
	address, set, stopped := startProxy(t, s.server)
	set(page(math.MaxInt64, http.StatusUnauthorized))
	spool := t.TempDir()
	d := s.open(t, object{"url": address, "spool_dir": spool})
	var ids []string
	for range 20 {
		e := object{"conversation_id": s.name, "event_name": "event_a"}
		ids = append(ids, d.must(t, "track", object{"event": e}).ID)
	}
	d.requireError(t, "timeout", "close", object{"timeout": 0.5})
	if errs := d.must(t, "reported", nil).Errors; len(errs) > 0 || stopped() == 0 {
		t.Errorf("reported: %v, of %d requests", errs, stopped())
	}
	d = s.open(t, object{"spool_dir": spool})
	d.must(t, "flush", object{"timeout": flushTime})
	requireConversation(t, d, s.name, ids)
}

// testSDKOutage has the server killed and started again while a client writes.
func testSDKOutage(t *testing.T, s *sdkTest) {
	dir := t.TempDir()
	p, server := serve(t, dir)
	s = &sdkTest{command: s.command, server: server, name: s.name}
	d := s.open(t, object{"queue_writes_max": 200, "fail_when_full": true, "batch_writes_max": 10, "request_timeout": 5})
	var ids []string
	track := func(n int) {
		t.Helper()
		for range n {
			e := object{"conversation_id": s.name, "event_name": "event_c", "output": fmt.Sprint(len(ids))}
			ids = append(ids, d.must(t, "track", object{"event": e}).ID)
		}
	}
	track(50)
	p.kill()
	track(50)
	d.requireError(t, "timeout", "flush", object{"timeout": 0.5})
	full := 0
	for range 200 {
		r := d.do(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_c", "output": "more"}})
		switch {
		case r.Error == nil:
			ids = append(ids, r.ID)
		case r.Error.Kind == "queue_full":
			full++
		default:
			t.Fatalf("%+v", *r.Error)
		}
	}
	if full == 0 {
		t.Error("the queue was never full")
	}
	serveOn(t, dir, strings.TrimPrefix(server.base, "http://"))
	d.must(t, "flush", object{"timeout": flushTime})
	requireConversation(t, d, s.name, ids)
	if errs := d.must(t, "reported", nil).Errors; len(errs) > 0 {
		t.Errorf("reported: %v", errs)
	}
	d.must(t, "close", object{"timeout": flushTime})
}

// requireConversation requires that a conversation has these events and no others.
func requireConversation(t *testing.T, d *driver, id string, want []string) {
	t.Helper()
	var got []string
	for _, e := range d.must(t, "conversation", object{"id": id, "limit": 1000, "wait": flushTime}).Events {
		got = append(got, fmt.Sprint(e["id"]))
	}
	want = slices.Clone(want)
	slices.Sort(got)
	slices.Sort(want)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("events of %s: %s", id, diff)
	}
}

// testSDKSpool has a client killed that could not send what it tracked.
func testSDKSpool(t *testing.T, s *sdkTest) {
	spool := t.TempDir()
	away := freeAddr(t) // where nobody listens
	d := startDriver(t, s.command)
	d.must(t, "open", object{"options": object{"url": "http://" + away, "spool_dir": spool}})
	var ids []string
	for i := range 300 {
		e := object{"conversation_id": s.name, "event_name": "event_a", "output": strings.Repeat(fmt.Sprint(i), 100)}
		ids = append(ids, d.must(t, "track", object{"event": e}).ID)
	}
	d.must(t, "update", object{"id": ids[0], "fields": object{"latency": 7}})
	d.must(t, "delete", object{"id": ids[1]})

	other := startDriver(t, s.command)
	other.requireError(t, "in_use", "open", object{"options": object{"url": "http://" + away, "spool_dir": spool}})
	d.kill()

	// The end of the last line was not written.
	files, err := filepath.Glob(filepath.Join(spool, "*.spool"))
	if err != nil || len(files) == 0 {
		t.Fatalf("spool files %v, error %v", files, err)
	}
	f, err := os.OpenFile(slices.Max(files), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`00000000 {"conversation_id":"torn`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	d = s.open(t, object{"spool_dir": spool})
	ids = append(ids, d.must(t, "track", object{"event": object{"conversation_id": s.name, "event_name": "event_a"}}).ID)
	d.must(t, "flush", object{"timeout": flushTime})
	requireConversation(t, d, s.name, append(ids[:1:1], ids[2:]...))
	if e := d.must(t, "event", object{"id": ids[0], "wait": flushTime}).Event; e["latency"] != 7.0 {
		t.Errorf("latency %v, want that of the update", e["latency"])
	}
	want := []reported{{Code: "spool_corrupt"}}
	if diff := gocmp.Diff(want, d.must(t, "reported", nil).Errors); diff != "" {
		t.Error(diff)
	}
	d.must(t, "close", object{"timeout": flushTime})
	// Nothing is left to send.
	d = s.open(t, object{"spool_dir": spool})
	d.must(t, "close", object{"timeout": flushTime})
	text := 0
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			text += len(b)
		}
	}
	if text > 0 {
		t.Errorf("%d bytes are left in the spool", text)
	}
}
