package conn

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// abortableConn lets a cancelled context interrupt its client. ch-go checks its
// context only between packets, so a server that stalls within a packet would block
// an operation for ever.
type abortableConn struct {
	net.Conn
	aborted atomic.Bool
}

var errAborted = errors.New("the operation's context has ended")

func (c *abortableConn) abort() {
	c.aborted.Store(true)
	_ = c.SetDeadline(time.Unix(1, 0))
}

func (c *abortableConn) Read(p []byte) (int, error) {
	if c.aborted.Load() {
		return 0, errAborted
	}
	return c.Conn.Read(p)
}

// Write reports no error if the server has closed the connection. A server that
// refuses an insert because of its data answers and closes the connection while the
// client still sends, and the client would report the broken pipe instead of the
// answer. The next Read returns the answer or the end of the connection.
func (c *abortableConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(p), nil
	}
	return n, err
}

// SetReadDeadline keeps ch-go from lifting the deadline that abort has set.
func (c *abortableConn) SetReadDeadline(t time.Time) error {
	if c.aborted.Load() {
		return nil
	}
	if err := c.Conn.SetReadDeadline(t); err != nil {
		return err
	}
	if c.aborted.Load() {
		return c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}
