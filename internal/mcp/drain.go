package mcp

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// drained is a transport whose end is put off until every request is answered, or for at
// most wait. So messages can be piped into the server. The SDK would drop the answers to the
// last ones.
type drained struct {
	sdk.Transport
	wait time.Duration
}

func (d *drained) Connect(ctx context.Context) (sdk.Connection, error) {
	conn, err := d.Transport.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &drainedConn{Connection: conn, wait: d.wait, closed: make(chan struct{}), changed: make(chan struct{}, 1)}, nil
}

type drainedConn struct {
	sdk.Connection
	wait      time.Duration
	closed    chan struct{}
	closeOnce sync.Once
	// changed has an element when pending may have become 0.
	changed chan struct{}

	mu      sync.Mutex
	pending int // requests that are not answered
}

func (c *drainedConn) Read(ctx context.Context) (jsonrpc.Message, error) {
	m, err := c.Connection.Read(ctx)
	if r, ok := m.(*jsonrpc.Request); ok && r.IsCall() {
		c.count(1)
	}
	if errors.Is(err, io.EOF) {
		timer := time.NewTimer(c.wait)
		defer timer.Stop()
		for c.count(0) > 0 {
			select {
			case <-c.changed:
			case <-c.closed:
				return m, err
			case <-ctx.Done():
				return m, err
			case <-timer.C:
				return m, err
			}
		}
	}
	return m, err
}

func (c *drainedConn) Write(ctx context.Context, m jsonrpc.Message) error {
	err := c.Connection.Write(ctx, m)
	if _, ok := m.(*jsonrpc.Response); ok {
		c.count(-1)
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	return err
}

func (c *drainedConn) count(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending += n
	return c.pending
}

func (c *drainedConn) Close() error {
	c.closeOnce.Do(func() { close(c.closed) })
	return c.Connection.Close()
}
