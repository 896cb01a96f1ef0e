package app

import (
	"log/slog"
	"net/http"
	"testing"
)

// A page of another site that has its name point to this machine must not read
// the profiles of a process.
func TestProfilesAnswerOnlyLocalNames(t *testing.T) {
	p := newProcess(slog.New(slog.DiscardHandler))
	at, err := p.startProfiles(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		host string
		want int
	}{
		{host: "", want: http.StatusOK},
		{host: "localhost:6060", want: http.StatusOK},
		{host: "[::1]:6060", want: http.StatusOK},
		{host: "evil.example", want: http.StatusForbidden},
		{host: "evil.example:6060", want: http.StatusForbidden},
		{host: "127.0.0.1.evil.example", want: http.StatusForbidden},
	} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine", "/debug/pprof/trace?seconds=0.01"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.String()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = tt.host
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != tt.want {
				t.Errorf("GET %s of host %q: status %d, want %d", path, tt.host, answer.StatusCode, tt.want)
			}
		}
	}
}
