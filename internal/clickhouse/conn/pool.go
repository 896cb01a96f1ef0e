package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

const (
	// idleTrusted is how long an idle connection may be used again without a ping.
	idleTrusted = time.Second
	// idleMax is how long an idle connection is kept.
	idleMax = 10 * time.Minute
	// wireBytesKept is how much of its write buffer an idle connection keeps.
	wireBytesKept = 1 << 20
)

// errClosed is the error of queries on a [DB] that is closed.
var errClosed = errors.New("clickhouse: the store is closed")

// connection is one connection. It is used by one operation at a time.
type connection struct {
	client  *ch.Client
	net     *abortableConn
	buf     *proto.Buffer
	idledAt time.Time
}

// Pool keeps connections and uses the newest first. A connection that had an error is
// never used again, because the server may still send something on it.
type Pool struct {
	cfg      Config
	database string
	tls      *tls.Config
	slots    chan struct{}
	onDial   func()

	mu     sync.Mutex
	idle   []*connection
	closed bool
}

func newPool(cfg Config, connectionsMax int, database string, tlsConfig *tls.Config, onDial func()) *Pool {
	return &Pool{cfg: cfg, database: database, tls: tlsConfig, slots: make(chan struct{}, connectionsMax), onDial: onDial}
}

// Do runs one query on a connection of the pool, within the timeout.
func (p *Pool) Do(ctx context.Context, timeout time.Duration, q ch.Query) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return fmt.Errorf("wait for a connection: %w", ctx.Err())
	}
	c, err := p.take(ctx)
	if err != nil {
		return ended(ctx, err)
	}
	stop := context.AfterFunc(ctx, c.net.abort)
	err = c.client.Do(ctx, q)
	// stop returns false if abort has run or is about to run.
	if !stop() || err != nil || c.client.IsClosed() {
		_ = c.net.Close()
		return ended(ctx, err)
	}
	p.put(c)
	return nil
}

// ended wraps the error of the context around err if the context has ended. The error
// of an aborted connection does not say that.
func ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || errors.Is(err, ctx.Err()) || ch.IsException(err) {
		return err
	}
	return fmt.Errorf("%w (%w)", ctx.Err(), err)
}

func (p *Pool) take(ctx context.Context) (*connection, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, errClosed
		}
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return p.dial(ctx)
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()

		idle := time.Since(c.idledAt)
		if idle < idleTrusted || idle < idleMax && p.ping(ctx, c) == nil {
			return c, nil
		}
		_ = c.net.Close()
	}
}

func (p *Pool) ping(ctx context.Context, c *connection) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	return c.client.Ping(ctx)
}

func (p *Pool) put(c *connection) {
	if cap(c.buf.Buf) > wireBytesKept {
		c.buf.Buf = nil
	}
	c.idledAt = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.net.Close()
		return
	}
	p.idle = append(p.idle, c)
}

func (p *Pool) dial(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	p.onDial()
	var (
		d   net.Dialer
		raw net.Conn
		err error
	)
	if p.tls != nil {
		raw, err = (&tls.Dialer{NetDialer: &d, Config: p.tls}).DialContext(ctx, "tcp", p.cfg.Addr)
	} else {
		raw, err = d.DialContext(ctx, "tcp", p.cfg.Addr)
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	nc := &abortableConn{Conn: raw}
	stop := context.AfterFunc(ctx, nc.abort)
	buf := new(proto.Buffer)
	compression := ch.CompressionDisabled
	if p.cfg.Compression == CompressionLZ4 {
		compression = ch.CompressionLZ4
	}
	client, err := ch.ConnectWithBuffer(ctx, nc, ch.Options{
		Database:         p.database,
		User:             p.cfg.User,
		Password:         p.cfg.Password,
		ClientName:       "sluice",
		Compression:      compression,
		HandshakeTimeout: p.cfg.DialTimeout,
		// It bounds the packets of the handshake and the answers to pings. Do keeps
		// waiting after it, until the operation's deadline.
		ReadTimeout: p.cfg.DialTimeout,
	}, buf)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := checkVersion(client.ServerInfo()); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return &connection{client: client, net: nc, buf: buf}, nil
}

// Close closes the idle connections; a connection in use is closed when its
// operation ends.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.net.Close()
	}
	p.idle = nil
}
