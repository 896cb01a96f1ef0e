//go:build faults

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/fault"
)

// TestFaultPausedConsumer stops a consumer with SIGSTOP in the middle of a
// flush, at each of its points, past its session's time. Another takes its
// partitions, applies the same records and later ones of the same events, and
// then the first one goes on: what it inserts late must change nothing.
func TestFaultPausedConsumer(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newSharedSystem(t)
	s.runAPI(t)
	stop := s.loadSlowly(random.Uint64(), 16, 100*time.Millisecond)
	defer stop()
	other := s.runConsumer(t)
	s.awaitPartitions(t, other)
	for _, point := range fault.ConsumerPoints() {
		if point == fault.Revoked {
			continue // the group waits for it: see TestFaultRebalances
		}
		p := s.runConsumer(t, fmt.Sprintf("%s=%s:%d:stop", fault.PointVariable, point, 3))
		eventually(t, startBound, "the consumer to stop at "+point, func() error { return isStopped(p) })
		had := bytes.Count(other.log.bytes(), []byte("partitions assigned"))
		eventually(t, startBound, "the other consumer to take over", func() error {
			if bytes.Count(other.log.bytes(), []byte("partitions assigned")) == had {
				return errors.New("nothing was assigned")
			}
			return nil
		})
		s.waitForWrites(t, 300)
		if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		// It finds itself fenced, joins again, and works.
		eventually(t, startBound, "the consumer to be back", func() error {
			if n := bytes.Count(p.log.bytes(), []byte("partitions assigned")); n < 2 {
				return fmt.Errorf("it was given partitions %d times", n)
			}
			return nil
		})
		s.waitForWrites(t, 100)
		p.stop(t)
	}
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
}

// isStopped says whether a process has stopped itself.
func isStopped(p *process) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return err
	}
	// pid (name) state …
	if state := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])[0]; state[0] != 'T' {
		return fmt.Errorf("its state is %s", state)
	}
	return nil
}

// TestFaultRebalances has consumers join and leave, orderly or not, while a
// load runs.
func TestFaultRebalances(t *testing.T) {
	t.Parallel()
	random, size := newRandom(t), suiteSize(t)
	s := newSharedSystem(t)
	s.runAPI(t)
	stop := s.loadSlowly(random.Uint64(), 16, 100*time.Millisecond)
	defer stop()
	const most = 4
	var members []*process
	for range size.otherKills {
		if n := len(members); n == 0 || n < most && random.IntN(2) == 0 {
			members = append(members, s.runConsumer(t))
		} else {
			i := random.IntN(n)
			p := members[i]
			members = append(members[:i], members[i+1:]...)
			if random.IntN(3) == 0 {
				p.kill()
			} else {
				_ = p.cmd.Process.Signal(syscall.SIGTERM)
				p.wait(t, stopBound)
			}
		}
		<-time.After(upTo(random, 1500*time.Millisecond))
	}
	for _, p := range members {
		p.stop(t)
	}
	// Killed while it gives partitions up, which the next one is waiting for.
	for range 3 {
		p := s.runConsumer(t, fault.PointVariable+"="+fault.Revoked)
		s.awaitPartitions(t, p)
		s.waitForWrites(t, 50)
		next := s.runConsumer(t)
		if code := p.wait(t, startBound); code != -1 {
			t.Errorf("exit code %d, want it killed", code)
		}
		s.awaitPartitions(t, next)
		s.waitForWrites(t, 50)
		next.stop(t)
	}
	s.runConsumer(t)
	s.waitForWrites(t, 100)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
}

// TestFaultClock has the clock of the API jump by a day, in both directions,
// while it runs and against the broker's and the other processes'.
func TestFaultClock(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newEmbeddedSystem(t)
	stop := s.load(random.Uint64(), 6)
	defer stop()
	for _, jump := range []string{"24h@1s", "-24h@1s", "24h", "-24h"} {
		p := s.runServe(t, fault.ClockVariable+"="+jump)
		s.waitForWrites(t, 500)
		<-time.After(time.Second)
		s.waitForWrites(t, 500) // after the jump too
		p.stop(t)
	}
	s.runServe(t)
	s.waitForWrites(t, 100)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
}

// TestFaultMigration goes from the schema before the last migration to this
// one's while the processes of the build before it run, and then replaces them
// one after the other.
func TestFaultMigration(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newSharedSystem(t)
	s.binary = buildBefore(t)
	stop := s.load(random.Uint64(), 6)
	defer stop()
	api, consumer := s.runAPI(t), s.runConsumer(t)
	s.awaitPartitions(t, consumer)
	s.waitForWrites(t, 500)
	version := func() int {
		t.Helper()
		n, err := strconv.Atoi(s.sql(t, "SELECT max(version) FROM schema_migrations")[0][0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := version()

	s.binary = ""
	migrate := launch(t, sluiceBinary, t.TempDir(), nil, "migrate", "--clickhouse-url", s.clickhouse.url(s.clickhouse.engine.Addr(), s.database))
	if code := migrate.wait(t, startBound); code != 0 {
		t.Fatalf("migrate exited %d: %s", code, migrate.log.tail(logTailBytes))
	}
	if after := version(); after <= before {
		t.Fatalf("the schema was %d and is %d", before, after)
	}
	s.waitForWrites(t, 500) // by the old processes
	second := s.runConsumer(t)
	s.awaitPartitions(t, second)
	s.waitForWrites(t, 500) // by an old and a new consumer
	consumer.stop(t)
	api.stop(t)
	s.runAPI(t)
	s.waitForWrites(t, 500)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
}

// buildBefore builds the program without the last migration.
func buildBefore(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../../internal/clickhouse/schema/migrations/*.sql")
	if err != nil || len(files) < 2 {
		t.Fatalf("migrations: %v, error %v", files, err)
	}
	last, err := filepath.Abs(files[len(files)-1])
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {last: ""}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "sluice")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := build(binary, "-overlay", file); err != nil {
		t.Fatal(err)
	}
	return binary
}
