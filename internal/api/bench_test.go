package api_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicehq/sluice/internal/api"
	"github.com/sluicehq/sluice/internal/event"
)

// instantLog acknowledges at once, so that the handler alone is measured.
type instantLog struct{ acks []event.Ack }

func (l *instantLog) Produce(_ context.Context, writes []event.Write) []event.Ack {
	return l.acks[:len(writes)]
}

func (l *instantLog) Ready(context.Context) error { return nil }

// discard is a ResponseWriter that keeps nothing but the status.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

func benchmarkWrites(b *testing.B, target, body string, items int, configure ...func(*api.Config)) {
	reg := prometheus.NewRegistry()
	var cfg api.Config
	for _, f := range configure {
		f(&cfg)
	}
	server, err := api.New(cfg, api.Ports{Log: &instantLog{acks: make([]event.Ack, items)}, Metrics: reg}, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		b.Fatal(err)
	}
	handler := server.Handler()
	reader := strings.NewReader(body)
	r := httptest.NewRequest(http.MethodPost, target, nil)
	r.Host = "127.0.0.1:8080"
	r.Header.Set("Content-Type", "application/json")
	r.ContentLength = int64(len(body))
	if cfg.Keys != nil {
		r.Header.Set("Authorization", "Bearer sluice_"+strings.Repeat("x", 43))
	}
	w := &discard{header: http.Header{}}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		reader.Reset(body)
		r.Body = io.NopCloser(reader)
		clear(w.header)
		handler.ServeHTTP(w, r)
		if w.status != http.StatusAccepted {
			b.Fatalf("status %d", w.status)
		}
	}
	b.ReportMetric(float64(b.N)*float64(items)/b.Elapsed().Seconds(), "events/s")
}

// text is an event of about 500 bytes.
const text = `{"conversation_id":"3f0c7a4e-91d2-4b0e-8a53-6f4f0a1c2b3d","conversation_metadata":{"plan":"pro","region":"eu"},` +
	`"event_name":"event_b","latency":812.4,"input":"I would like to book a table for four people at seven in the evening, ` +
	`somewhere in the city centre that is not too expensive and has vegetarian dishes.","output":"I found three places that fit: ` +
	`the first is open until eleven and has a terrace. Shall I book it for you, or do you want to hear about the other two?"}`

func BenchmarkPostEvent(b *testing.B) { benchmarkWrites(b, "/event", text, 1) }

func BenchmarkPostEvents(b *testing.B) {
	b.Run("ndjson", func(b *testing.B) { benchmarkWrites(b, "/events", strings.Repeat(text+"\n", 1000), 1000) })
	b.Run("array", func(b *testing.B) {
		benchmarkWrites(b, "/events", "["+strings.Repeat(text+",", 999)+text+"]", 1000)
	})
}

// BenchmarkPostEventOverTCP has 64 connections and their client in the same
// process, so that it shows about half of what the server could do.
func BenchmarkPostEventOverTCP(b *testing.B) {
	reg := prometheus.NewRegistry()
	server, err := api.New(api.Config{Addr: "127.0.0.1:0"}, api.Ports{Log: &instantLog{acks: make([]event.Ack, 1)}, Metrics: reg},
		slog.New(slog.DiscardHandler), reg)
	if err != nil {
		b.Fatal(err)
	}
	url := "http://" + listening(b, &harness{server: server}) + "/event"
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	b.SetParallelism(max(1, 64/runtime.GOMAXPROCS(0)))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			res, err := client.Post(url, "application/json", strings.NewReader(text))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != http.StatusAccepted {
				b.Errorf("status %d", res.StatusCode)
			}
		}
	})
	client.CloseIdleConnections()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
