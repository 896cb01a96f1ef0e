package sluice_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	sluice "github.com/sluicehq/sluice/sdk/go"
)

// sink is a transport that acknowledges every batch, at almost no cost.
func sink(answer string) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(body); err != nil {
				return nil, err
			}
		}
		n := 0
		buf := make([]byte, 64<<10)
		for {
			read, err := body.Read(buf)
			n += bytes.Count(buf[:read], []byte("\n"))
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, err
			}
		}
		results := `{"results":[` + strings.TrimSuffix(strings.Repeat(answer+",", n), ",") + `]}`
		return &http.Response{StatusCode: 202, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(results))}, nil
	}
}

// text returns an event of about 500 encoded bytes.
func text() sluice.Event {
	return sluice.Event{
		ConversationID: "support-42",
		EventName:      "event_a",
		Latency:        sluice.Millis(412500 * time.Microsecond),
		Input:          strings.Repeat("Where is my order? ", 8),
		Output:         strings.Repeat("On its way: \"Monday\". ", 8),
	}
}

func embedded() sluice.Event {
	e := text()
	e.InputEmbeddings = make([]float32, 384)
	e.OutputEmbeddings = make([]float32, 384)
	for i := range e.InputEmbeddings {
		e.InputEmbeddings[i], e.OutputEmbeddings[i] = 1/float32(i+1), -1/float32(i+1)
	}
	return e
}

func benchmarkTrack(b *testing.B, e sluice.Event, o sluice.Options, parallel bool) {
	b.Helper()
	o.HTTPClient = &http.Client{Transport: sink(acknowledged)}
	client := openAny(b, o)
	ctx := context.Background()
	b.SetBytes(int64(itemBytes(b, e)))
	b.ReportAllocs()
	b.ResetTimer()
	start := time.Now()
	if parallel {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := client.TrackEvent(ctx, e); err != nil {
					b.Error(err)
				}
			}
		})
	} else {
		for b.Loop() {
			if _, err := client.TrackEvent(ctx, e); err != nil {
				b.Fatal(err)
			}
		}
	}
	reportRate(b, client, start)
}

// reportRate reports the events per second until the last event was answered.
func reportRate(b *testing.B, client *sluice.Client, start time.Time) {
	b.Helper()
	if err := client.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "events/s")
}

// itemBytes returns the size of an encoded event.
func itemBytes(b *testing.B, e sluice.Event) (n int) {
	b.Helper()
	client := openAny(b, sluice.Options{HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		n = int(r.ContentLength)
		return sink(acknowledged)(r)
	})}})
	if _, err := client.TrackEvent(context.Background(), e); err != nil {
		b.Fatal(err)
	}
	if err := client.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkTrackEvent measures the way from the call to the answer of a server
// that costs nothing. So it measures the client's own work on all its goroutines.
func BenchmarkTrackEvent(b *testing.B) {
	metadata := text()
	metadata.ConversationMetadata = map[string]any{"plan": "pro", "n": 1}
	metadata.Input = []map[string]any{{"role": "user", "content": metadata.Input}}
	for _, bm := range []struct {
		name     string
		event    sluice.Event
		options  sluice.Options
		spool    bool
		parallel bool
	}{
		{name: "text", event: text()},
		{name: "text/parallel", event: text(), parallel: true},
		{name: "text/spool", event: text(), spool: true},
		{name: "text/spool/parallel", event: text(), spool: true, parallel: true},
		{name: "text/gzip", event: text(), options: sluice.Options{Gzip: true}},
		{name: "json", event: metadata},
		{name: "embeddings", event: embedded()},
		{name: "embeddings/spool", event: embedded(), spool: true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			if bm.spool {
				bm.options.SpoolDir = b.TempDir()
			}
			benchmarkTrack(b, bm.event, bm.options, bm.parallel)
		})
	}
}

// BenchmarkTrackEventCall measures the call alone. Nothing is sent in the meantime.
func BenchmarkTrackEventCall(b *testing.B) {
	for _, bm := range []struct {
		name  string
		event sluice.Event
	}{{"text", text()}, {"embeddings", embedded()}} {
		b.Run(bm.name, func(b *testing.B) {
			client := openAny(b, sluice.Options{
				HTTPClient:     &http.Client{Transport: sink(acknowledged)},
				QueueWritesMax: 1 << 30, QueueBytesMax: 1 << 40,
				BatchWritesMax: 50_000, BatchBytesMax: 16 << 20, BatchAgeMax: time.Hour,
			})
			ctx := context.Background()
			b.SetBytes(int64(itemBytes(b, bm.event)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.TrackEvent(ctx, bm.event); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkEndToEnd measures the way to a real server, from the first call until all events are acknowledged.
func BenchmarkEndToEnd(b *testing.B) {
	url := os.Getenv("SLUICE_URL")
	if url == "" {
		b.Skip("SLUICE_URL is not set")
	}
	for _, bm := range []struct {
		name  string
		event sluice.Event
	}{{"text", text()}, {"embeddings", embedded()}} {
		b.Run(bm.name, func(b *testing.B) {
			client := openAny(b, sluice.Options{URL: url, OnError: func(e sluice.WriteError) { b.Error(e) }})
			ctx := context.Background()
			b.SetBytes(int64(itemBytes(b, bm.event)))
			b.ReportAllocs()
			start := time.Now()
			for b.Loop() {
				if _, err := client.TrackEvent(ctx, bm.event); err != nil {
					b.Fatal(err)
				}
			}
			reportRate(b, client, start)
		})
	}
}
