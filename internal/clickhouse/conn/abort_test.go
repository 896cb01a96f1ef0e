package conn_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/sluicehq/sluice/internal/clickhouse/conn"
)

// A server that refuses an insert answers and closes while the client is still
// sending. The answer is what counts, not the broken pipe.
func TestAnswerBeforeBrokenPipe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const answer = "refused"
	closed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte(answer))
			_, readErr := c.Read(make([]byte, 1)) // the rest stays unread, so that closing resets the connection
			err = errors.Join(err, readErr, c.Close())
		}
		closed <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := conn.NewConn(raw)
	defer func() { _ = c.Close() }()
	block := make([]byte, 1000)
	if _, err := c.Write(block); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := c.Write(block); err != nil {
			t.Fatalf("write to a connection that the server has closed: %v", err)
		}
	}
	got := make([]byte, len(answer))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != answer {
		t.Errorf("read %q, error %v; want %q", got, err, answer)
	}
	if _, err := c.Read(got); err == nil {
		t.Error("the end of the connection is not seen")
	}
}
