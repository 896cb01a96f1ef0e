package clickhousetest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy passes bytes between a client and the server until a budget is spent,
// and then is silent.
type Proxy struct {
	net.Listener
	// Answers and Requests are the bytes that may yet pass, by direction.
	Answers, Requests atomic.Int64
	// Late is how long the first answer on each new connection takes, a time.Duration.
	Late atomic.Int64

	mu    sync.Mutex
	conns []net.Conn
}

// Cut closes all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

// NewProxy starts a proxy to the target, which passes everything.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Listener: l}
	p.Answers.Store(1 << 40)
	p.Requests.Store(1 << 40)
	t.Cleanup(func() {
		_ = l.Close()
		p.Cut()
	})
	pass := func(to, from net.Conn, budget *atomic.Int64) {
		buf := make([]byte, 1024)
		for {
			n, err := from.Read(buf)
			if err != nil {
				_, _ = to.Close(), from.Close()
				return
			}
			if budget.Add(-int64(n)) < 0 {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(t.Context(), "tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			go pass(server, client, &p.Requests)
			time.AfterFunc(time.Duration(p.Late.Load()), func() { pass(client, server, &p.Answers) })
		}
	}()
	return p
}
