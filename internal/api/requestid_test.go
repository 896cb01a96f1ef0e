package api_test

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// Every answer has a request id, whoever gives it: a handler, a refusal, the
// multiplexer, or the page of an origin that is not allowed.
func TestEveryAnswerHasARequestID(t *testing.T) {
	h := newHarness(t)
	minted := regexp.MustCompile(`^[0-9a-f]{32}$`)
	seen := make(map[string]string)
	for _, r := range []*http.Request{
		request("POST", "/event", small), request("POST", "/event", "{"), request("GET", "/event/unknown", ""),
		request("GET", "/healthz", ""), request("GET", "/metrics", ""), request("GET", "/openapi.yaml", ""), request("HEAD", "/healthz", ""),
		request("GET", "/nothing", ""), request("DELETE", "/events", ""), request("GET", "//healthz", ""),
		request("OPTIONS", "/event", "", "Origin", "https://elsewhere.example", "Access-Control-Request-Method", "POST"),
	} {
		a := serve(h, r)
		id, name := a.header.Get("X-Request-Id"), r.Method+" "+r.URL.Path
		if !minted.MatchString(id) || seen[id] != "" {
			t.Errorf("%s: request id %q, which is also that of %q", name, id, seen[id])
		}
		seen[id] = name
	}
}

func TestRequestIDOfTheClient(t *testing.T) {
	h := newHarness(t)
	for _, id := range []string{"a", "0b5f2f6c-52b2-4a59-9f2e-2f0c3e6d1a77", "Root=1-67891233-abcdef012345678912345678", strings.Repeat("x", 128)} {
		if a := serve(h, request("GET", "/healthz", "", "X-Request-Id", id)); a.header.Get("X-Request-Id") != id {
			t.Errorf("request id %q became %q", id, a.header.Get("X-Request-Id"))
		}
	}
	for _, id := range []string{"", strings.Repeat("x", 129), "a b", `a"b`, "a\nb", "é", "a;b"} {
		r := request("GET", "/healthz", "")
		r.Header["X-Request-Id"] = []string{id}
		if a := serve(h, r); a.header.Get("X-Request-Id") == id || a.header.Get("X-Request-Id") == "" {
			t.Errorf("request id %q became %q", id, a.header.Get("X-Request-Id"))
		}
	}
	if a := serve(h, request("GET", "/healthz", "", "X-Request-Id", "one", "X-Request-Id", "two")); len(a.header["X-Request-Id"]) != 1 || a.header.Get("X-Request-Id") == "one" {
		t.Errorf("two request ids became %q", a.header["X-Request-Id"])
	}
}

// The line of the log about a failed request has the id that its answer has.
func TestRequestIDIsLogged(t *testing.T) {
	h := newHarness(t)
	h.queryErr = errors.New("away")
	a := serve(h, request("GET", "/analytics/errors", ""))
	if a.status < 500 {
		t.Fatalf("status %d", a.status)
	}
	line := h.log.String()
	if !strings.Contains(line, "request failed") || !strings.Contains(line, `"request_id":"`+a.header.Get("X-Request-Id")+`"`) {
		t.Errorf("the answer's request id is %s, the log has %s", a.header.Get("X-Request-Id"), line)
	}
}
