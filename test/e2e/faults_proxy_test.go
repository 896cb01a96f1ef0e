//go:build faults

package e2e_test

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxyHost is where proxies listen: on an address from which nobody connects,
// or a connection could take the port of a proxy that refuses.
const proxyHost = "127.0.0.2"

// proxy forwards connections to a target, and fails them as it is told.
type proxy struct {
	addr, target string

	// pause is how long each chunk of bytes waits, in nanoseconds; delayed
	// counts those that waited.
	pause, delayed atomic.Int64
	// swallows makes connections silent for good: what a side sends is read and
	// forgotten, so that the other side is missing something ever after.
	swallows atomic.Bool
	// budget says after how many bytes towards the target a connection is reset;
	// nil for never. Broken counts those that were.
	budget atomic.Pointer[func() int64]
	broken atomic.Int64

	mu       sync.Mutex
	listener net.Listener // nil while it refuses
	links    map[*link]struct{}
	running  sync.WaitGroup
}

// link is a connection with the one that the proxy has made for it.
type link struct {
	near, far *net.TCPConn
	left      atomic.Int64 // bytes towards the target until it is reset
	lost      atomic.Bool  // it is missing something
}

// newProxy forwards to the target until the test ends.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := &proxy{addr: net.JoinHostPort(proxyHost, "0"), target: target, links: make(map[*link]struct{})}
	p.listen(t)
	t.Cleanup(func() {
		p.refuse()
		p.running.Wait()
	})
	return p
}

// listen ends refuse.
func (p *proxy) listen(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.addr = l, l.Addr().String()
	p.running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return // closed by refuse
			}
			p.running.Go(func() { p.serve(l, near.(*net.TCPConn)) })
		}
	})
}

// refuse makes the address one where nobody listens, as after the end of the
// process there. All connections are reset.
func (p *proxy) refuse() {
	p.mu.Lock()
	if p.listener != nil {
		_ = p.listener.Close()
	}
	p.listener = nil
	p.mu.Unlock()
	p.cut()
}

// cut resets all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// swallow begins or ends a black hole: connections come about, and nothing
// comes through any of them, nor ever will through those that missed something
// meanwhile.
func (p *proxy) swallow(on bool) { p.swallows.Store(on) }

// slow has each chunk of bytes wait, in either direction.
func (p *proxy) slow(pause time.Duration) { p.pause.Store(int64(pause)) }

// breakAfter has each connection that is made from now on reset after as many
// bytes towards the target as budget says; nil ends it.
func (p *proxy) breakAfter(budget func() int64) {
	if budget == nil {
		p.budget.Store(nil)
		return
	}
	p.budget.Store(&budget)
}

func (p *proxy) serve(accepted net.Listener, near *net.TCPConn) {
	l := &link{near: near}
	defer l.reset()
	far, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	l.far = far.(*net.TCPConn)
	if budget := p.budget.Load(); budget != nil {
		l.left.Store((*budget)())
	} else {
		l.left.Store(-1)
	}
	p.mu.Lock()
	refused := p.listener != accepted
	p.links[l] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	if refused {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { p.forward(l, l.near, l.far, false) })
	p.forward(l, l.far, l.near, true)
	back.Wait()
}

// forward copies what one side sends to the other, until either ends.
func (p *proxy) forward(l *link, to, from *net.TCPConn, towardsTarget bool) {
	chunk := make([]byte, 32<<10)
	for {
		n, err := from.Read(chunk)
		if n > 0 && p.swallows.Load() {
			l.lost.Store(true)
		}
		if d := time.Duration(p.pause.Load()); d > 0 && n > 0 {
			p.delayed.Add(1)
			<-time.After(d)
		}
		out, over := chunk[:n], false
		if left := l.left.Load(); towardsTarget && left >= 0 {
			over = int64(n) >= left
			out = out[:min(int64(n), left)]
			l.left.Store(left - int64(len(out)))
		}
		if !l.lost.Load() {
			if _, e := to.Write(out); err == nil {
				err = e
			}
		}
		switch {
		case over:
			p.broken.Add(1)
			l.reset()
			return
		case err != nil && !l.lost.Load():
			// Not a reset: what was written has to arrive before. Nobody here
			// closes one direction alone.
			_, _ = l.near.Close(), l.far.Close()
			return
		case err != nil:
			return // the end does not come through either
		}
	}
}

// reset ends both connections without an orderly close.
func (l *link) reset() {
	for _, c := range []*net.TCPConn{l.near, l.far} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}
