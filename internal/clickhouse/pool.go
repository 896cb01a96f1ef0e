package clickhouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

const (
	// idleTrusted is how long an idle connection is used again without asking
	// whether the server is still there.
	idleTrusted = time.Second
	// idleMax is how long one is kept.
	idleMax = 10 * time.Minute
	// wireBytesKept is how much of its write buffer an idle connection keeps.
	wireBytesKept = 1 << 20
)

// errClosed is returned by a [Store] that is closed.
var errClosed = errors.New("clickhouse: the store is closed")

// conn is one connection. It is used by one operation at a time.
type conn struct {
	client  *ch.Client
	net     *abortableConn
	buf     *proto.Buffer
	idledAt time.Time
}

// abortableConn lets a cancelled context end what its client waits for. ch-go
// looks at its context only between packets, so a server that stalls within
// one would hold an operation for ever.
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

// Write says nothing of a connection that the server has closed. A server that
// refuses an insert for its data answers and closes while the client still sends,
// and the client would report the broken pipe instead of the answer. What is read
// next is the answer, or the end of the connection.
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

// role is what connections are used for. Each role has a pool of its own, so
// that work of one kind never waits for a connection that another kind holds.
type role uint8

const (
	// roleWrite is for what the consumer does: inserts and look-ups.
	roleWrite role = iota
	// roleRead is for single events and pages.
	roleRead
	// roleAnalytics is for questions about many events.
	roleAnalytics
	// roleHealth is for [Store.Ready].
	roleHealth
	// roleAdmin is for the schema, the retention, erasure, and what is measured of
	// the tables.
	roleAdmin
	roles
)

const (
	// healthConnectionsMax suffices, because all callers of [Store.Ready] share one
	// check.
	healthConnectionsMax = 1
	// adminConnectionsMax bounds the pool of roleAdmin, and the one that is not of
	// the database.
	adminConnectionsMax = 2
)

func (r role) String() string {
	switch r {
	case roleWrite:
		return "write"
	case roleRead:
		return "read"
	case roleAnalytics:
		return "analytics"
	case roleHealth:
		return "health"
	case roleAdmin, roles:
	}
	return "admin"
}

// connectionsMax is the bound of the role's pool.
func (r role) connectionsMax(cfg *Config) int {
	switch r {
	case roleWrite:
		return cfg.WriteConnectionsMax
	case roleRead:
		return cfg.ReadConnectionsMax
	case roleAnalytics:
		return cfg.AnalyticsConnectionsMax
	case roleHealth:
		return healthConnectionsMax
	case roleAdmin, roles:
	}
	return adminConnectionsMax
}

// pool keeps connections, newest first. A connection that saw an error is
// never used again: what the server still has to say on it is unknown.
type pool struct {
	cfg      Config
	database string
	tls      *tls.Config
	slots    chan struct{}
	onDial   func()

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

func newPool(cfg Config, connectionsMax int, database string, tlsConfig *tls.Config, onDial func()) *pool {
	return &pool{cfg: cfg, database: database, tls: tlsConfig, slots: make(chan struct{}, connectionsMax), onDial: onDial}
}

// do runs one query on a connection of the pool, within the timeout.
func (p *pool) do(ctx context.Context, timeout time.Duration, q ch.Query) error {
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
	// stop reports false where abort has run or is about to.
	if !stop() || err != nil || c.client.IsClosed() {
		_ = c.net.Close()
		return ended(ctx, err)
	}
	p.put(c)
	return nil
}

// ended says that an error came about because the context has ended, which
// the error of an aborted connection does not.
func ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || errors.Is(err, ctx.Err()) || ch.IsException(err) {
		return err
	}
	return fmt.Errorf("%w (%w)", ctx.Err(), err)
}

func (p *pool) take(ctx context.Context) (*conn, error) {
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

func (p *pool) ping(ctx context.Context, c *conn) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	defer cancel()
	return c.client.Ping(ctx)
}

func (p *pool) put(c *conn) {
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

func (p *pool) dial(ctx context.Context) (*conn, error) {
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
		// Of the handshake's packets and of pings. Do keeps waiting after it, until
		// the operation's deadline.
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
	return &conn{client: client, net: nc, buf: buf}, nil
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		_ = c.net.Close()
	}
	p.idle = nil
}
