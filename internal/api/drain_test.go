package api_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/api"
)

// refusals are requests that are answered before their body is read, or is read
// to its end. Each sends a body of the size that it names.
const refusals = `
import http.client, sys

host, port = sys.argv[1].rsplit(":", 1)
MIB = 1 << 20
chunks = lambda n: (b"x" * 65536 for _ in range(n // 65536))
for name, want, method, path, size, headers in [
    ("single", 413, "POST", "/event", 24 * MIB, {}),
    ("single, a little too large", 413, "POST", "/event", MIB + 1, {}),
    ("single, chunked", 413, "POST", "/event", -24 * MIB, {}),
    ("update", 413, "PUT", "/event/a", 24 * MIB, {}),
    ("batch", 413, "POST", "/events", 40 * MIB, {}),
    ("batch, chunked", 413, "POST", "/events", -40 * MIB, {}),
    ("no key", 401, "POST", "/events", 24 * MIB, {"Authorization": ""}),
    ("no key, chunked", 401, "POST", "/events", -24 * MIB, {"Authorization": ""}),
    ("no key, small, and the last request", 401, "POST", "/events", MIB // 8, {"Authorization": "", "Connection": "close"}),
    ("a key that lacks the scope", 403, "GET", "/event/a", 24 * MIB, {}),
    ("content type", 415, "POST", "/event", 24 * MIB, {"Content-Type": "text/plain"}),
    ("content encoding", 415, "POST", "/events", 12 * MIB, {"Content-Encoding": "br"}),
    ("query string", 400, "POST", "/event?x=1", 24 * MIB, {}),
    ("no such path", 404, "POST", "/nothing", 24 * MIB, {}),
    ("no such method", 405, "PUT", "/events", 24 * MIB, {}),
    ("delete with a body", 202, "DELETE", "/event/a", 24 * MIB, {}),
    ("expects to be told to go on, and goes on", 413, "POST", "/event", 24 * MIB, {"Expect": "100-continue"}),
    ("the same without a key", 401, "POST", "/event", 24 * MIB, {"Expect": "100-continue", "Authorization": ""}),
    ("the same with a small body", 415, "POST", "/event", 1000, {"Expect": "100-continue", "Content-Type": "text/plain"}),
]:
    for n in range(4):
        c = http.client.HTTPConnection(host, int(port), timeout=60)
        headers = {"Authorization": "Bearer " + sys.argv[2], "Content-Type": "application/json"} | headers
        try:
            body = b"x" * size if size > 0 else chunks(-size)
            c.request(method, path, body=body, headers={k: v for k, v in headers.items() if v}, encode_chunked=size < 0)
            answer = c.getresponse()
            text = answer.read()
            if answer.status != want or not text.endswith(b"}\n"):
                print(f"{name}: got {answer.status} {text[:200]}, want {want}")
        except Exception as e:
            print(f"{name}: {e!r}")
        c.close()
`

// TestAnswersToBodiesThatAreNotRead has a client that sends the whole of its body
// before it looks for an answer.
func TestAnswersToBodiesThatAreNotRead(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("SLUICE_TEST_SDK") == "1" { // as make test has it, which installs Python
			t.Fatal(err)
		}
		t.Skip(err)
	}
	key, line := makeKey(t, "k", "write")
	h := newHarness(t, func(c *api.Config) { c.Addr, c.Keys = "127.0.0.1:0", openKeys(t, line) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, python, "-c", refusals, listening(t, h), key).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	if n := h.inFlight(t); n != 0 {
		t.Errorf("%v bytes still in flight", n)
	}
}

// TestDrainIsBounded has clients that never come to an end.
func TestDrainIsBounded(t *testing.T) {
	const head = "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n"
	for _, tt := range []struct {
		name, send string
		sends      bool // on and on
		configure  func(*api.Config)
	}{
		{"by bytes", head + "\r\n", true, func(c *api.Config) { c.DrainBytesMax = 1 << 20 }},
		{"by time", head + "\r\n", true, func(c *api.Config) { c.DrainTimeout = 100 * time.Millisecond }},
		{"by a pause", head + "\r\n{", false, func(c *api.Config) { c.DrainIdleTimeout = 100 * time.Millisecond }},
		{"by a body that never comes", head + "Expect: 100-continue\r\n\r\n", false, func(*api.Config) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, func(c *api.Config) {
				c.Addr, c.DrainBytesMax, c.DrainTimeout, c.DrainIdleTimeout = "127.0.0.1:0", 1<<40, time.Hour, time.Hour
				c.ReadTimeout, c.BatchReadTimeout, c.WriteTimeout = time.Hour, time.Hour, 2*time.Hour
				tt.configure(c)
			})
			conn := dial(t, listening(t, h), tt.send)
			if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, len("HTTP/1.1 413"))
			if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 413" {
				t.Fatalf("%q %v", answer, err)
			}
			sent := int64(0)
			var err error
			for part := bytes.Repeat([]byte("x"), 64<<10); tt.sends && err == nil; sent += int64(len(part)) {
				_, err = conn.Write(part)
			}
			if err == nil {
				_, err = io.Copy(io.Discard, conn) // until the server closes
			}
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // as net returns it
				t.Errorf("still open after %d bytes", sent)
			}
		})
	}
}

// TestStopDoesNotWaitForDrains stops while a body is drained.
func TestStopDoesNotWaitForDrains(t *testing.T) {
	h := newHarness(t, func(c *api.Config) {
		c.Addr, c.DrainTimeout, c.DrainIdleTimeout, c.ShutdownTimeout = "127.0.0.1:0", time.Hour, 2*time.Second, time.Minute
	})
	if err := h.server.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.server.Run(ctx) }()
	conn := dial(t, h.server.Addr().String(), "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000000\r\n\r\n")
	if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for part := []byte(strings.Repeat("x", 1<<10)); ; {
			if _, err := conn.Write(part); err != nil {
				return
			}
		}
	}()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
