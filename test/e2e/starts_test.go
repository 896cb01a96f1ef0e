package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// door is an address that nobody listens on until it is opened, and that leads
// to another one then.
type door struct {
	addr, to string
	listener net.Listener
	conns    sync.Map
	// release replaces the year and number of the release that a ClickHouse
	// announces; nil leaves them.
	release []byte
}

func newDoor(t *testing.T, to string) *door {
	t.Helper()
	d := &door{addr: freeAddr(t), to: to}
	t.Cleanup(d.close)
	return d
}

func (d *door) open(t *testing.T) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	d.listener = l
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", d.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			d.conns.Store(in, out)
			for from, to := range map[net.Conn]net.Conn{in: out, out: in} {
				go func() {
					if d.release != nil && from == out {
						// A code, a length and the name "ClickHouse" come before them.
						hello := make([]byte, 14)
						_, _ = io.ReadFull(from, hello)
						copy(hello[12:], d.release)
						_, _ = to.Write(hello)
					}
					_, _ = io.Copy(to, from)
					_, _ = to.Close(), from.Close()
				}()
			}
		}
	}()
}

func (d *door) close() {
	if d.listener != nil {
		_ = d.listener.Close()
	}
	d.conns.Range(func(in, out any) bool {
		_, _ = in.(net.Conn).Close(), out.(net.Conn).Close()
		return true
	})
}

// readiness is the answer of /readyz.
type readiness struct {
	Status, Kafka, ClickHouse, Writes, Reads string
}

// waitReadiness waits until /readyz answers so.
func waitReadiness(t *testing.T, c *client, want readiness) {
	t.Helper()
	eventually(t, startBound, fmt.Sprintf("readiness %+v", want), func() error {
		a, err := c.do(http.MethodGet, "/readyz", nil, "")
		if err != nil {
			return err
		}
		var got readiness
		if err := json.Unmarshal(a.body, &got); err != nil {
			return err
		}
		if got != want || (a.status == http.StatusOK) != (want.Status == "ready") {
			return fmt.Errorf("status %d: %s", a.status, a.body)
		}
		return nil
	})
}

func requireStatus(t *testing.T, c *client, method, path, body, prefer string, status int, words ...string) {
	t.Helper()
	a, err := c.do(method, path, []byte(body), prefer)
	if err != nil || a.status != status {
		t.Fatalf("%s %s: status %d: %s, error %v; want %d", method, path, a.status, a.body, err, status)
	}
	for _, word := range words {
		if !bytes.Contains(a.body, []byte(word)) {
			t.Errorf("%s %s is answered %s, without %q", method, path, a.body, word)
		}
	}
}

func createOf(id string) string {
	return fmt.Sprintf(`{"id":%q,"conversation_id":"c","event_name":"event_a"}`, id)
}

// TestAPIWithoutClickHouse starts an API before the tables are made, and while
// ClickHouse is away, as a database user who may only read.
func TestAPIWithoutClickHouse(t *testing.T) {
	t.Parallel()
	broker := kafkatest.Start(t, kafkatest.Options{QuickStart: true})
	server := enginetest.Server(t)
	database, user, password := server.Readable(t)
	urlOf := func(user, password, addr string) string {
		u := url.URL{Scheme: "clickhouse", User: url.UserPassword(user, password), Host: addr, Path: "/" + database}
		return u.String()
	}
	api := func(addr string) (*process, *client) {
		t.Helper()
		p := start(t, "api", "--listen", "127.0.0.1:0", "--kafka-brokers", broker.Addrs[0], "--clickhouse-url", urlOf(user, password, addr))
		return p, newClient(p.addr(t))
	}
	remote := []string{"--kafka-brokers", broker.Addrs[0], "--clickhouse-url", urlOf(server.User, server.Password, server.Addr)}
	const errorsOfADay = "/analytics/errors?since=1d"

	// Before the tables.
	p, c := api(server.Addr)
	waitReadiness(t, c, readiness{"not_ready", "ok", "schema_missing", "ok", "unavailable"})
	requireStatus(t, c, http.MethodGet, "/readyz?for=writes", "", "", http.StatusOK)
	requireStatus(t, c, http.MethodPost, "/event", createOf("first"), "", http.StatusAccepted)
	requireStatus(t, c, http.MethodGet, eventPath("first"), "", "", http.StatusServiceUnavailable, "sluice migrate")
	if n := server.Query(t, "SELECT count() FROM system.tables WHERE database = '"+database+"'"); n != "0" {
		t.Errorf("the API has made %s tables", n)
	}
	consumer := startConsumer(t, remote)
	c.waitReady(t)
	eventually(t, applyBound, "the first event", func() error { return c.get(eventPath("first"), new(map[string]any)) })
	p.stop(t)

	// While ClickHouse is away.
	away := newDoor(t, server.Addr)
	p, c = api(away.addr)
	waitReadiness(t, c, readiness{"not_ready", "ok", "unavailable", "ok", "unavailable"})
	requireStatus(t, c, http.MethodGet, "/readyz?for=reads", "", "", http.StatusServiceUnavailable)
	l := newLedger("away")
	stop := l.write(c, writers)
	defer stop()
	l.waitForWrites(t, someWrites)
	stop()
	l.requireNoFailures(t)
	requireStatus(t, c, http.MethodPost, "/event", createOf("second"), "wait=2", http.StatusAccepted) // only ClickHouse can tell whether it had an effect
	requireStatus(t, c, http.MethodGet, errorsOfADay, "", "", http.StatusServiceUnavailable, "does not answer")
	away.open(t)
	c.waitReady(t)
	requireStatus(t, c, http.MethodGet, errorsOfADay, "", "", http.StatusOK)
	requireStatus(t, c, http.MethodGet, eventPath("second"), "", "", http.StatusOK)
	l.check(t, c)
	p.stop(t)
	consumer.stop(t)

	// The topic is another than the one that was recorded, which only ClickHouse
	// can tell.
	recreateEvents(t, broker.Addrs[0])
	away = newDoor(t, server.Addr)
	p, c = api(away.addr)
	requireStatus(t, c, http.MethodPost, "/event", createOf("third"), "", http.StatusAccepted)
	away.open(t)
	waitReadiness(t, c, readiness{"not_ready", "ok", "ok", "stopped", "ok"})
	requireStatus(t, c, http.MethodPost, "/event", createOf("third"), "", http.StatusServiceUnavailable, "writes_stopped")
	requireStatus(t, c, http.MethodGet, eventPath("second"), "", "", http.StatusOK)
	if !bytes.Contains(p.log.bytes(), []byte("takes no more writes")) || !bytes.Contains(p.log.bytes(), []byte("offsets begin again")) {
		t.Error("the log does not say that the process takes no more writes, and why")
	}
	p.stop(t)
}

// recreateEvents deletes the topic of events, and makes it again as Sluice would.
func recreateEvents(t *testing.T, broker string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	cfg := kafka.Config{Brokers: []string{broker}}
	ctx, cancel := context.WithTimeout(t.Context(), startBound)
	defer cancel()
	before, err := kafka.FindTopics(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kadm.NewClient(cl).DeleteTopic(ctx, before.Topic); err != nil {
		t.Fatal(err)
	}
	eventually(t, startBound, "another topic of the name", func() error {
		now, err := kafka.EnsureTopics(ctx, cfg, slog.New(slog.DiscardHandler))
		if err == nil && now.ID == before.ID {
			err = errors.New("it is the same")
		}
		return err
	})
}

// TestServeWithoutClickHouse starts everything but ClickHouse, which is elsewhere
// and comes later.
func TestServeWithoutClickHouse(t *testing.T) {
	t.Parallel()
	server, u := enginetest.Server(t), databaseURL(t)
	away := newDoor(t, server.Addr)
	at, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	at.Host = away.addr
	dir := t.TempDir()
	p := start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--clickhouse-url", at.String())
	c := newClient(p.addr(t))
	waitReadiness(t, c, readiness{"not_ready", "ok", "unavailable", "ok", "unavailable"})
	l := newLedger("away")
	if err := l.round(c, "away"); err != nil {
		t.Fatal(err)
	}
	requireStatus(t, c, http.MethodPost, "/event", createOf("waited"), "wait=1", http.StatusAccepted)
	away.open(t)
	c.waitReady(t)
	l.check(t, c)
	p.stop(t)

	// ClickHouse is there, and knows of a log that is lost.
	if err := os.RemoveAll(filepath.Join(dir, "kafka")); err != nil {
		t.Fatal(err)
	}
	p = start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--clickhouse-url", at.String())
	if code := p.wait(t, startBound); code != 1 || !bytes.Contains(p.log.bytes(), []byte("offsets begin again")) {
		t.Errorf("on a lost log it exited %d: %s", code, p.log.tail(500))
	}
}

// TestOldClickHouse starts each process on a ClickHouse that is too old. Only an
// API starts, which answers reads once ClickHouse is upgraded.
func TestOldClickHouse(t *testing.T) {
	t.Parallel()
	broker := kafkatest.Start(t, kafkatest.Options{QuickStart: true})
	server, u := enginetest.Server(t), databaseURL(t)
	behind := newDoor(t, server.Addr)
	behind.release = []byte{25, 8}
	behind.open(t)
	at, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	at.Host = behind.addr
	remote := []string{"--kafka-brokers", broker.Addrs[0], "--clickhouse-url", at.String()}
	for _, args := range [][]string{
		{"migrate", "--clickhouse-url", at.String()},
		append([]string{"consume", "--metrics-listen", ""}, remote...),
		{"serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir(), "--clickhouse-url", at.String()},
	} {
		p := start(t, args...)
		code, log := p.wait(t, startBound), p.log.bytes()
		if code != 1 || !bytes.Contains(log, []byte("ClickHouse 25.8.")) || !bytes.Contains(log, []byte("deduplicate_insert")) ||
			!bytes.Contains(log, []byte("the oldest version that works is 26.2")) {
			t.Errorf("%s exited %d: %s", args[0], code, p.log.tail(500))
		}
	}

	p := start(t, append([]string{"api", "--listen", "127.0.0.1:0"}, remote...)...)
	c := newClient(p.addr(t))
	waitReadiness(t, c, readiness{"not_ready", "ok", "version_old", "ok", "unavailable"})
	requireStatus(t, c, http.MethodPost, "/event", createOf("early"), "", http.StatusAccepted)
	requireStatus(t, c, http.MethodGet, eventPath("early"), "", "", http.StatusServiceUnavailable, "older than the oldest version that works")
	if !bytes.Contains(p.log.bytes(), []byte("ClickHouse is too old")) {
		t.Errorf("the log does not say that ClickHouse is too old: %s", p.log.tail(500))
	}

	behind.close()
	behind.release = nil
	behind.open(t)
	startConsumer(t, remote)
	c.waitReady(t)
	eventually(t, applyBound, "the first event", func() error { return c.get(eventPath("early"), new(map[string]any)) })
}

// TestForgottenAPI begins a generation while one of two APIs is left on the one
// before, under load. It stops by itself, and what it has acknowledged is applied.
func TestForgottenAPI(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	first := []string{"--kafka-partitions", "2"}
	second := []string{"--kafka-generation", "2", "--kafka-partitions", "5"}
	forgotten, old := i.api(first...)
	replaced, c := i.api(first...)
	consumer := i.consumer(first...)
	var ledgers []*ledger
	for n, c := range []*client{old, c} {
		l := newLedger(fmt.Sprintf("before-%d", n))
		ledgers = append(ledgers, l)
		defer l.write(c, writers)()
		l.waitForWrites(t, someWrites)
	}
	next := i.consumer(second...) // while all goes on
	replaced.stop(t)
	waitReadiness(t, old, readiness{"not_ready", "ok", "ok", "stopped", "ok"})
	requireStatus(t, old, http.MethodPost, "/event", createOf("late"), "", http.StatusServiceUnavailable, "writes_stopped", "later generation")
	requireStatus(t, old, http.MethodPost, "/events", createOf("late"), "", http.StatusServiceUnavailable, "writes_stopped")
	for _, wanted := range []string{"writes", "traffic"} {
		requireStatus(t, old, http.MethodGet, "/readyz?for="+wanted, "", "", http.StatusServiceUnavailable)
	}
	requireStatus(t, old, http.MethodGet, "/readyz?for=reads", "", "", http.StatusOK)
	if !bytes.Contains(forgotten.log.bytes(), []byte("takes no more writes")) || !bytes.Contains(forgotten.log.bytes(), []byte("--kafka-generation=2")) {
		t.Error("the log does not say that the process takes no more writes, and what to do")
	}
	_, c = i.api(second...)
	after := newLedger("after")
	if err := after.round(c, "after"); err != nil {
		t.Fatal(err)
	}
	for _, l := range append(ledgers, after) {
		l.check(t, c)
	}
	if n := i.lag(first...); n != 0 {
		t.Errorf("%d records of the first generation are not applied", n)
	}
	for _, p := range []*process{consumer, next, forgotten} {
		p.stop(t)
	}
}
