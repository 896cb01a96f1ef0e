package workload

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicehq/sluice/internal/event"
)

const (
	// requestTimeout bounds a request, whose answer Sluice has within 5 s.
	requestTimeout = 30 * time.Second
	// answerBytesMax bounds an answer: that of a batch of 50,000 writes is 5 MB.
	answerBytesMax = 64 << 20
	// errorBytesMax is how much of an unexpected answer an error quotes.
	errorBytesMax = 300
)

// Target is where a load goes.
type Target struct {
	// URL of the API, such as http://127.0.0.1:8080. Required.
	URL *url.URL
	// Key is the API key, empty for none.
	Key string
}

// Request is one request of a load.
type Request struct {
	Method string
	// Path begins with a slash.
	Path string
	Body []byte
	// ContentType is left out when empty.
	ContentType string
}

// Sent is what came of a load.
type Sent struct {
	// Begun is when the first request was begun, Acked when the last answer was there.
	Begun, Acked time.Time
	// Bytes of all bodies that were sent.
	Bytes int64
	// Latencies are those of all requests, from writing to the end of the answer.
	Latencies []time.Duration
	// Last is the receipt of the latest write in each partition of the log:
	// when these are applied, all are.
	Last []event.Receipt
}

// Send sends requests 0 to n-1, each of which build makes in a buffer of its
// connection, over the given number of connections. Every answer must be 202;
// the first that is not ends the load with an error that quotes it.
//
// It speaks HTTP/1.1 over connections of its own instead of net/http's client,
// whose cost per request is about that of the server, on whose cores it runs.
func Send(ctx context.Context, to Target, connections, n int, build func(r *Request, i int)) (*Sent, error) {
	var (
		next  atomic.Int64
		mu    sync.Mutex
		total = Sent{Begun: time.Now()}
		last  = make(map[int32]event.Receipt)
	)
	g, ctx := errgroup.WithContext(ctx)
	for range min(connections, n) {
		g.Go(func() error {
			c, err := dial(ctx, to)
			if err != nil {
				return err
			}
			defer c.close()
			defer context.AfterFunc(ctx, c.close)()
			var (
				request   Request
				latencies []time.Duration
				sent      int64
			)
			for i := int(next.Add(1) - 1); i < n; i = int(next.Add(1) - 1) {
				request.Body = request.Body[:0]
				build(&request, i)
				start := time.Now()
				if err := c.do(&request); err != nil {
					return fmt.Errorf("request %d: %s %s: %w", i, request.Method, request.Path, err)
				}
				latencies = append(latencies, time.Since(start))
				sent += int64(len(request.Body))
			}
			acked := time.Now()
			mu.Lock()
			defer mu.Unlock()
			total.Latencies = append(total.Latencies, latencies...)
			total.Bytes += sent
			if acked.After(total.Acked) {
				total.Acked = acked
			}
			for _, r := range c.last {
				keepLatest(last, r)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, r := range last {
		total.Last = append(total.Last, r)
	}
	return &total, nil
}

func keepLatest(last map[int32]event.Receipt, r event.Receipt) {
	if have, ok := last[r.Partition]; !ok || have.Generation < r.Generation || have.Generation == r.Generation && have.Offset < r.Offset {
		last[r.Partition] = r
	}
}

// conn is one connection, with one request under way at a time.
type conn struct {
	net.Conn
	to     Target
	in     *bufio.Reader
	out    []byte
	answer bytes.Buffer
	last   map[int32]event.Receipt
	once   sync.Once
}

func dial(ctx context.Context, to Target) (*conn, error) {
	var (
		plain net.Dialer
		c     net.Conn
		err   error
	)
	if to.URL.Scheme == "https" {
		c, err = (&tls.Dialer{NetDialer: &plain}).DialContext(ctx, "tcp", address(to.URL, "443"))
	} else {
		c, err = plain.DialContext(ctx, "tcp", address(to.URL, "80"))
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return &conn{Conn: c, to: to, in: bufio.NewReaderSize(c, 64<<10), last: make(map[int32]event.Receipt)}, nil
}

func address(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (c *conn) close() { c.once.Do(func() { _ = c.Close() }) } // nothing is left to be told

func (c *conn) do(r *Request) error {
	c.out = append(c.out[:0], r.Method...)
	c.out = append(append(c.out, ' '), r.Path...)
	c.out = append(append(c.out, " HTTP/1.1\r\nHost: "...), c.to.URL.Host...)
	if c.to.Key != "" {
		c.out = append(append(c.out, "\r\nAuthorization: Bearer "...), c.to.Key...)
	}
	if r.ContentType != "" {
		c.out = append(append(c.out, "\r\nContent-Type: "...), r.ContentType...)
	}
	c.out = append(c.out, "\r\nContent-Length: "...)
	c.out = strconv.AppendInt(c.out, int64(len(r.Body)), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	parts := net.Buffers{c.out, r.Body}
	if _, err := parts.WriteTo(c.Conn); err != nil {
		return err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	defer answer.Body.Close()
	c.answer.Reset()
	if _, err := c.answer.ReadFrom(io.LimitReader(answer.Body, answerBytesMax)); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if answer.StatusCode != http.StatusAccepted {
		text := c.answer.Bytes()
		return fmt.Errorf("answer %s, want 202: %s", answer.Status, text[:min(len(text), errorBytesMax)])
	}
	return c.receipts()
}

// receipts takes the receipts out of the answer.
func (c *conn) receipts() error {
	const before = `"receipt":"`
	rest := c.answer.Bytes()
	for {
		at := bytes.Index(rest, []byte(before))
		if at < 0 {
			return nil
		}
		rest = rest[at+len(before):]
		end := bytes.IndexByte(rest, '"')
		if end < 0 {
			return fmt.Errorf("answer ends in a receipt")
		}
		r, err := event.ParseReceipt(string(rest[:end]))
		if err != nil {
			return err
		}
		keepLatest(c.last, r)
	}
}
