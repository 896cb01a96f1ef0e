//go:build faults

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// What the API promises, see internal/api/config.go and the help of --api-keys.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	revokeBound   = 5 * time.Second
	bombsBytesMax = raceFactor * 96 << 20
)

// with is the client with more headers on every request: name, value, ….
func (c *client) with(headers ...string) *client {
	return &client{c.base, &http.Client{Transport: withHeaders{c.http.Transport, headers}, Timeout: c.http.Timeout}}
}

type withHeaders struct {
	http.RoundTripper
	headers []string
}

func (w withHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for pair := range slices.Chunk(w.headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	return w.RoundTripper.RoundTrip(r)
}

// operation is one of the contract's, which names them all.
type operation struct {
	method, path string
	parameters   map[string]string // where each is, by its name
	scopes       []string          // of which a key needs one; none: no key
}

func operations(t *testing.T) []operation {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("../../sdk/spec/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []operation
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			o := operation{method, path, map[string]string{}, nil}
			for _, p := range slices.Concat(item.Parameters, op.Parameters) {
				o.parameters[p.Value.Name] = p.Value.In
			}
			security := doc.Security
			if op.Security != nil {
				security = *op.Security
			}
			for _, requirement := range security {
				for _, scopes := range requirement {
					o.scopes = append(o.scopes, scopes...)
				}
			}
			if path == "/metrics" {
				o.scopes = append(o.scopes, "admin") // which its description alone says
			}
			all = append(all, o)
		}
	}
	if len(all) < 14 {
		t.Fatalf("%d operations in the contract", len(all))
	}
	return all
}

// body is one that the operation takes.
func (o operation) body(id string) []byte {
	switch {
	case o.path == "/search":
		return []byte(`{"text":"changed"}`)
	case o.method == http.MethodPost:
		return fmt.Appendf(nil, `{"id":%q,"conversation_id":"bodies","event_name":"event_a"}`, id)
	case o.method == http.MethodPut:
		return []byte(`{"output":"changed"}`)
	}
	return nil
}

// slowClient sends a request a byte at a time.
type slowClient struct {
	head, more string
	timeout    time.Duration // of the server's
}

func slowClientKinds() []slowClient {
	const (
		half = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
		post = "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
	)
	return []slowClient{
		{half, "x", headerTimeout},
		{post + "\r\n{", " ", readTimeout},
		{half, "x", headerTimeout},
		// The begin of a frame that needs a window of 8 MiB, and empty blocks.
		{post + "Content-Encoding: zstd\r\n\r\n\x28\xb5\x2f\xfd\x00\x68" + strings.Repeat("\x00", 30), "\x00", readTimeout},
	}
}

// run sends until the server ends the connection, which it must do in time.
func (s slowClient) run(addr string, opened func()) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	_, err = io.WriteString(conn, s.head)
	opened()
	answered := make([]byte, 4096)
	for err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		if time.Since(began) > s.timeout+10*time.Second {
			return fmt.Errorf("slow client is still connected after %s, timeout %s", time.Since(began), s.timeout)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err = conn.Read(answered); errors.Is(err, os.ErrDeadlineExceeded) {
			_, err = io.WriteString(conn, s.more)
		}
	}
	if took := time.Since(began); took < s.timeout/2 {
		return fmt.Errorf("slow client was cut off after %s: %w, %.200s", took, err, answered)
	}
	return nil
}

// goodP99 is the 99th percentile of the time of requests in a while, on 8 connections.
func goodP99(t *testing.T, c *client) time.Duration {
	t.Helper()
	const connections, while, pause = 8, 2 * time.Second, 40 * time.Millisecond
	took := make([][]time.Duration, connections)
	until := time.Now().Add(while)
	err := inParallel(connections, connections, func(i int) error {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for n := 0; time.Now().Before(until); n++ {
			<-tick.C
			method, path, want := http.MethodPost, "/event", http.StatusAccepted
			body := `{"conversation_id":"good","event_name":"event_a","input":"hello"}`
			if n%4 == 0 { // a read costs the database more than a write, and is not to fill the machine
				method, path, body, want = http.MethodGet, "/event/good", "", http.StatusOK
			}
			began := time.Now()
			a, err := c.do(method, path, []byte(body), "")
			if err != nil || a.status != want {
				return fmt.Errorf("%s %s: status %d, error %w: %s", method, path, a.status, err, a.body)
			}
			took[i] = append(took[i], time.Since(began))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return all[len(all)*99/100]
}

// TestFaultSecuritySlowClients holds 1,000 connections open that dribble their
// headers or bodies. Others do not notice, and the server ends all of them.
func TestFaultSecuritySlowClients(t *testing.T) {
	const (
		clients = 1000
		// fast is a percentile that no starved client has, whatever a quiet machine does.
		fast = 50 * time.Millisecond
	)
	p, c := serve(t, t.TempDir())
	mustCreate(t, c, `{"id":"good","conversation_id":"good","event_name":"event_a"}`)
	goodP99(t, c) // warms up
	quiet := []time.Duration{goodP99(t, c), goodP99(t, c), goodP99(t, c)}

	measured := make(chan struct{})
	ended := make(chan error, 1)
	var open sync.WaitGroup
	open.Add(clients)
	go func() {
		ended <- inParallel(clients, clients, func(i int) error {
			kind := slowClientKinds()[i%len(slowClientKinds())]
			opened := sync.OnceFunc(open.Done)
			defer opened()
			for {
				if err := kind.run(strings.TrimPrefix(c.base, "http://"), opened); err != nil || kind.timeout > headerTimeout {
					return err
				}
				select {
				case <-measured:
					return nil
				default: // another takes its place
				}
			}
		})
	}()
	open.Wait()
	slow := []time.Duration{goodP99(t, c), goodP99(t, c), goodP99(t, c)}
	most := max(2*slices.Min(quiet), fast)
	for slices.Min(slow) > most && len(slow) < 10 { // what a noisy machine needs; a starved client stays one
		slow = append(slow, goodP99(t, c))
	}
	close(measured)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	t.Logf("p99 of good clients: quiet %s, beside %d slow ones %s", quiet, clients, slow)
	if got := slices.Min(slow); got > most {
		t.Errorf("p99 beside slow clients is %s, want at most %s", got, most)
	}
	p.stop(t)
}

func mustCreate(t *testing.T, c *client, event string) {
	t.Helper()
	a, err := c.do(http.MethodPost, "/event", []byte(event), "wait=20")
	if err != nil || a.status != http.StatusCreated {
		t.Fatalf("POST /event: error %v, status %d: %s", err, a.status, a.body)
	}
}

// memory reads a line of a process's status, in bytes.
func (p *process) memory(t *testing.T, line string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, after, _ := strings.Cut(string(text), line+":")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatalf("%s in %s: %v", line, text, err)
	}
	return kib << 10
}

// bombs are bodies, by their encoding, that become 100 MiB: six times the
// longest batch.
func bombs() map[string][]byte {
	var gzipped, zstded bytes.Buffer
	gz := gzip.NewWriter(&gzipped)
	zs, _ := zstd.NewWriter(&zstded, zstd.WithWindowSize(8<<20)) // which is a valid size
	zeros := make([]byte, 1<<20)
	for range 100 {
		_, _ = gz.Write(zeros) // a buffer takes everything
		_, _ = zs.Write(zeros)
	}
	_, _ = gz.Close(), zs.Close()
	return map[string][]byte{"gzip": gzipped.Bytes(), "zstd": zstded.Bytes()}
}

// TestFaultSecurityBombs sends 50 bodies at once that inflate to far more than
// is allowed.
func TestFaultSecurityBombs(t *testing.T) {
	if _, err := os.Stat("/proc/self/clear_refs"); err != nil {
		t.Skipf("measuring memory is written for Linux: %v", err)
	}
	const atOnce, volleys = 50, 3
	packed := bombs()
	p, c := serve(t, t.TempDir())
	l := newLedger("load") // warms up
	stop := l.write(c, writers)
	l.waitForWrites(t, 5*someWrites)
	stop()
	l.applied.waitApplied(t, c, applyBound)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid()), []byte("5"), 0); err != nil { // the peak begins again
		t.Fatal(err)
	}
	before := p.memory(t, "VmRSS")
	for range volleys {
		err := inParallel(atOnce, atOnce, func(i int) error {
			encoding, path := []string{"gzip", "zstd"}[i%2], []string{"/event", "/events"}[i/2%2]
			a, err := c.with("Content-Encoding", encoding).do(http.MethodPost, path, packed[encoding], "")
			if err == nil && a.status != http.StatusRequestEntityTooLarge {
				err = fmt.Errorf("%s %s: status %d, want 413: %s", path, encoding, a.status, a.body)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	peak := p.memory(t, "VmHWM")
	t.Logf("memory before %d MiB, at most %d MiB, by %d times %d bombs", before>>20, peak>>20, volleys, atOnce)
	if peak-before > bombsBytesMax {
		t.Errorf("bombs took %d MiB, want at most %d", (peak-before)>>20, bombsBytesMax>>20)
	}
	mustCreate(t, c, `{"conversation_id":"after","event_name":"event_a"}`)
	p.stop(t)
}

// TestFaultSecurityCredentials sends every operation with every state of
// credentials, on every address.
func TestFaultSecurityCredentials(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"0.0.0.0:0", ":0", "[::]:0", "localhost.example:0"} {
		for _, command := range []string{"serve", "api"} {
			p := start(t, command, "--listen", listen)
			if code := p.wait(t, startBound); code == 0 || !strings.Contains(p.log.tail(logTailBytes), "--insecure") {
				t.Errorf("%s on %s without keys: exit code %d, want a refusal that names --insecure", command, listen, code)
			}
		}
	}

	type credentials struct {
		name    string
		headers []string
		scopes  []string // nil where nobody knows who it is
	}
	all, allLine := newKey(t, "all", "write,read,admin")
	revoked, revokedLine := newKey(t, "revoked", "write,read,admin")
	unknown, _ := newKey(t, "unknown", "write,read,admin")
	states := []credentials{{name: "none"}}
	for i, headers := range [][]string{
		{"Authorization", "Bearer"},
		{"Authorization", "Bearer "},
		{"Authorization", all},
		{"Authorization", "Basic " + all},
		{"Authorization", "Basic eDp4", "X-API-Key", all},
		{"Authorization", "Bearer\t" + all},
		{"Authorization", "Bearer " + all + " x"},
		{"Authorization", "Bearer " + all[:len(all)-1]},
		{"Authorization", "Bearer " + allLine[strings.LastIndexByte(allLine, ':')+1:]}, // the hash
		{"X-API-Key", ""},
		{"X-API-Key", "Bearer " + all},
		{"X-API-Key", strings.Repeat("x", 5000)},
	} {
		states = append(states, credentials{name: fmt.Sprintf("malformed-%d", i), headers: headers})
	}
	lines := []string{allLine}
	add := func(name, key string, scopes ...string) {
		states = append(states, credentials{name + "-bearer", []string{"Authorization", "Bearer " + key}, scopes},
			credentials{name + "-header", []string{"X-API-Key", key}, scopes})
	}
	add("unknown", unknown)
	add("revoked", revoked)
	for _, scopes := range []string{"write", "read", "admin", "write,read", "write,admin", "read,admin", "write,read,admin"} {
		name := strings.ReplaceAll(scopes, ",", "-")
		key, line := newKey(t, name, scopes)
		lines = append(lines, line)
		add(name, key, strings.Split(scopes, ",")...)
	}

	path := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, path, append(lines, revokedLine)...)
	p := start(t, "serve", "--listen", "0.0.0.0:0", "--data-dir", t.TempDir(), "--api-keys", path)
	c := newClient(strings.Replace(p.addr(t), "0.0.0.0", "127.0.0.1", 1))
	c.waitReady(t)
	writeKeys(t, path, lines...)
	eventually(t, revokeBound, "the revocation", func() error { return expectStatus(c.with("X-API-Key", revoked), http.StatusUnauthorized) })
	admin := c.with("X-API-Key", all)
	mustCreate(t, admin, `{"id":"victim","conversation_id":"victims","event_name":"event_a","output":"original"}`)

	var created []string
	for _, op := range operations(t) {
		for _, state := range states {
			granted := len(op.scopes) == 0 || slices.ContainsFunc(op.scopes, func(s string) bool { return slices.Contains(state.scopes, s) })
			id, want := "victim", 0
			switch {
			case granted:
				id = "other"
			case state.scopes == nil:
				want = http.StatusUnauthorized
			default:
				want = http.StatusForbidden
			}
			name := state.name + " " + strings.TrimPrefix(op.path, "/")
			if granted && op.method == http.MethodPost && slices.Contains(op.scopes, "write") {
				created = append(created, name)
			}
			a, err := c.with(state.headers...).do(op.method, strings.ReplaceAll(op.path, "{id}", id), op.body(name), "")
			switch {
			case err != nil:
				t.Fatal(err)
			case granted && (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden || a.status >= 500):
				t.Errorf("%s %s, %s: status %d, want it allowed: %s", op.method, op.path, state.name, a.status, a.body)
			case !granted && (a.status != want || a.header.Get("Content-Type") != "application/problem+json" ||
				!strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer ")):
				t.Errorf("%s %s, %s: status %d, want %d: %v %s", op.method, op.path, state.name, a.status, want, a.header, a.body)
			}
		}
	}
	// What was refused did nothing.
	mustCreate(t, admin, `{"id":"last","conversation_id":"bodies","event_name":"event_a"}`)
	var victim struct{ Output string }
	if err := admin.get("/event/victim", &victim); err != nil || victim.Output != "original" {
		t.Errorf("the event that nobody might touch: %v, output %q", err, victim.Output)
	}
	events, err := admin.conversation("bodies", 1000, false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, e.text("id"))
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(append(created, "last"))); !slices.Equal(got, want) {
		t.Errorf("there are the events of %q, want those of %q", got, want)
	}
	p.stop(t)
}

// expectStatus asks for what needs the scope read.
func expectStatus(c *client, want int) error {
	a, err := c.do(http.MethodGet, "/openapi.yaml", nil, "")
	if err == nil && a.status != want {
		err = fmt.Errorf("status %d, want %d", a.status, want)
	}
	return err
}

// TestFaultSecurityKeyChange replaces a key of a running server.
func TestFaultSecurityKeyChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	other, otherLine := newKey(t, "other", "read")
	key, line := newKey(t, "first", "write,read")
	writeKeys(t, path, otherLine, line)
	p, c := serve(t, t.TempDir(), "--api-keys", path)

	stop, others := make(chan struct{}), make(chan error, 1)
	go func() { // who has a key that stays notices nothing
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var err error
		for err == nil {
			select {
			case <-stop:
				others <- nil
				return
			case <-tick.C:
				err = expectStatus(c.with("X-API-Key", other), http.StatusOK)
			}
		}
		others <- err
	}()
	for i := range 2 {
		next, nextLine := newKey(t, fmt.Sprintf("next-%d", i), "write,read")
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(readTimeout))
		body := fmt.Sprintf(`{"id":"under-way-%d","conversation_id":"c","event_name":"event_a"}`, i)
		fmt.Fprintf(conn, "POST /event HTTP/1.1\r\nHost: a\r\nX-API-Key: %s\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", key, len(body))
		answers := bufio.NewReader(conn)
		// The server has let it in when it asks for the body.
		if a, err := http.ReadResponse(answers, nil); err != nil || a.StatusCode != http.StatusContinue {
			t.Fatalf("the request under way: %v, %+v", err, a)
		}

		writeKeys(t, path, otherLine, nextLine)
		began := time.Now()
		eventually(t, revokeBound, "the revoked key to be refused", func() error {
			return expectStatus(c.with("X-API-Key", key), http.StatusUnauthorized)
		})
		refused := time.Since(began)
		eventually(t, revokeBound-refused, "the new key to be good", func() error {
			return expectStatus(c.with("X-API-Key", next), http.StatusOK)
		})
		t.Logf("refused after %s, the new one good after %s", refused.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

		_, _ = io.WriteString(conn, body)
		a, err := http.ReadResponse(answers, nil)
		if err != nil || a.StatusCode != http.StatusAccepted {
			t.Fatalf("the request under way: %v, %+v", err, a)
		}
		_ = a.Body.Close()
		key = next
	}
	close(stop)
	if err := <-others; err != nil {
		t.Errorf("another's key: %v", err)
	}
	p.stop(t)
}

// hostileNames are event names that the injection test configures.
func hostileNames() []string { return []string{`'; DROP TABLE events --`, `{event_name:String}`} }

// hostile are strings that mean something to some interpreter of texts.
func hostile() []string {
	return append(hostileNames(),
		// SQL, and ClickHouse's parameters and escapes.
		`'`, `"`, "`", `\`, `\'`, `' OR '1'='1`, `" OR 1=1 --`, `') OR 1=1 /*`, `*/ OR 1=1 #`, `1; TRUNCATE TABLE event_contents`,
		`' UNION ALL SELECT * FROM system.tables FORMAT JSON --`, `{conversation_id:String}`, `{x:Identifier}`, `\N`, `\x27`, `NULL`, `-1e999`,
		`toString(1)`, `%`, `%27%20OR%201%3D1`, "\u2019 OR 1=1", "\uff07 OR 1=1",
		// Ends of strings, lines and headers.
		"a\x00b", "\x00", "a\nb", "a\t", "\r\nX-Injected: yes\r\n\r\n<html>", `%0d%0aX-Injected:%20yes`, "\x1b[2J", "\x7f",
		// Paths, queries, formats, templates, shells, pages, JSON.
		".", "..", "../../../../etc/passwd", `..\..\boot.ini`, "%2e%2e%2f", "/", "//evil.example", "?a=b", "a&b=c;d", "+", " ", " a ",
		"%s%n%x", "{{.}}", "${jndi:ldap://127.0.0.1/a}", "$(id)", "; id", "<script>alert(1)</script>", `","error":"x`, `\u0000`, "__proto__",
		// Text that is hard to keep as it is.
		"e\u0301", "\u00e9", "\u202eabc", "\ufeffa", "\ufffd", "\U0001f600", "\u2028", strings.Repeat("é", 64),
	)
}

// invalid are strings that nothing may take.
func invalid() []string {
	return []string{"\xff", "a\xc0\xafb", "\xed\xa0\x80", strings.Repeat("'", 300)}
}

// escaped is every byte in percent encoding.
func escaped(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// jsonText is the string in JSON, its bytes as they are where they are no UTF-8.
func jsonText(s string) string {
	if !utf8.ValidString(s) {
		return `"` + s + `"`
	}
	b, _ := json.Marshal(s) // of a string
	return string(b)
}

func printable(s string) bool {
	return len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// harmless says what is wrong with an answer to a hostile request: it must be a
// success, a problem, or the results of a batch whose items are all refused.
func harmless(a answer) error {
	var problem struct{ Code string }
	var batch struct{ Results []result }
	switch {
	case a.header.Get("X-Injected") != "":
		return fmt.Errorf("header injected: %v", a.header)
	case a.status < 300:
		return nil
	case a.status >= 500 || a.status < 400:
		return fmt.Errorf("status %d: %.500s", a.status, a.body)
	case a.header.Get("Content-Type") == "application/json" && json.Unmarshal(a.body, &batch) == nil && len(batch.Results) > 0:
		for _, r := range batch.Results {
			if r.Error == nil || r.Error.Code == "" {
				return fmt.Errorf("status %d, and an item that is not refused: %.500s", a.status, a.body)
			}
		}
	case a.header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(a.body, &problem) != nil || problem.Code == "":
		return fmt.Errorf("status %d is no problem: %v %.500s", a.status, a.header, a.body)
	}
	return nil
}

// tables are those of the embedded database, as its files say.
func tables(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "clickhouse", "data", "metadata", "sluice", "*.sql"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("tables: %v, %v", paths, err)
	}
	return paths
}

// TestFaultSecurityInjection has hostile strings stored and asked for, and then
// sent as every parameter of every operation and every field of every body.
func TestFaultSecurityInjection(t *testing.T) {
	t.Parallel()
	const askers = 8
	dir := t.TempDir()
	p, c := serve(t, dir, "--event-names", "event_a,"+strings.Join(hostileNames(), ","))
	for i := range 3 {
		mustCreate(t, c, fmt.Sprintf(`{"id":"bystander-%d","conversation_id":"bystander","event_name":"event_a","input":"'","output_embeddings":[1,2]}`, i))
	}
	bystander := func() string {
		a, err := c.do(http.MethodGet, "/conversations/bystander/events?embeddings=true", nil, "")
		if err != nil || a.status != http.StatusOK {
			t.Fatalf("bystander: %v, status %d", err, a.status)
		}
		return string(a.body)
	}
	before, tablesBefore := bystander(), tables(t, dir)

	values := hostile()
	lines := make([][]byte, len(values))
	for i, v := range values {
		id, name := "", "event_a"
		if printable(v) {
			id = `"id":` + jsonText(v) + `,`
		}
		if i < len(hostileNames()) {
			name = v
		}
		q := jsonText(v)
		lines[i] = fmt.Appendf(nil, `{%s"conversation_id":%s,"event_name":%s,"conversation_metadata":{"k":%s,%s:"named"},"input":%s,"output":{%s:[%s]},"error":%s}`,
			id, q, jsonText(name), q, q, q, q, q, q)
	}
	results, err := c.post(lines)
	if err != nil {
		t.Fatal(err)
	}
	var applied receipts
	if err := applied.add(results...); err != nil {
		t.Fatal(err)
	}
	applied.waitApplied(t, c, applyBound)
	err = inParallel(len(values), askers, func(i int) error {
		if err := c.holds(values[i], results[i].ID, i < len(hostileNames())); err != nil {
			return fmt.Errorf("%q: %w", values[i], err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	values = append(values, invalid()...)
	var requests []func() error
	for _, op := range operations(t) {
		for name, in := range op.parameters {
			for _, v := range values {
				requests = append(requests, func() error { return c.inject(op, name, in, v) })
			}
		}
	}
	for field := range strings.FieldsSeq("op id conversation_id conversation_metadata event_name timestamp error latency input output input_embeddings output_embeddings") {
		for _, v := range values {
			requests = append(requests, func() error { return c.injectField(field, v) })
		}
	}
	if err := inParallel(len(requests), askers, func(i int) error { return requests[i]() }); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, c, `{"conversation_id":"last","event_name":"event_a"}`) // whatever was written is applied
	t.Logf("%d hostile strings, %d requests", len(values), len(requests))
	if after := bystander(); after != before {
		t.Errorf("another conversation changed from %s to %s", before, after)
	}
	if after := tables(t, dir); !slices.Equal(after, tablesBefore) {
		t.Errorf("the tables are %q, were %q", after, tablesBefore)
	}
	if log := p.log.bytes(); bytes.Contains(log, []byte("level=ERROR")) {
		t.Errorf("errors in the log: %.2000s", log)
	}
	p.stop(t)
}

// holds says how the one event that was made of v differs from that, or what
// else is found by v.
func (c *client) holds(v, id string, named bool) error {
	var single eventObject
	if err := c.get("/event/"+escaped(id), &single); err != nil {
		return err
	}
	var page struct{ Events []eventObject }
	if err := c.get("/conversations/"+escaped(v)+"/events", &page); err != nil || len(page.Events) != 1 {
		return fmt.Errorf("its conversation has %d events, want 1, error %w", len(page.Events), err)
	}
	for _, e := range append(page.Events, single) {
		var metadata map[string]string
		var output map[string][]string
		if json.Unmarshal(e["conversation_metadata"], &metadata) != nil || json.Unmarshal(e["output"], &output) != nil ||
			!maps.Equal(metadata, map[string]string{"k": v, v: "named"}) || len(output) != 1 || !slices.Equal(output[v], []string{v}) ||
			e.text("conversation_id") != v || e.text("input") != v || e.text("error") != v || e.text("id") != id || printable(v) && id != v {
			return fmt.Errorf("came back as %s", e)
		}
	}
	finds := map[string]int{
		"conversation_id=" + escaped(v): 1, "metadata.k=" + escaped(v): 1, "metadata." + escaped(v) + "=named": 1,
		"conversation_id=" + escaped(v) + "&metadata.k=" + escaped(v+"x"): 0, "event_name=" + escaped(v): 0,
	}
	if named {
		finds["event_name="+escaped(v)] = 1
	}
	if strings.Contains(v, "\x00") {
		delete(finds, "metadata."+escaped(v)+"=named") // refused, as ClickHouse cannot look for it
	}
	if strings.HasSuffix(v, "!") || strings.HasSuffix(v, "<") || strings.HasSuffix(v, ">") {
		delete(finds, "metadata."+escaped(v)+"=named") // reads as an operator: !=, <= or >=
	}
	for filter, want := range finds {
		var count struct{ Events int }
		if err := c.get("/analytics/errors?"+filter, &count); err != nil || count.Events != want {
			return fmt.Errorf("%s finds %d events, want %d, error %w", filter, count.Events, want, err)
		}
	}
	return nil
}

// inject sends v as one parameter of an operation.
func (c *client) inject(op operation, name, in, v string) error {
	path, query, headers := op.path, "", []string(nil)
	switch {
	case in == "path":
		path = strings.ReplaceAll(path, "{id}", escaped(v))
	case in == "header" && strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }):
		return nil // HTTP has no such headers
	case in == "header":
		headers = []string{name, v}
	case name == "metadata":
		query = "?metadata." + escaped(v) + "=" + escaped(v) + "&metadata.k=" + escaped(v)
	default:
		query = "?" + name + "=" + escaped(v)
	}
	path = strings.ReplaceAll(path, "{id}", "fuzzed")
	a, err := c.with(headers...).do(op.method, path+query, op.body("fuzzed"), "")
	if err == nil {
		err = harmless(a)
	}
	if err != nil {
		return fmt.Errorf("%s %s with %q as %s: %w", op.method, op.path, v, name, err)
	}
	return nil
}

// injectField sends v as a field, and as the name of one, of every kind of body.
func (c *client) injectField(field, v string) error {
	member := fmt.Sprintf(`%q:%s`, field, jsonText(v))
	create := `{"conversation_id":"fuzzed","event_name":"event_a"}`
	switch field {
	case "conversation_id":
		create = `{` + member + `,"event_name":"event_a"}`
	case "event_name":
		create = `{"conversation_id":"fuzzed",` + member + `}`
	default:
		create = strings.Replace(create, "{", "{"+member+",", 1)
	}
	update := `{"op":"update","id":"fuzzed",` + member + `}`
	for _, r := range [][3]string{
		{http.MethodPost, "/event", create},
		{http.MethodPut, "/event/fuzzed", `{` + member + `}`},
		{http.MethodPost, "/events", create + "\n" + update + "\n{" + member + "}\n{" + jsonText(v) + ":1}"},
		{http.MethodPost, "/events", "[" + create + "," + update + "]"},
	} {
		a, err := c.do(r[0], r[1], []byte(r[2]), "")
		if err == nil {
			err = harmless(a)
		}
		var batch struct{ Results []result }
		if err == nil && a.status < 300 && r[1] == "/events" {
			err = json.Unmarshal(a.body, &batch)
		}
		for _, item := range batch.Results {
			if item.Error != nil && item.Error.Status >= 500 {
				err = fmt.Errorf("an item's status is %d", item.Error.Status)
			}
		}
		if err != nil {
			return fmt.Errorf("%s %s %s: %w", r[0], r[1], r[2], err)
		}
	}
	return nil
}

// canaries are random texts, by which one sees where a text went.
type canaries map[string]string // what each was

// new makes a canary of 26 letters and digits.
func (c canaries) new(what string) string {
	text := rand.Text()
	c[text] = what
	return text
}

// requireNoneIn looks for all, also in the forms that logs may give to bytes.
func (c canaries) requireNoneIn(t *testing.T, where string, text []byte) {
	t.Helper()
	for canary, what := range c {
		for _, form := range []string{
			canary, hex.EncodeToString([]byte(canary)), base64.StdEncoding.EncodeToString([]byte(canary[:len(canary)/3*3])),
			strings.Trim(fmt.Sprintf("%d", []byte(canary)), "[]"),
		} {
			if i := bytes.Index(text, []byte(form)); i >= 0 {
				t.Errorf("%s holds the canary of a %s: …%s…", where, what, text[max(0, i-300):min(len(text), i+len(form)+50)])
			}
		}
	}
	t.Logf("looked for %d canaries in the %d bytes of %s", len(c), len(text), where)
}

// request is one with canaries, and the status that it must get where it must get one.
type request struct {
	method, path, body string
	want               int
	headers            []string
}

// requests are of all kinds, those that are served and those that are refused.
func (c canaries) requests() []request {
	id, other, conversation := c.new("id"), c.new("id"), c.new("id")
	vector := fmt.Sprintf("8%06d.5", mathrand.IntN(1e6)) // a float32 keeps all its digits
	c[vector] = "vector"
	member := func(name string) string { return fmt.Sprintf(`%q:%q`, name, c.new(name)) }
	contents := func() string {
		return fmt.Sprintf(`"conversation_metadata":{%q:%q},%s,%s,"output":[{%s}],"input_embeddings":[%s]`,
			c.new("metadata key"), c.new("metadata"), member("error"), member("input"), member("content"), vector)
	}
	create := func(id string, more string) string {
		return fmt.Sprintf(`{"id":%q,"conversation_id":%q,"event_name":"event_a",%s}`, id, conversation, more)
	}
	long := strings.Repeat(c.new("long input"), 1<<20/26+1)
	return []request{
		{"POST", "/event", create(id, contents()), 202, nil},
		{"PUT", "/event/" + id, `{` + contents() + `}`, 202, nil},
		{"POST", "/events", create(other, contents()) + "\n" + create(other, `"latency":"`+c.new("latency")+`"`) + "\n" + create(id, `"input":"`+long+`"`), 207, nil},
		{"DELETE", "/event/" + other, "", 202, nil},
		// To the dead letters.
		{"PUT", "/event/" + c.new("id"), `{` + contents() + `}`, 0, []string{"Prefer", "wait=5"}},
		// Refused for what is in them.
		{"POST", "/event", create(id, `"input":"`+long+`"`), 413, nil},
		{"POST", "/event", create(id, contents()+`,"output":"`+c.new("broken output")), 400, nil},
		{"POST", "/event", create(id, member(c.new("member"))), 400, nil},
		{"POST", "/event", create(id, `"event_name":"`+c.new("event name")+`"`), 400, nil},
		{"POST", "/event", `{"conversation_id":"c","event_name":"` + c.new("event name") + `"}`, 422, nil},
		{"POST", "/event", create(id, member("input_embeddings")), 422, nil},
		{"POST", "/events", "[" + create(id, contents()) + "," + c.new("broken item"), 400, nil},
		{"POST", "/event", c.new("compressed body"), 400, []string{"Content-Encoding", "gzip"}},
		{"POST", "/event", create(id, contents()), 415, []string{"Content-Type", c.new("content type")}},
		// Queries.
		{"GET", "/event/" + id, "", 0, nil},
		{"GET", "/conversations/" + conversation + "/events?embeddings=true", "", 0, nil},
		{"GET", "/analytics/errors?metadata." + c.new("metadata key") + "=" + c.new("metadata") + "&conversation_id=" + conversation, "", 0, nil},
		{"GET", "/analytics/conversations?event_name=" + c.new("event name"), "", 0, nil},
		{"GET", "/analytics/errors?since=" + c.new("since"), "", 422, nil},
		{"GET", "/analytics/latency?" + c.new("parameter") + "=1", "", 400, nil},
		{"GET", "/conversations/" + conversation + "/events?cursor=" + c.new("cursor"), "", 422, nil},
		{"GET", "/" + c.new("path"), "", 404, []string{"Prefer", c.new("preference"), "X-Any", c.new("header")}},
		// Credentials.
		{"GET", "/event/" + id, "", 401, []string{"Authorization", "Bearer " + c.new("unknown key")}},
		{"GET", "/event/" + id, "", 401, []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+c.new("password")))}},
	}
}

// TestFaultSecurityCanaries sends recognizable texts in every place, with all
// that is logged shown, while ClickHouse hangs and dies. None is in any log.
func TestFaultSecurityCanaries(t *testing.T) {
	t.Parallel()
	all := canaries{}
	dir, keys := t.TempDir(), filepath.Join(t.TempDir(), "keys")
	key, line := newKey(t, "canary", "write,read,admin")
	all[strings.TrimPrefix(key, "sluice_")] = "key"
	writeKeys(t, keys, line)
	p, c := serve(t, dir, "--api-keys", keys, "--log-level", "debug")
	c = c.with("X-API-Key", key)
	send := func(requests []request) error {
		return inParallel(len(requests), len(requests), func(i int) error {
			r := requests[i]
			a, err := c.with(r.headers...).do(r.method, r.path, []byte(r.body), "")
			if err == nil && a.status != r.want && r.want != 0 {
				err = fmt.Errorf("%s %.100s: status %d, want %d: %.500s", r.method, r.path, a.status, r.want, a.body)
			}
			return err
		})
	}
	logged := func(what string) int { return bytes.Count(p.log.bytes(), []byte(what)) }
	if err := send(all.requests()); err != nil {
		t.Fatal(err)
	}

	pid := engineOf(t, p)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	sent, served, requests := make(chan error, 1), logged("request served"), all.requests()
	go func() { sent <- send(requests) }()
	// The others wait for the database, and so does the consumer.
	eventually(t, startBound, "requests that need no database", func() error {
		if n := logged("request served") - served; n < len(requests)-5 {
			return fmt.Errorf("%d are served", n)
		}
		return nil
	})
	addr := regexp.MustCompile(`msg="engine ready" pid=\d+ addr=(\S+)`).FindStringSubmatch(string(p.log.bytes()))[1]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	eventually(t, startBound, "the consumer to fail", func() error {
		if logged("trying again") > 0 {
			return nil
		}
		c.waitReady(t)
		a, err := c.do(http.MethodPost, "/event", fmt.Appendf(nil, `{"conversation_id":"c","event_name":"event_a","input":%q}`, all.new("input")), "")
		if err := errors.Join(err, syscall.Kill(engineOf(t, p), syscall.SIGKILL)); err != nil {
			return err
		}
		return fmt.Errorf("it has not; the last write was answered %d", a.status)
	})
	c.waitReady(t)
	mustCreate(t, c, `{"conversation_id":"c","event_name":"event_a"}`) // and with it everything is applied
	writeKeys(t, keys, line, all.new("key in the file"))
	eventually(t, revokeBound, "a look at the broken key file", func() error {
		if logged("key file is broken") == 0 {
			return errors.New("not logged")
		}
		return nil
	})
	for _, what := range []string{"request failed", "engine died"} {
		if logged(what) == 0 {
			t.Errorf("the log does not say %q, so that this test sees too little", what)
		}
	}

	// Passwords, in commands that fail.
	password := all.new("password")
	for _, args := range [][]string{
		{"migrate", "--clickhouse-url", "clickhouse://sluice:" + password + "@" + addr + "/sluice"}, // the wrong one
		{"migrate", "--clickhouse-url", "clickhouse://sluice:" + password + "@127.0.0.1:1/sluice"},
		{"migrate", "--clickhouse-url", "clickhouse://sluice:" + password + "@host:port/sluice"},
		{"migrate", "--clickhouse-url", "clickhouse://sluice:%zz" + password + "@127.0.0.1/sluice"},
		{"dlq", "list", "--kafka-brokers", "127.0.0.1:1", "--kafka-sasl", "plain", "--kafka-user", "u", "--kafka-password", password},
		{"dlq", "list", "--kafka-sasl", "plain", "--kafka-user", "u", "--kafka-password", password, "--data-dir", dir},
		{"serve", "--kafka-password", password, "--no-such-flag"},
	} {
		failing := start(t, append(args, "--log-level", "debug")...)
		if code := failing.wait(t, startBound); code == 0 {
			t.Errorf("sluice %s succeeded", args)
		}
		all.requireNoneIn(t, args[0], slices.Concat(failing.log.bytes(), failing.out.bytes()))
	}
	p.stop(t)
	all.requireNoneIn(t, "the log", p.log.bytes())
	all.requireNoneIn(t, "standard output", p.out.bytes())
	text, err := os.ReadFile(filepath.Join(dir, "clickhouse", "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	all.requireNoneIn(t, "ClickHouse's log", text)
}
