package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicehq/sluice/internal/api"
)

func makeKey(tb testing.TB, name, scopes string) (key, line string) {
	tb.Helper()
	s, err := api.ParseScopes(scopes)
	if err != nil {
		tb.Fatal(err)
	}
	key, line, err = api.GenerateKey(name, s)
	if err != nil {
		tb.Fatal(err)
	}
	return key, line
}

func writeKeys(tb testing.TB, path string, lines ...string) {
	tb.Helper()
	// In place by rename, as an editor does.
	if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		tb.Fatal(err)
	}
}

func openKeys(tb testing.TB, lines ...string) *api.KeyStore {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "keys")
	writeKeys(tb, path, lines...)
	keys, err := api.OpenKeyStore(path, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return keys
}

// TestScopes sends every route each kind of key.
func TestScopes(t *testing.T) {
	keys := map[string]string{"none": "", "unknown": "sluice_x", "hash": ""}
	lines := []string{"# keys of the test", ""}
	for _, scopes := range []string{"write", "read", "admin", "write,read,admin"} {
		key, line := makeKey(t, strings.ReplaceAll(scopes, ",", "-"), scopes)
		keys[scopes] = key
		lines = append(lines, line)
	}
	// The hash from the file is no key.
	keys["hash"] = lines[2][strings.LastIndexByte(lines[2], ':')+1:]
	h := newHarnessSQL(t, &fakeSQL{answer: sqlText("[]\n[]\n")}, func(c *api.Config) {
		c.Keys = openKeys(t, lines...)
		c.Addr = "0.0.0.0:8080"
	})
	h.event = stored()
	needs := map[string]string{
		"POST /event": "write", "PUT /event/{id}": "write", "DELETE /event/{id}": "write", "POST /events": "write",
		"GET /event/{id}": "read", "GET /conversations/{id}/events": "read", "GET /analytics/errors": "read",
		"GET /analytics/latency": "read", "GET /analytics/conversations": "read", "GET /analytics/timeseries": "read",
		"GET /analytics/insights": "read", "GET /analytics/funnel": "read", "GET /analytics/retention": "read", "POST /sql": "read", "POST /mcp": "read",
		"GET /event": "read", "PUT /event": "write", "PATCH /event": "write", "PATCH /event/{id}": "write", "DELETE /event": "write", "GET /conversation/events": "read",
		"GET /events": "read", "POST /search": "read", "GET /export": "read", "GET /conversations": "read", "GET /openapi.yaml": "read", "GET /metrics": "read admin", "GET /healthz": "", "GET /readyz": "",
	}
	for _, route := range api.Routes() {
		need, ok := needs[route]
		if !ok {
			t.Errorf("%s: the test does not say what it needs", route)
			continue
		}
		method, path, _ := strings.Cut(route, " ")
		path = strings.ReplaceAll(path, "{id}", "a")
		switch path {
		case "/analytics/insights":
			path += "?measure=events"
		case "/analytics/funnel":
			path += "?step=event_a&step=event_b"
		case "/analytics/retention":
			path += "?did=event_a"
		}
		if path == "/event" && method != "POST" || path == "/conversation/events" {
			path += "?id=a"
		}
		body := ""
		switch route {
		case "POST /event", "POST /events":
			body = small
		case "PUT /event", "PUT /event/{id}", "PATCH /event", "PATCH /event/{id}":
			body = `{"error":"e"}`
		case "POST /sql":
			body = "SELECT 1"
		case "POST /search":
			body = `{"text":"x"}`
		case "POST /mcp":
			body = rpc
		}
		for name, key := range keys {
			for _, how := range []string{"bearer", "header"} {
				t.Run(route+" "+name+" "+how, func(t *testing.T) {
					var headers []string
					switch {
					case key == "":
					case how == "bearer":
						headers = []string{"Authorization", "bEARER  " + key}
					default:
						headers = []string{"X-API-Key", key}
					}
					switch path {
					case "/sql":
						headers = append(headers, "Content-Type", "text/plain")
					case "/mcp":
						headers = append(headers, agentHeaders...)
					}
					calls := h.calls
					a := h.do(t, method, path, body, headers...)
					granted := need == ""
					for scope := range strings.FieldsSeq(need) {
						granted = granted || strings.Contains(name, scope)
					}
					switch {
					case granted:
						if a.status >= 300 {
							t.Errorf("%d %s", a.status, a.body)
						}
						return
					case name == "none" || name == "unknown" || name == "hash":
						a.problem(t, 401, "unauthorized", "")
					default:
						a.problem(t, 403, "forbidden", "")
					}
					if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer ") {
						t.Errorf("WWW-Authenticate %q", a.header.Get("WWW-Authenticate"))
					}
					if h.calls != calls {
						t.Error("wrote all the same")
					}
				})
			}
		}
	}
	if log := h.log.String(); strings.Contains(log, "sluice_") {
		t.Errorf("a key in the log: %s", log)
	}
}

func TestOtherAuthorization(t *testing.T) {
	key, line := makeKey(t, "k", "write,read,admin")
	h := newHarness(t, func(c *api.Config) { c.Keys = openKeys(t, line) })
	for _, headers := range [][]string{
		{"Authorization", "Basic " + key},
		{"Authorization", key},
		{"Authorization", "Bearer"},
		{"Authorization", "Bearer "},
		{"Authorization", "Bearer " + key + "x"},
		{"Authorization", "Bearer " + key[:len(key)-1]},
		{"Authorization", "Bearer " + strings.Repeat("x", 300)},
		{"Authorization", "Basic x", "X-API-Key", key},
	} {
		h.do(t, "GET", "/analytics/errors", "", headers...).problem(t, 401, "unauthorized", "")
	}
	// Keys are demanded on loopback too, and then any host name will do.
	h.do(t, "GET", "/analytics/errors", "").problem(t, 401, "unauthorized", "")
	h.do(t, "GET", "/analytics/errors", "", "X-API-Key", key).expect(t, 200, "")
}

func TestGeneratedKey(t *testing.T) {
	key, line := makeKey(t, "ci.build-1_x", "read,write")
	if !strings.HasPrefix(key, "sluice_") || len(key) != len("sluice_")+43 {
		t.Errorf("key %q", key)
	}
	sum := sha256.Sum256([]byte(key))
	if want := "ci.build-1_x:write,read:" + hex.EncodeToString(sum[:]); line != want {
		t.Errorf("line %q, want %q", line, want)
	}
	again, _ := makeKey(t, "x", "read")
	if again == key {
		t.Error("the same key twice")
	}
	for _, name := range []string{"", "a:b", "a b", "a\n", "é", strings.Repeat("x", 65)} {
		if _, _, err := api.GenerateKey(name, api.ScopeRead); err == nil {
			t.Errorf("made a key with the name %q", name)
		}
	}
	if _, _, err := api.GenerateKey("a", 0); err == nil {
		t.Error("made a key without a scope")
	}
	for _, scopes := range []string{"", "all", "read,", "read write", "READ"} {
		if _, err := api.ParseScopes(scopes); err == nil {
			t.Errorf("read the scopes %q", scopes)
		}
	}
}

func TestBrokenKeyFiles(t *testing.T) {
	_, line := makeKey(t, "k", "read")
	for _, tt := range []struct{ name, content, want string }{
		{"a key instead of its hash", "k:read:sluice_secret", "line 1: the hash must be 64 hexadecimal digits"},
		{"two parts", "# c\n\nk:read", "line 3: must be name:scopes:hash"},
		{"four parts", line + ":x", "line 1: must be name:scopes:hash"},
		{"bad scope", strings.Replace(line, "read", "reed", 1), "line 1: scopes must be"},
		{"bad name", " :read:" + line[7:], "line 1: a key's name must be"},
		{"short hash", line[:len(line)-2], "line 1: the hash must be"},
		{"twice", line + "\n" + line, "line 2: the key is in the file already"},
		{"too long", strings.Repeat("#", api.KeyFileBytesMax+1), "longer than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			writeKeys(t, path, tt.content)
			_, err := api.OpenKeyStore(path, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells what is in the file: %v", err)
			}
		})
	}
	if _, err := api.OpenKeyStore(filepath.Join(t.TempDir(), "missing"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("opened a file that is not there")
	}
	t.Run("too many", func(t *testing.T) {
		var lines []string
		for range api.KeysMax + 1 {
			_, line := makeKey(t, "k", "read")
			lines = append(lines, line)
		}
		path := filepath.Join(t.TempDir(), "keys")
		writeKeys(t, path, lines...)
		if _, err := api.OpenKeyStore(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "more than 1000 keys") {
			t.Errorf("error %v", err)
		}
		if n := openKeys(t, lines[1:]...).Len(); n != api.KeysMax {
			t.Errorf("%d keys", n)
		}
	})
}

func TestKeyFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	synctest.Test(t, func(t *testing.T) {
		first, firstLine := makeKey(t, "first", "read")
		second, secondLine := makeKey(t, "second", "write")
		writeKeys(t, path, firstLine)
		var log bytes.Buffer
		keys, err := api.OpenKeyStore(path, slog.New(slog.NewJSONHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keys.Run(ctx) }()
		expect := func(wantFirst, wantSecond api.Scope) {
			t.Helper()
			<-time.After(2*api.KeyReloadInterval + time.Millisecond) // by the bubble's clock, not ours
			synctest.Wait()
			if f, s := keys.Scopes(first), keys.Scopes(second); f != wantFirst || s != wantSecond {
				t.Errorf("scopes %q and %q, want %q and %q", f, s, wantFirst, wantSecond)
			}
		}
		expect(api.ScopeRead, 0)
		writeKeys(t, path, firstLine, secondLine)
		expect(api.ScopeRead, api.ScopeWrite)
		writeKeys(t, path, secondLine) // revoked
		expect(0, api.ScopeWrite)
		writeKeys(t, path, secondLine, "broken")
		expect(0, api.ScopeWrite)
		expect(0, api.ScopeWrite)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		expect(0, api.ScopeWrite)
		writeKeys(t, path, secondLine)
		expect(0, api.ScopeWrite)
		writeKeys(t, path) // all revoked: nobody gets in, rather than everybody
		expect(0, 0)
		if keys.Len() != 0 {
			t.Errorf("%d keys", keys.Len())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "the last good keys stay in force"); n != 1 {
			t.Errorf("broken file logged %d times: %s", n, log.String())
		}
		if strings.Contains(log.String(), "sluice_") {
			t.Errorf("a key in the log: %s", log.String())
		}
	})
}

// A file is often read while somebody writes it: truncated, cut within a line,
// cut between two lines. None of that may revoke a key.
func TestKeyFileReadWhileItIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	synctest.Test(t, func(t *testing.T) {
		first, firstLine := makeKey(t, "first", "read")
		second, secondLine := makeKey(t, "second", "write")
		writeKeys(t, path, firstLine, secondLine)
		var log bytes.Buffer
		keys, err := api.OpenKeyStore(path, slog.New(slog.NewJSONHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keys.Run(ctx) }()
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(api.KeyReloadInterval / 2)
		// Each reading finds another piece, until the file is whole again.
		for _, n := range []int{0, 10, len(firstLine) + 1, len(firstLine) + 20, len(whole)} {
			if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			<-time.After(api.KeyReloadInterval)
			synctest.Wait()
			if f, s := keys.Scopes(first), keys.Scopes(second); f != api.ScopeRead || s != api.ScopeWrite {
				t.Errorf("after a reading of %d of %d bytes: scopes %q and %q", n, len(whole), f, s)
			}
		}
		if log.Len() > 0 {
			t.Errorf("a file that was only half written is logged: %s", log.String())
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * api.KeyReloadInterval)
		synctest.Wait()
		if keys.Len() != 0 || keys.Scopes(first) != 0 {
			t.Errorf("%d keys of an empty file", keys.Len())
		}
		if n := strings.Count(log.String(), `"level":"WARN"`); n != 1 || !strings.Contains(log.String(), "no key any more") {
			t.Errorf("the change to no key is logged %d times: %s", n, log.String())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestCheckBind(t *testing.T) {
	for _, tt := range []struct {
		addr           string
		keys, insecure bool
		ok             bool
	}{
		{addr: "127.0.0.1:8080", ok: true},
		{addr: "127.8.9.10:0", ok: true},
		{addr: "localhost:8080", ok: true},
		{addr: "LOCALHOST.:8080", ok: true},
		{addr: "[::1]:8080", ok: true},
		{addr: "[::ffff:127.0.0.1]:8080", ok: true},
		{addr: ":8080"},
		{addr: "0.0.0.0:8080"},
		{addr: "[::]:8080"},
		{addr: "10.0.0.1:8080"},
		{addr: "192.168.1.5:8080"},
		{addr: "example.com:8080"},
		{addr: "localhost.example.com:8080"},
		{addr: "127.0.0.1.example.com:8080"},
		{addr: ":8080", keys: true, ok: true},
		{addr: "0.0.0.0:8080", insecure: true, ok: true},
		{addr: "127.0.0.1", keys: true},
		{addr: "", keys: true},
		{addr: "127.0.0.1:port", keys: true},
		{addr: "127.0.0.1:65536", keys: true},
	} {
		err := api.CheckBind(tt.addr, tt.keys, tt.insecure)
		if (err == nil) != tt.ok {
			t.Errorf("%q, keys %v, insecure %v: %v", tt.addr, tt.keys, tt.insecure, err)
		}
	}
}

// TestLocalGuard is about pages in the browser of somebody who runs a server
// without keys.
func TestLocalGuard(t *testing.T) {
	for _, tt := range []struct {
		name, method, host string
		headers            []string
		allowed            bool
	}{
		{name: "by address", method: "POST", host: "127.0.0.1:8080", allowed: true},
		{name: "by name", method: "POST", host: "localhost:8080", allowed: true},
		{name: "by name without port", method: "POST", host: "localhost", allowed: true},
		{name: "IPv6", method: "POST", host: "[::1]:8080", allowed: true},
		{name: "IPv6 without port", method: "POST", host: "[::1]", allowed: true},
		{name: "rebound name", method: "GET", host: "evil.example:8080"},
		{name: "rebound name writes", method: "POST", host: "evil.example"},
		{name: "name that begins well", method: "GET", host: "127.0.0.1.evil.example"},
		{name: "other address", method: "GET", host: "192.168.0.2:8080"},
		{name: "no host", method: "GET", host: ""},
		{name: "own page", method: "POST", host: "127.0.0.1:8080", headers: []string{"Origin", "http://127.0.0.1:8080"}, allowed: true},
		{name: "own page by fetch", method: "POST", host: "127.0.0.1:8080", headers: []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8080"}, allowed: true},
		{name: "other page", method: "POST", host: "127.0.0.1:8080", headers: []string{"Origin", "https://evil.example"}},
		{name: "other page by fetch", method: "POST", host: "127.0.0.1:8080", headers: []string{"Sec-Fetch-Site", "cross-site"}},
		{name: "sandboxed page", method: "POST", host: "127.0.0.1:8080", headers: []string{"Origin", "null"}},
		{name: "other page reads", method: "GET", host: "127.0.0.1:8080", headers: []string{"Sec-Fetch-Site", "cross-site"}, allowed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			send := func(h *harness) int {
				target, body := "/analytics/errors", ""
				if tt.method == "POST" {
					target, body = "/event", small
				}
				r := request(tt.method, target, body, tt.headers...)
				r.Host = tt.host
				return serve(h, r).status
			}
			status := send(h)
			if (status != http.StatusForbidden) != tt.allowed {
				t.Errorf("status %d", status)
			}
			if !tt.allowed && h.calls > 0 {
				t.Error("wrote all the same")
			}
			// Somebody who said that it may be insecure gets no guard.
			if status := send(newHarness(t, func(c *api.Config) { c.Addr, c.Insecure = ":8080", true })); status == http.StatusForbidden {
				t.Error("guards an open server")
			}
		})
	}
}
