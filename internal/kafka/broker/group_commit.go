package broker

import (
	"bytes"
	"fmt"
	"net"
	"sync"

	"github.com/sluicehq/sluice/internal/fault"
)

// responsesMax bounds the responses of one connection that wait for a sync. When
// it is reached, the broker reads no further requests of the connection. The
// client has at most five requests in flight.
const responsesMax = 16

// groupCommit holds back the broker's answers until everything that the broker
// wrote before them is on disk. One round of syncs serves all responses that
// wait for it, and the responses that come during a round wait for the next one.
// So a slow disk makes the rounds larger rather than the clients slower.
//
// All responses wait, not only those to produce requests. Suppose a record was
// fetched and applied, and then lost in a power failure: another record would
// get its offset, and with it the version of its row.
type groupCommit struct {
	sync func() error
	// wake has a buffer of one. Whoever opens a round sends to it.
	wake chan struct{}
	// failed is closed at the first error, and done when run returns.
	failed, done chan struct{}

	mu     sync.Mutex
	open   *round // the next round, not yet begun; nil if nobody waits
	err    error  // the first error; see fail
	closed bool
}

// round is one run of syncs. err is valid once done is closed.
type round struct {
	done chan struct{}
	err  error
}

func newGroupCommit(sync func() error) *groupCommit {
	return &groupCommit{
		sync: sync, wake: make(chan struct{}, 1),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
}

// run runs the rounds until close.
func (g *groupCommit) run() {
	defer close(g.done)
	for range g.wake {
		g.mu.Lock()
		r := g.open
		g.open = nil
		r.err = g.err
		g.mu.Unlock()
		if r.err == nil {
			if err := g.sync(); err != nil {
				r.err = g.fail(fmt.Errorf("sync: %w", err))
			}
		}
		fault.Point(fault.BrokerSynced)
		close(r.done)
	}
}

// join returns a round that has not begun yet.
func (g *groupCommit) join() *round {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = &round{done: make(chan struct{})}
		if g.closed {
			g.open.err = net.ErrClosed
			close(g.open.done)
		} else {
			g.wake <- struct{}{}
		}
	}
	return g.open
}

// commit returns once everything that was written before the call is on disk.
func (g *groupCommit) commit() error {
	r := g.join()
	<-r.done
	return r.err
}

// fail makes every later round end with err. No sync is retried: after a failed
// sync the operating system may have dropped the pages, and the next sync may
// report success.
func (g *groupCommit) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		close(g.failed)
	}
	return g.err
}

// close runs a last round and ends run. Later rounds end with an error.
func (g *groupCommit) close() error {
	last := g.join()
	g.mu.Lock()
	g.closed = true
	close(g.wake)
	g.mu.Unlock()
	<-g.done
	return last.err
}

// listen is [net.Listen], but each response on its connections waits for a round
// of syncs.
func (g *groupCommit) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address) //nolint:noctx // kfake passes no context
	if err != nil {
		return nil, err
	}
	return commitListener{l, g}, nil
}

type commitListener struct {
	net.Listener
	commits *groupCommit
}

func (l commitListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &commitConn{
		Conn: conn, commits: l.commits,
		responses: make(chan response, responsesMax), closed: make(chan struct{}),
	}
	go c.send()
	return c, nil
}

// commitConn delays each response until a round of syncs that began after the
// response was written. Write itself does not wait, so that the broker appends
// the connection's next request while the previous one is synced.
type commitConn struct {
	net.Conn
	commits   *groupCommit
	responses chan response
	closed    chan struct{}
	once      sync.Once
}

type response struct {
	bytes []byte
	round *round
}

func (c *commitConn) Write(b []byte) (int, error) {
	r := response{bytes.Clone(b), c.commits.join()}
	select {
	case c.responses <- r:
		return len(b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

// send writes the responses to the connection until Close, an error of the
// connection or a failed round. After a failed round the client gets no answer
// rather than a wrong one.
func (c *commitConn) send() {
	defer c.Close()
	for {
		select {
		case r := <-c.responses:
			if <-r.round.done; r.round.err != nil {
				return
			}
			if _, err := c.Conn.Write(r.bytes); err != nil {
				return
			}
		case <-c.closed:
			return
		}
	}
}

func (c *commitConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}
