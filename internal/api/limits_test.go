package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	dto "github.com/prometheus/client_model/go"

	"github.com/sluicehq/sluice/internal/api"
)

// ofSize is a create of exactly n bytes.
func ofSize(n int) string {
	head, tail := `{"conversation_id":"c1","event_name":"event_a","input":"`, `"}`
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

func gzipped(tb testing.TB, body string) string {
	tb.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, body); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// zstded compresses whole, with the size in the frame, or as a stream, without.
func zstded(tb testing.TB, body string, stream bool) string {
	tb.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		tb.Fatal(err)
	}
	if !stream {
		return string(w.EncodeAll([]byte(body), nil))
	}
	// In two writes, or the encoder makes one frame of known size of it.
	for _, part := range []string{body[:len(body)/2], body[len(body)/2:]} {
		if _, err := io.WriteString(w, part); err != nil {
			tb.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// inFlight is the metric of the bytes that requests hold.
func (h *harness) inFlight(tb testing.TB) float64 {
	tb.Helper()
	return h.metric(tb, "sluice_api_in_flight_bytes").GetGauge().GetValue()
}

func (h *harness) metric(tb testing.TB, name string, labels ...string) *dto.Metric {
	tb.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for i, l := range m.GetLabel() {
				if i >= len(labels) || l.GetValue() != labels[i] {
					continue next
				}
			}
			return m
		}
	}
	return nil
}

func TestBodySizes(t *testing.T) {
	const limit = api.DefaultBodyBytesMax
	for _, size := range []int{8 << 10, 8<<10 + 1, 64 << 10, 100_000, limit - 1, limit, limit + 1, 2 * limit} {
		for name, encode := range map[string]func(string) (body, encoding string){
			"plain":       func(s string) (string, string) { return s, "identity" },
			"gzip":        func(s string) (string, string) { return gzipped(t, s), "gzip" },
			"zstd":        func(s string) (string, string) { return zstded(t, s, false), "zstd" },
			"zstd stream": func(s string) (string, string) { return zstded(t, s, true), "ZSTD" },
		} {
			for _, announced := range []bool{true, false} {
				h := newHarness(t)
				body, encoding := encode(ofSize(size))
				r := request("POST", "/event", body, "Content-Encoding", encoding)
				if !announced {
					r.ContentLength = -1
				}
				a := serve(h, r)
				if size > limit {
					a.problem(t, http.StatusRequestEntityTooLarge, "too_large", "")
					if h.calls > 0 {
						t.Errorf("%s of %d: wrote all the same", name, size)
					}
				} else {
					a.expect(t, http.StatusAccepted, "")
					if n := len(h.writes[0].Input.Data); n != size-58 {
						t.Errorf("%s of %d: %d bytes of input", name, size, n)
					}
				}
				if n := h.inFlight(t); n != 0 {
					t.Errorf("%s of %d: %v bytes still in flight", name, size, n)
				}
			}
		}
	}
}

func TestBrokenCompression(t *testing.T) {
	body := ofSize(100_000)
	packed, frame := gzipped(t, body), zstded(t, body, true)
	for _, tt := range []struct{ name, body, encoding string }{
		{"gzip cut", packed[:len(packed)-9], "gzip"},
		{"gzip without its end", packed[:len(packed)-1], "gzip"},
		{"gzip with a wrong sum", packed[:len(packed)-8] + "xxxxxxxx", "gzip"},
		{"gzip and more", packed + "x", "gzip"},
		{"gzip empty", "", "gzip"},
		{"zstd cut", frame[:len(frame)-5], "zstd"},
		{"zstd and more", frame + "x", "zstd"},
		{"zstd with a window of 16 MiB", "\x28\xb5\x2f\xfd\x00\x70\x01\x00\x00", "zstd"},
		{"zstd skippable frame only", "\x50\x2a\x4d\x18\x01\x00\x00\x00x", "zstd"},
		{"zstd empty", "", "zstd"},
		{"zstd claims much", "\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x7f", "zstd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t)
			a := serve(h, request("POST", "/event", tt.body, "Content-Encoding", tt.encoding))
			if a.status != http.StatusBadRequest && a.status != http.StatusRequestEntityTooLarge || h.calls > 0 {
				t.Errorf("status %d, %d calls", a.status, h.calls)
			}
			if n := h.inFlight(t); n != 0 {
				t.Errorf("%v bytes still in flight", n)
			}
		})
	}
	// Two members or frames are one body.
	h := newHarness(t)
	serve(h, request("POST", "/event", gzipped(t, body[:500])+gzipped(t, body[500:]), "Content-Encoding", "gzip")).expect(t, 202, "")
	serve(h, request("POST", "/event", zstded(t, body[:500], true)+zstded(t, body[500:], false), "Content-Encoding", "zstd")).expect(t, 202, "")
	// But memory is taken by the first frame's word.
	small := zstded(t, body[:500], false) + zstded(t, body[500:], true)
	serve(h, request("POST", "/event", small, "Content-Encoding", "zstd")).problem(t, 400, "invalid_request", "")
}

// bomb is a body of little that becomes 512 MiB. It is shorter than the limit
// of a single write, so that it is inflated there as well.
type bomb struct{ name, body, encoding string }

var bombs = sync.OnceValue(func() []bomb {
	const inflated = 512 << 20
	zeros := make([]byte, 1<<20)
	var packed bytes.Buffer
	gz, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	for range inflated / len(zeros) {
		_, _ = gz.Write(zeros)
	}
	_ = gz.Close()
	var frame bytes.Buffer
	zs, _ := zstd.NewWriter(&frame, zstd.WithWindowSize(8<<20))
	for range inflated / len(zeros) {
		_, _ = zs.Write(zeros)
	}
	_ = zs.Close()
	return []bomb{{"gzip", packed.String(), "gzip"}, {"zstd", frame.String(), "zstd"}}
})

// TestBombs sends little that becomes a lot, and looks at what it made the
// server hold.
func TestBombs(t *testing.T) {
	for _, tt := range bombs() {
		for _, target := range []string{"/event", "/events"} {
			t.Run(tt.name+target, func(t *testing.T) {
				h := newHarness(t)
				seen := 0.0
				r := request("POST", target, tt.body, "Content-Encoding", tt.encoding)
				r.Body = io.NopCloser(io.TeeReader(r.Body, writerFunc(func([]byte) { seen = max(seen, h.inFlight(t)) })))
				serve(h, r).problem(t, http.StatusRequestEntityTooLarge, "too_large", "")
				if seen > 64<<20 {
					t.Errorf("held %v bytes", seen)
				}
			})
		}
	}
}

// TestBombsAtOnce sends so many that what each becomes, up to where it is too
// long, would be more than the server may hold.
func TestBombsAtOnce(t *testing.T) {
	const clients = 50
	for _, tt := range bombs() {
		for _, target := range []string{"/event", "/events"} {
			t.Run(tt.name+target, func(t *testing.T) {
				h := newHarness(t, func(c *api.Config) { // whatever the machine and the race detector take
					c.InflateTimeout, c.WriteTimeout = time.Hour, 2*time.Hour
				})
				var sending sync.WaitGroup
				for range clients {
					sending.Go(func() {
						r := request("POST", target, tt.body, "Content-Encoding", tt.encoding)
						serve(h, r).problem(t, http.StatusRequestEntityTooLarge, "too_large", "")
					})
				}
				sending.Wait()
			})
		}
	}
	// Whose turn does not come in time is told to come again.
	t.Run("too many", func(t *testing.T) {
		zstdBomb := bombs()[1]
		h := newHarness(t, func(c *api.Config) { c.InflateTimeout = 1 })
		statuses := make(chan int, clients)
		var sending sync.WaitGroup
		for range clients {
			sending.Go(func() {
				statuses <- serve(h, request("POST", "/events", zstdBomb.body, "Content-Encoding", "zstd")).status
			})
		}
		sending.Wait()
		close(statuses)
		count := map[int]int{}
		for status := range statuses {
			count[status]++
		}
		if count[413] == 0 || count[503] == 0 || count[413]+count[503] != clients {
			t.Errorf("statuses %v, want 413 and 503 only", count)
		}
	})
}

// TestSlowCompressedBodies has clients announce windows of 8 MiB and then say
// nothing: what they hold is what they sent, so that others are served.
func TestSlowCompressedBodies(t *testing.T) {
	const clients = 100
	// The begin of a frame with such a window, and empty blocks.
	head := "\x28\xb5\x2f\xfd\x00\x68" + strings.Repeat("\x00\x00\x00", 10)
	h := newHarness(t)
	gone := make(chan struct{})
	var begun, sending sync.WaitGroup
	begun.Add(clients)
	for range clients {
		sending.Go(func() {
			r := request("POST", "/events", head, "Content-Encoding", "zstd")
			r.ContentLength = -1
			told := sync.OnceFunc(begun.Done)
			defer told() // also where it is refused at once
			silent := readerFunc(func([]byte) (int, error) {
				told()
				<-gone
				return 0, io.ErrUnexpectedEOF
			})
			r.Body = io.NopCloser(io.MultiReader(r.Body, silent))
			serve(h, r).problem(t, http.StatusBadRequest, "invalid_request", "")
		})
	}
	begun.Wait()
	if n := h.inFlight(t); n > clients*16<<10 {
		t.Errorf("%v bytes in flight", n)
	}
	body := zstded(t, ofSize(1000), true)
	serve(h, request("POST", "/event", body, "Content-Encoding", "zstd")).expect(t, http.StatusAccepted, "")
	serve(h, request("POST", "/events", body, "Content-Encoding", "zstd")).expect(t, http.StatusAccepted, "")
	close(gone)
	sending.Wait()
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func TestBatchLimits(t *testing.T) {
	item := `{"op":"delete","id":"a"}`
	t.Run("items", func(t *testing.T) {
		h := newHarness(t, func(c *api.Config) { c.BatchItemsMax = 3 })
		h.do(t, "POST", "/events", strings.Repeat(item+"\n", 3)).expect(t, 202, "")
		h.do(t, "POST", "/events", strings.Repeat(item+"\n", 4)).problem(t, 413, "too_large", "")
		h.do(t, "POST", "/events", "["+strings.Repeat(item+",", 2)+item+"]").expect(t, 202, "")
		h.do(t, "POST", "/events", "["+strings.Repeat(item+",", 3)+item+"]").problem(t, 413, "too_large", "")
		if len(h.writes) != 6 {
			t.Errorf("%d writes", len(h.writes))
		}
	})
	t.Run("default items", func(t *testing.T) {
		h := newHarness(t)
		a := serve(h, request("POST", "/events", strings.Repeat(item+"\n", api.DefaultBatchItemsMax)))
		a.expect(t, 202, "")
		if n := strings.Count(a.body, `"receipt"`); n != api.DefaultBatchItemsMax {
			t.Errorf("%d results", n)
		}
		serve(h, request("POST", "/events", strings.Repeat(item+"\n", api.DefaultBatchItemsMax+1))).problem(t, 413, "too_large", "")
	})
	t.Run("item size", func(t *testing.T) {
		h := newHarness(t)
		fits, tooLong := ofSize(api.DefaultBodyBytesMax), ofSize(api.DefaultBodyBytesMax+1)
		a := serve(h, request("POST", "/events", fits+"\n"+tooLong+"\n"+fits))
		a.expect(t, 207, "")
		if len(h.writes) != 2 || !strings.Contains(a.body, `{"error":{"status":413,"code":"too_large","detail":"the item is longer than 1048576 bytes"}}`) {
			t.Errorf("%d writes, %.300s", len(h.writes), a.body)
		}
	})
	t.Run("body size", func(t *testing.T) {
		h := newHarness(t)
		padding := strings.Repeat(" ", api.DefaultBatchBytesMax-len(item))
		serve(h, request("POST", "/events", item+padding)).expect(t, 202, "")
		serve(h, request("POST", "/events", item+padding+" ")).problem(t, 413, "too_large", "")
	})
}

// TestInFlightBound holds requests in the log and counts what gets through.
func TestInFlightBound(t *testing.T) {
	const bytesMax = 64 << 20
	h := newHarness(t, func(c *api.Config) {
		c.BatchBytesMax, c.BatchItemsMax, c.InFlightBytesMax = 8<<20, 1000, bytesMax
	})
	release := make(chan struct{})
	var held sync.WaitGroup
	arrived := make(chan struct{}, 1000)
	h.produce = func(context.Context) {
		arrived <- struct{}{}
		<-release
	}
	const clients = 100
	refused := make(chan answer, clients)
	accepted := make(chan answer, clients)
	body := ofSize(1 << 20)
	for range clients {
		held.Go(func() {
			a := serve(h, request("POST", "/event", body))
			if a.status == http.StatusAccepted {
				accepted <- a
			} else {
				refused <- a
			}
		})
	}
	// All either wait in the log or were refused.
	for range clients {
		select {
		case <-arrived:
		case a := <-refused:
			a.problem(t, http.StatusServiceUnavailable, "overloaded", "")
		}
	}
	if n := h.inFlight(t); n > bytesMax || n < bytesMax/8 {
		t.Errorf("%v bytes in flight", n)
	}
	close(release)
	held.Wait()
	if len(accepted) < bytesMax/(4<<20) || len(accepted) == clients {
		t.Errorf("%d accepted", len(accepted))
	}
	if n := h.inFlight(t); n != 0 {
		t.Errorf("%v bytes in flight at the end", n)
	}
	h.produce = nil
	serve(h, request("POST", "/event", body)).expect(t, http.StatusAccepted, "")
	if n := h.metric(t, "sluice_api_writes_refused_total", "overloaded").GetCounter().GetValue(); n != float64(clients-len(accepted)) {
		t.Errorf("counted %v", n)
	}
}

// One batch of the largest size gets its memory where there is as much as the
// configuration demands, however it is encoded.
func TestLargestBatchFits(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1500)
	var large, many strings.Builder
	for large.Len() < api.DefaultBatchBytesMax-3000 {
		for i := range noise {
			noise[i] = byte(random.Uint32())
		}
		large.WriteString(`{"conversation_id":"c","event_name":"event_a","input":"` + base64.StdEncoding.EncodeToString(noise) + `"}` + "\n")
	}
	many.WriteString(strings.Repeat(`{"op":"delete","id":"a"}`+"\n", api.DefaultBatchItemsMax))
	many.WriteString(strings.Repeat(" ", api.DefaultBatchBytesMax-many.Len()))
	for name, body := range map[string]string{"large": large.String(), "many": many.String()} {
		for encoding, packed := range map[string]string{
			"identity": body, "gzip": gzipped(t, body), "zstd": zstded(t, body, true),
		} {
			t.Run(name+" "+encoding, func(t *testing.T) {
				h := newHarness(t, func(c *api.Config) { c.InFlightBytesMax = c.InFlightBytesLeast() })
				r := request("POST", "/events", packed, "Content-Encoding", encoding)
				r.ContentLength = -1
				serve(h, r).expect(t, http.StatusAccepted, "")
			})
		}
	}
}

// listening runs a server on a port of its own until the test ends.
func listening(tb testing.TB, h *harness) string {
	tb.Helper()
	if err := h.server.Listen(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.server.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return h.server.Addr().String()
}

func dial(tb testing.TB, addr, send string) net.Conn {
	tb.Helper()
	conn, err := new(net.Dialer).DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, send); err != nil {
		tb.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

func TestSlowClients(t *testing.T) {
	h := newHarness(t, func(c *api.Config) {
		c.Addr = "127.0.0.1:0"
		c.HeaderTimeout, c.ReadTimeout, c.BatchReadTimeout = 100*time.Millisecond, 200*time.Millisecond, 300*time.Millisecond
		c.IdleTimeout = 100 * time.Millisecond
	})
	addr := listening(t, h)
	for _, tt := range []struct{ name, send, want string }{
		{"silent", "", ""},
		{"half a header", "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nX-", "400 Bad Request"},
		{"half a body", "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{", "408 Request Timeout"},
		{"half a batch", "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{", "408 Request Timeout"},
		{"half a chunk", "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", "408 Request Timeout"},
		{"half a gzip", "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b", "408 Request Timeout"},
		{"broken chunk", "POST /event HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{", "400 Bad Request"},
		{"idle after an answer", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "200 OK"},
		{"headers without end", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + strings.Repeat("x", 32<<10), "431"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := dial(t, addr, tt.send)
			got, err := io.ReadAll(conn) // until the server closes
			if err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("still open: %v", err)
			}
			if !strings.Contains(string(got), tt.want) || tt.want == "" && len(got) > 0 {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if h.calls > 0 {
		t.Error("wrote something")
	}
}

func TestConnectionBound(t *testing.T) {
	h := newHarness(t, func(c *api.Config) {
		c.Addr, c.ConnectionsMax = "127.0.0.1:0", 2
	})
	addr := listening(t, h)
	const get = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
	first, second, third := dial(t, addr, get), dial(t, addr, get), dial(t, addr, get)
	b := make([]byte, 12)
	for _, conn := range []net.Conn{first, second} {
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 200" {
			t.Fatalf("%q %v", b, err)
		}
	}
	if err := third.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := third.Read(b); err == nil {
		t.Fatalf("served a third connection: %q", b[:n])
	}
	_ = first.Close()
	if err := third.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(third, b); err != nil || string(b) != "HTTP/1.1 200" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestExpectContinueIsNotGivenToTheRefused(t *testing.T) {
	_, line := makeKey(t, "k", "write")
	h := newHarness(t, func(c *api.Config) {
		c.Addr, c.Keys = "127.0.0.1:0", openKeys(t, line)
	})
	conn := dial(t, listening(t, h), "POST /event HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
	b := make([]byte, 12)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 401" {
		t.Errorf("%q %v", b, err)
	}
}
