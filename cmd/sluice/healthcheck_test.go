package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHealthcheck(t *testing.T) {
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "kafka is away", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/hangs", func(http.ResponseWriter, *http.Request) { <-release })
	server := httptest.NewServer(mux)
	t.Cleanup(func() { close(release); server.Close() })

	for _, test := range []struct {
		path, stdout, stderr string
		code                 int
	}{
		{"/healthz", "200 OK\n", "", 0},
		{"/readyz", "", "503 Service Unavailable: kafka is away", 1},
		{"/hangs", "", "deadline exceeded", 1},
	} {
		t.Run(test.path, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			timeout := time.Minute
			if test.path == "/hangs" {
				timeout = 50 * time.Millisecond
			}
			code := run(context.Background(), []string{"healthcheck", server.URL + test.path, "--timeout", timeout.String()}, &stdout, &stderr)
			if code != test.code || stdout.String() != test.stdout || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d, %q, %q", code, &stdout, &stderr, test.code, test.stdout, test.stderr)
			}
		})
	}
}
