package api_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sluicehq/sluice/internal/api"
)

const appOrigin = "https://app.example"

// allowed fails unless the answer can be read by pages of the origin, and of no
// other; origin may be *, or empty for none.
func (a answer) allowed(t *testing.T, origin string) {
	t.Helper()
	if got := a.header.Get("Access-Control-Allow-Origin"); got != origin {
		t.Errorf("Access-Control-Allow-Origin is %q, want %q (status %d: %s)", got, origin, a.status, a.body)
	}
	if got := a.header.Values("Access-Control-Allow-Credentials"); len(got) > 0 {
		t.Errorf("credentials are allowed: %q", got)
	}
	if varies := slices.Contains(a.header.Values("Vary"), "Origin"); varies != (origin != "*") {
		t.Errorf("Vary is %q", a.header.Values("Vary"))
	}
}

func TestCORSOrigins(t *testing.T) {
	for _, tt := range []struct {
		name, configured, origin, want string
	}{
		{"of the list", "http://localhost:3000 " + appOrigin, appOrigin, appOrigin},
		{"the other of the list", "http://localhost:3000 " + appOrigin, "http://localhost:3000", "http://localhost:3000"},
		{"none sent", appOrigin, "", ""},
		{"another scheme", appOrigin, "http://app.example", ""},
		{"another port", appOrigin, "https://app.example:8443", ""},
		{"a subdomain", appOrigin, "https://evil.app.example", ""},
		{"a longer name", appOrigin, "https://app.example.evil.example", ""},
		{"a name that ends so", appOrigin, "https://evil-app.example", ""},
		{"none, in a sandbox", appOrigin, "null", ""},
		{"any", "*", "https://whoever.example", "*"},
		{"any, in a sandbox", "*", "null", "*"},
		{"any, none sent", "*", "", "*"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, line := makeKey(t, "web", "write")
			h := newHarness(t, func(c *api.Config) {
				c.Keys, c.CORSOrigins = openKeys(t, line), strings.Fields(tt.configured)
			})
			var origin []string
			if tt.origin != "" {
				origin = []string{"Origin", tt.origin}
			}
			a := h.do(t, "POST", "/event", small, append(origin, "X-API-Key", key)...)
			if a.status != 202 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			a.allowed(t, tt.want)
			// A preflight brings no key.
			p := serve(h, request("OPTIONS", "/event", "", append(origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type")...))
			p.allowed(t, tt.want)
			switch {
			case tt.origin == "":
				p.problem(t, 405, "method_not_allowed", "")
			case tt.want == "":
				p.problem(t, 403, "forbidden", "")
				if p.header.Get("Access-Control-Allow-Methods") != "" {
					t.Errorf("another origin is told what it may send: %v", p.header)
				}
			default:
				if p.status != 204 || p.body != "" || p.header.Get("Access-Control-Max-Age") == "" {
					t.Errorf("preflight: %d %q, %v", p.status, p.body, p.header)
				}
				for _, route := range api.Routes() {
					method, _, _ := strings.Cut(route, " ")
					if !slices.Contains(strings.Split(p.header.Get("Access-Control-Allow-Methods"), ", "), method) {
						t.Errorf("the preflight does not allow %s", method)
					}
				}
				for _, name := range []string{"Authorization", "X-API-Key", "Content-Type", "Content-Encoding", "Prefer", "X-Request-Id"} {
					if !slices.Contains(strings.Split(p.header.Get("Access-Control-Allow-Headers"), ", "), name) {
						t.Errorf("the preflight does not allow %s", name)
					}
				}
			}
			if len(h.writes) != 1 {
				t.Errorf("%d writes, want 1", len(h.writes))
			}
		})
	}
}

// A page must be able to read why it was refused.
func TestCORSOfRefusals(t *testing.T) {
	key, line := makeKey(t, "web", "write")
	h := newHarness(t, func(c *api.Config) {
		c.Keys, c.CORSOrigins, c.BodyBytesMax = openKeys(t, line), []string{appOrigin}, 1<<10
	})
	h.logReady = func(context.Context) error { return errors.New("away") }
	for _, tt := range []struct {
		name, method, target, body string
		headers                    []string
		status                     int
	}{
		{"no key", "POST", "/event", small, nil, 401},
		{"another key", "POST", "/event", small, []string{"X-API-Key", "sluice_x"}, 401},
		{"a key that may not read", "GET", "/event/a", "", []string{"X-API-Key", key}, 403},
		{"no such path", "GET", "/nothing", "", nil, 404},
		{"no such method", "PATCH", "/events", "", nil, 405},
		{"no JSON", "POST", "/event", "{", []string{"X-API-Key", key}, 400},
		{"too large", "POST", "/event", strings.Repeat(" ", 2<<10), []string{"X-API-Key", key}, 413},
		{"another type", "POST", "/event", small, []string{"X-API-Key", key, "Content-Type", "text/html"}, 415},
		{"not ready", "GET", "/readyz", "", nil, 503},
		{"options that are no preflight", "OPTIONS", "/event", "", nil, 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := serve(h, request(tt.method, tt.target, tt.body, append([]string{"Origin", appOrigin}, tt.headers...)...))
			if a.status != tt.status {
				t.Errorf("status %d: %s, want %d", a.status, a.body, tt.status)
			}
			a.allowed(t, appOrigin)
			if tt.status == 503 && a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if !slices.Contains(strings.Split(a.header.Get("Access-Control-Expose-Headers"), ", "), "Retry-After") {
				t.Errorf("a page cannot read Retry-After: %v", a.header)
			}
		})
	}
	if len(h.writes) != 0 {
		t.Errorf("%d writes", len(h.writes))
	}
}

// Off by default: nothing of CORS is said, and a preflight is what it was.
func TestNoCORS(t *testing.T) {
	h := newHarness(t)
	for _, a := range []answer{
		h.do(t, "GET", "/healthz", "", "Origin", appOrigin),
		serve(h, request("OPTIONS", "/event", "", "Origin", appOrigin, "Access-Control-Request-Method", "POST")),
		h.do(t, "POST", "/event", small, "Origin", appOrigin),
	} {
		for name := range a.header {
			if strings.HasPrefix(name, "Access-Control-") || name == "Vary" {
				t.Errorf("status %d has %s", a.status, name)
			}
		}
	}
	if len(h.writes) != 0 {
		t.Error("a page of another origin has written to a server without keys")
	}
}

// A server without keys on loopback trusts its machine, and of the pages there
// only those that are named. A name that was rebound to this machine is refused.
func TestCORSWithoutKeys(t *testing.T) {
	h := newHarness(t, func(c *api.Config) { c.CORSOrigins = []string{appOrigin} })
	site := []string{"Sec-Fetch-Site", "cross-site"}
	if a := h.do(t, "POST", "/event", small, append(site, "Origin", appOrigin)...); a.status != 202 {
		t.Errorf("of a named origin: %d %s", a.status, a.body)
	}
	a := h.do(t, "POST", "/event", small, append(site, "Origin", "https://evil.example")...)
	a.problem(t, 403, "forbidden", "")
	a.allowed(t, "")
	for _, method := range []string{"GET", "POST", "OPTIONS"} {
		r := request(method, "/event", small, "Origin", appOrigin, "Access-Control-Request-Method", "POST")
		r.Host = "evil.example"
		a := serve(h, r)
		a.problem(t, 403, "forbidden", "")
	}
	if len(h.writes) != 1 {
		t.Errorf("%d writes, want 1", len(h.writes))
	}
}

func TestCheckOrigins(t *testing.T) {
	for _, tt := range []struct {
		origin string
		ok     bool
	}{
		{appOrigin, true},
		{"http://localhost:3000", true},
		{"http://[::1]:3000", true},
		{"https://127.0.0.1:8443", true},
		{"capacitor://localhost", true},
		{"http://app.example:443", true},
		{"*", true},
		{"", false},
		{"null", false},
		{"app.example", false},
		{"https://", false},
		{"https://app.example/", false},
		{"https://app.example/path", false},
		{"https://app.example?q", false},
		{"https://app.example#f", false},
		{"https://user@app.example", false},
		{"https://App.example", false},
		{"HTTPS://app.example", false},
		{"https://app.example:443", false},
		{"http://app.example:80", false},
		{"https://app.example:", false},
		{"https://:8443", false},
		{"https://*.example", false},
		{"https://app.example https://b.example", false},
	} {
		if err := api.CheckOrigins([]string{appOrigin, tt.origin}, true); (err == nil) != tt.ok {
			t.Errorf("%q: error %v, want ok %v", tt.origin, err, tt.ok)
		}
	}
	if err := api.CheckOrigins([]string{"*"}, false); err == nil || !strings.Contains(err.Error(), "API keys") {
		t.Errorf("* without keys: %v", err)
	}
	if _, err := api.New(api.Config{CORSOrigins: []string{"*"}}, api.Ports{}, nil, nil); err == nil || !strings.Contains(err.Error(), "CORSOrigins") {
		t.Errorf("a server of * without keys: %v", err)
	}
}
