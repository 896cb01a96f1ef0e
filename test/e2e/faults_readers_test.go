//go:build faults

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// readersMemoryBound is what the documents promise of a process beside slow
	// readers and dear questions.
	readersMemoryBound = raceFactor * 768 << 20
	// largeEvents are the events of one page, of some 60 KB of JSON each.
	largeEvents = 1000
	// readerBytesPerSecond is how fast a slow reader reads.
	readerBytesPerSecond = 50_000
)

// TestFaultReaders has many slow readers ask for pages of 60 MB, and many others
// for answers that are dear, beside a full load. The process stays within its
// memory, goes on taking writes, and a reader that comes again gets all that there is.
func TestFaultReaders(t *testing.T) {
	random, size := newRandom(t), suiteSize(t)
	readers, askers, lasts := size.slowReaders, size.askers, size.readTime
	p, c := serve(t, t.TempDir())
	want := c.createLarge(t, random, "large")
	began := peakBytes(t, p)

	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	var (
		beside                  sync.WaitGroup
		accepted, refused, read atomic.Int64
		statuses                [600]atomic.Int64
	)
	for w := range 4 {
		beside.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				a, err := c.do(http.MethodPost, "/events", loadBatch(w, n), "")
				if err == nil && a.status == http.StatusAccepted {
					accepted.Add(1000)
				} else {
					refused.Add(1)
				}
			}
		})
	}
	for range askers {
		beside.Go(func() {
			for ctx.Err() == nil {
				a, err := c.do(http.MethodGet, "/analytics/latency?limit=10000&q=0.5&q=0.9&q=0.99", nil, "")
				if err == nil {
					statuses[a.status].Add(1)
				}
			}
		})
	}
	addr := strings.TrimPrefix(c.base, "http://")
	for range readers {
		beside.Go(func() {
			for ctx.Err() == nil {
				n, status, err := readSlowly(ctx, addr, "/conversations/large/events?limit=1000&embeddings=true")
				read.Add(n)
				if err == nil {
					statuses[status].Add(1)
				}
			}
		})
	}
	beside.Wait()
	peak := peakBytes(t, p)
	t.Logf("%d slow readers and %d askers beside %d writes in %s: %d MiB at most, %d before; %d requests of the load were refused; readers took %d MB",
		readers, askers, accepted.Load(), lasts, peak/mib, began/mib, refused.Load(), read.Load()/1e6)
	for status := range statuses {
		if n := statuses[status].Load(); n > 0 {
			t.Logf("status %d: %d", status, n)
		}
	}
	if peak > readersMemoryBound {
		t.Errorf("the process has had %d MiB, more than %d", peak/mib, readersMemoryBound/mib)
	}
	if accepted.Load() == 0 {
		t.Error("no write was taken beside the readers")
	}
	if statuses[http.StatusInternalServerError].Load() > 0 {
		t.Error("some requests were answered 500")
	}
	requireRunning(t, p)

	// Whoever heeds the cursors, and comes again where it is told to, gets all.
	got := map[string]bool{}
	for cursor := ""; ; {
		var page struct {
			Events []struct {
				Input string `json:"input"`
			} `json:"events"`
			Next *string `json:"next_cursor"`
		}
		eventually(t, startBound, "the next page", func() error {
			return c.get("/conversations/large/events?limit=1000&embeddings=true"+cursor, &page)
		})
		for _, e := range page.Events {
			if got[e.Input] {
				t.Fatalf("an event comes twice")
			}
			got[e.Input] = true
		}
		if page.Next == nil {
			break
		}
		cursor = "&cursor=" + url.QueryEscape(*page.Next)
	}
	for input := range want {
		if !got[input] {
			t.Errorf("an event is missing")
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	p.stop(t)
}

// createLarge creates the events of one large page, and returns their inputs.
func (c *client) createLarge(t *testing.T, random *rand.Rand, conversation string) map[string]bool {
	t.Helper()
	const batch = 100
	inputs := make(map[string]bool, largeEvents)
	vector := func(b *bytes.Buffer) {
		for i := range 2048 {
			fmt.Fprintf(b, "%c%v", "[,"[min(i, 1)], random.Float32())
		}
		b.WriteByte(']')
	}
	for from := 0; from < largeEvents; from += batch {
		var b bytes.Buffer
		for i := from; i < from+batch; i++ {
			input := fmt.Sprintf("%d %s", i, strings.Repeat("ten bytes ", 1000))
			inputs[input] = true
			fmt.Fprintf(&b, `{"conversation_id":%q,"event_name":"event_a","input":%q,"input_embeddings":`, conversation, input)
			vector(&b)
			b.WriteString(`,"output_embeddings":`)
			vector(&b)
			b.WriteString("}\n")
		}
		a, err := c.do(http.MethodPost, "/events", b.Bytes(), "wait=30")
		if err != nil || a.status != http.StatusOK && a.status != http.StatusCreated {
			t.Fatalf("create large events: %v, status %d: %.300s", err, a.status, a.body)
		}
	}
	return inputs
}

// loadBatch is a batch of a writer of the load.
func loadBatch(writer, n int) []byte {
	var b bytes.Buffer
	for i := range 1000 {
		fmt.Fprintf(&b, `{"conversation_id":"load-%d-%d-%d","event_name":"event_b","latency":%d,"input":%q,"output":%q}`+"\n",
			writer, n, i%20, i, strings.Repeat("a question ", 20), strings.Repeat("an answer ", 20))
	}
	return b.Bytes()
}

// readSlowly reads an answer at readerBytesPerSecond until it ends, or ctx, and
// returns how much of it there was and its status.
func readSlowly(ctx context.Context, addr, path string) (read int64, status int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.(*net.TCPConn).SetReadBuffer(16 << 10) //nolint:forcetypeassert // it is one
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, addr); err != nil {
		return 0, 0, err
	}
	const piece = readerBytesPerSecond / 10
	tick := time.NewTicker(time.Second / 10)
	defer tick.Stop()
	buf := make([]byte, piece)
	for {
		n, err := io.ReadFull(conn, buf)
		if status == 0 && n > 12 {
			_, _ = fmt.Sscanf(string(buf[9:12]), "%d", &status)
		}
		read += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return read, status, nil
		}
		if err != nil {
			return read, status, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return read, status, ctx.Err()
		}
	}
}
