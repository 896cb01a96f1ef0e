//go:build faults

package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/fault"
)

// treatments is how often a bug may go unnoticed: it needs the load to do
// something in the moment in which the bug is a bug, which is likely and not
// certain.
const treatments = 5

// TestFaultPlanted builds Sluice with each of the bugs, treats it as roughly as it
// treats one without any, and wants the checker to notice.
func TestFaultPlanted(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	t.Run("none", func(t *testing.T) {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		t.Parallel()
		if err := newSharedSystem(t).treatRoughly(t, own); err != nil {
			t.Errorf("without a bug: %v", err)
		}
	})
	for _, m := range plantedBugs() {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			overlay, err := m.overlay(dir)
			if err != nil {
				t.Fatal(err)
			}
			binary := filepath.Join(dir, "sluice")
			if err := build(binary, "-overlay", overlay); err != nil {
				t.Fatal(err)
			}
			for i := range treatments {
				s := newSharedSystem(t)
				s.binary = binary
				err := s.treatRoughly(t, own)
				if err != nil {
					t.Logf("noticed by treatment %d: %.600s", i+1, err)
					return
				}
				s.end(t)
			}
			t.Errorf("not noticed by any of %d treatments", treatments)
		})
	}
}

// treatRoughly is what each of the bugs shows under: records that wait for the
// first consumer, partitions that go and come back, a database that refuses
// inserts, consumers that are killed before they insert. It returns the verdict.
func (s *system) treatRoughly(t *testing.T, random *rand.Rand) error {
	t.Helper()
	s.runAPI(t)
	// Slowly, so that events live long enough to be updated by several owners,
	// and by many, as most of them wait.
	stop := s.loadSlowly(random.Uint64(), 16, 200*time.Millisecond)
	defer stop()
	s.waitForWrites(t, 100)

	first := s.runConsumer(t)
	for range 2 {
		s.awaitPartitions(t, first)
		s.waitForWrites(t, 100)
		second := s.runConsumer(t)
		s.awaitPartitions(t, second)
		s.waitForWrites(t, 300)
		_ = second.cmd.Process.Signal(syscall.SIGTERM)
		second.wait(t, stopBound)
	}
	s.refuseInserts(t)
	first.kill()
	for range 2 {
		p := s.runConsumer(t, fmt.Sprintf("%s=%s:2", fault.PointVariable, fault.InsertBegun))
		p.wait(t, startBound)
	}
	s.runConsumer(t)
	s.waitForWrites(t, 100)
	stop()
	return s.verdict(t)
}

// refuseInserts has ClickHouse refuse inserts for a while, because of too many
// parts, and answer queries.
func (s *system) refuseInserts(t *testing.T) {
	t.Helper()
	tables := []string{"events", "event_contents", "event_embeddings"}
	for _, table := range tables {
		s.sql(t, "ALTER TABLE "+table+" MODIFY SETTING parts_to_delay_insert = 1, parts_to_throw_insert = 1")
	}
	s.waitForWrites(t, 100)
	for _, table := range tables {
		s.sql(t, "ALTER TABLE "+table+" RESET SETTING parts_to_delay_insert, parts_to_throw_insert")
	}
}

func (s *system) awaitPartitions(t *testing.T, p *process) {
	t.Helper()
	eventually(t, startBound, "the consumer to have partitions", func() error { return hasPartitions(p) })
}
