package e2e_test

import (
	"bytes"
	"errors"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"testing"

	"github.com/sluicehq/sluice/internal/engine/enginetest"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
)

// databaseURL is that of a database of this test's own.
func databaseURL(t *testing.T) string {
	server := enginetest.Server(t)
	u := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(server.User, server.Password),
		Host: server.Addr, Path: "/" + server.Database(t),
	}
	return u.String()
}

// TestSplit runs the API and two consumers as processes of their own, on Apache
// Kafka and a ClickHouse server, and takes one consumer away under load.
func TestSplit(t *testing.T) {
	t.Parallel()
	broker := kafkatest.Start(t, kafkatest.Options{})
	database := databaseURL(t)
	if code := start(t, "migrate", "--clickhouse-url", database).wait(t, startBound); code != 0 {
		t.Fatalf("migrate exited %d", code)
	}
	remote := []string{"--clickhouse-url", database, "--kafka-brokers", broker.Addrs[0]}
	api := start(t, append([]string{"api", "--listen", "127.0.0.1:0"}, remote...)...)
	first := startConsumer(t, remote)
	second := startConsumer(t, remote)
	c := newClient(api.addr(t))
	c.waitReady(t)

	l := newLedger("load")
	stop := l.write(c, writers)
	defer stop()
	// Both have a part of the partitions, and work.
	for _, p := range []*process{first, second} {
		eventually(t, startBound, "both consumers to work", func() error { return hasFlushed(t, p) })
	}
	l.waitForWrites(t, someWrites)
	first.stop(t)
	l.waitForWrites(t, someWrites)
	stop()
	l.requireNoFailures(t)
	l.check(t, c)
	for _, p := range []*process{api, second} {
		p.stop(t)
	}
}

func startConsumer(t *testing.T, remote []string) *process {
	return start(t, append([]string{"consume", "--metrics-listen", "127.0.0.1:0"}, remote...)...)
}

var (
	metricsListening = regexp.MustCompile(`listening for metrics" addr=(\S+)`)
	recordsApplied   = regexp.MustCompile(`(?m)^sluice_consumer_records_total(?:\{[^}]*\})? (\S+)$`)
)

// hasFlushed returns nil once the consumer has applied records.
func hasFlushed(t *testing.T, p *process) error {
	t.Helper()
	m := metricsListening.FindSubmatch(p.log.bytes())
	if m == nil {
		if p.ended() {
			t.Fatalf("sluice %s exited %d", p.name, p.cmd.ProcessState.ExitCode())
		}
		return errors.New("the log names no address")
	}
	a, err := newClient(string(m[1])).do("GET", "/metrics", nil, "")
	if err != nil {
		return err
	}
	for _, m := range recordsApplied.FindAllSubmatch(a.body, -1) {
		if n, err := strconv.ParseFloat(string(m[1]), 64); err == nil && n > 0 {
			return nil
		}
	}
	return errors.New("no records applied")
}

// TestMigrateTwice starts processes that migrate at once on an empty database.
func TestMigrateTwice(t *testing.T) {
	t.Parallel()
	const processes = 3
	for round := range 3 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			database := databaseURL(t)
			var all []*process
			for range processes {
				all = append(all, start(t, "migrate", "--clickhouse-url", database))
			}
			for _, p := range all {
				if code := p.wait(t, startBound); code != 0 {
					t.Errorf("exit code %d, want 0", code)
				}
			}
			again := start(t, "migrate", "--clickhouse-url", database)
			if code := again.wait(t, startBound); code != 0 || !bytes.Contains(again.log.bytes(), []byte("applied=0")) {
				t.Errorf("another migration exited %d: %s", code, again.log.tail(logTailBytes))
			}
		})
	}
}

// TestDataDirInUse starts a second pipeline on the directory of the first.
func TestDataDirInUse(t *testing.T) {
	dir := t.TempDir()
	first, c := serve(t, dir)
	second := start(t, "serve", "--listen", "127.0.0.1:0", "--data-dir", dir)
	if code := second.wait(t, startBound); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	l := newLedger("load")
	if err := l.round(c, "only"); err != nil {
		t.Fatal(err)
	}
	l.check(t, c)
	first.stop(t)
}

// TestAddressInUse starts a pipeline on an address that another program has.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	dir := t.TempDir()
	p := start(t, "serve", "--listen", taken.Addr().String(), "--data-dir", dir)
	if code := p.wait(t, startBound); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	requireNothingRuns(t, dir)
}
