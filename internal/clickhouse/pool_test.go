package clickhouse_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/clickhouse"
	"github.com/sluicehq/sluice/internal/clickhouse/clickhousetest"
	"github.com/sluicehq/sluice/internal/clickhouse/conn"
	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/query"
)

// swallower is a proxy before the server that takes in, and never passes on,
// requests that hold one of its markers. Their clients wait for ever.
type swallower struct {
	net.Listener
	markers [][]byte

	mu        sync.Mutex
	conns     []net.Conn
	swallowed int
}

func newSwallower(t *testing.T, target string, markers ...string) *swallower {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &swallower{Listener: l}
	for _, m := range markers {
		p.markers = append(p.markers, []byte(m))
	}
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			go p.pass(server, client, p.markers)
			go p.pass(client, server, nil)
		}
	}()
	return p
}

func (p *swallower) pass(to, from net.Conn, markers [][]byte) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 64<<10) // a query is one write of the client, and shorter
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		for _, m := range markers {
			if bytes.Contains(buf[:n], m) {
				p.mu.Lock()
				p.swallowed++
				p.mu.Unlock()
				_, _ = io.Copy(io.Discard, from) // until the client or the test closes it
				return
			}
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *swallower) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallowed
}

// reach polls until the count of n is reached.
func reach(t *testing.T, what string, n int, count func() int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		got := count()
		if got >= n {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d", what, got, n)
		}
	}
}

// No kind of work waits for another that is stuck, however much of it there is.
func TestRolesDoNotWaitForEachOther(t *testing.T) {
	direct, server, database := clickhousetest.Migrated(t)
	conversation := "c"
	id := event.NewID(clickhousetest.At(t, "2026-03-01T00:00:00Z"), conversation)
	position, version := clickhousetest.Created(1)
	rows := event.Rows{
		Cores:   []event.Core{{ID: id, ConversationID: conversation, EventName: "event_a", Created: position, Version: version}},
		Aliases: []event.AliasRow{{Alias: "mine", ID: id.AsInternal(), Version: version}},
	}
	clickhousetest.Insert(t, direct, rows)
	ready := func(ctx context.Context, s *clickhouse.Store) error { return s.Ready(ctx) }
	work := map[string]map[string]func(context.Context, *clickhouse.Store) error{
		"analytics": {
			"errors": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Errors(ctx, query.Filter{UntilMicros: 1})
				return err
			},
			"conversations": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Conversations(ctx, query.Conversations{LimitRows: 1})
				return err
			},
		},
		"reads": {
			"event": func(ctx context.Context, s *clickhouse.Store) error {
				e, err := s.Event(ctx, event.Ref{ID: id}, 0)
				if err == nil && e == nil {
					return fmt.Errorf("%s is not found", id)
				}
				return err
			},
			"histories": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Histories(ctx, []event.Ref{{ID: id}, {Alias: "mine"}})
				return err
			},
			"page": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.List(ctx, query.List{Filter: query.OfConversation(conversation), LimitEvents: 10})
				return err
			},
		},
		"writes": {
			"insert": func(ctx context.Context, s *clickhouse.Store) error { return s.Insert(ctx, &rows) },
			"cores": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Cores(ctx, []event.ID{id})
				return err
			},
			"core states": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.CoreStates(ctx, []event.ID{id})
				return err
			},
			"aliases": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Aliases(ctx, []string{"mine"})
				return err
			},
			"occupancy": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Occupancy(ctx, 0, 0)
				return err
			},
		},
		"health": {"ready": ready},
		"maintenance": {
			"parts": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Parts(ctx)
				return err
			},
			"generations": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Generations(ctx)
				return err
			},
			"unerased": func(ctx context.Context, s *clickhouse.Store) error {
				_, err := s.Erasures(time.Hour).Unerased(ctx)
				return err
			},
		},
	}
	for _, stuck := range []struct {
		role, operation string
		// marker is in the operation's query, and in no other.
		marker string
		// connections is how many the role has.
		connections int
	}{
		{"analytics", "errors", "countIf(error.null = 0) AS errors FROM events", conn.DefaultAnalyticsConnections},
		{"reads", "page", "ORDER BY timestamp, id LIMIT", conn.DefaultReadConnections},
		{"writes", "core states", "SELECT id, created, version, deleted FROM events", conn.DefaultWriteConnections},
		{"health", "ready", "1971-01-01", 1},
		{"maintenance", "parts", "max(n) AS parts", 2},
	} {
		t.Run(stuck.role, func(t *testing.T) {
			p := newSwallower(t, server.Addr, stuck.marker)
			cfg := clickhousetest.Config(server, database)
			cfg.Addr = p.Addr().String()
			store := clickhousetest.Open(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			for range 3 * stuck.connections { // more than there are connections for
				wg.Go(func() { _ = work[stuck.role][stuck.operation](ctx, store) })
			}
			reach(t, "stuck queries", stuck.connections, p.count)
			for role, operations := range work {
				if role == stuck.role {
					continue
				}
				for name, operation := range operations {
					// What waits for a connection fails by its own timeout.
					if err := operation(t.Context(), store); err != nil {
						t.Errorf("%s, %s: %v", role, name, err)
					}
				}
			}
			if n := p.count(); n > stuck.connections {
				t.Errorf("%d queries at once, of a pool of %d", n, stuck.connections)
			}
		})
	}
}

// Many that ask at once share a check, and are told the truth.
func TestReadyIsShared(t *testing.T) {
	_, server, database := clickhousetest.Migrated(t)
	p := newSwallower(t, server.Addr, "1971-01-01")
	cfg := clickhousetest.Config(server, database)
	cfg.Addr = p.Addr().String()
	store := clickhousetest.Open(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 100)
	for range cap(errs) {
		go func() { errs <- store.Ready(ctx) }()
	}
	reach(t, "checks", 1, p.count)
	// Those that leave are not kept.
	cancel()
	for range cap(errs) {
		if err := <-errs; err == nil {
			t.Error("ready without an answer")
		}
	}
	if n := p.count(); n > 1 {
		t.Errorf("%d checks at once", n)
	}
}
