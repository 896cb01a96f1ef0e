//go:build faults

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/fault"
)

// victim is a kind of process that is killed again and again.
type victim struct {
	name string
	// kills is how often.
	kills int
	// points are those that it is killed at, every other time.
	points []string
	start  func(env ...string) *process
	// ready returns nil once the process does its work.
	ready func(p *process) error
	// life is the longest that it lives after it was ready.
	life time.Duration
}

const (
	// readyWait is how long a process may take until it works, before it is
	// killed all the same.
	readyWait = 3 * time.Second
	// pointWait is how long a process that is to die at a point may live.
	pointWait = 10 * time.Second
)

// hits counts the kills at each point.
type hits struct {
	mu    sync.Mutex
	count map[string]int
}

func newHits() *hits { return &hits{count: make(map[string]int)} }

func (h *hits) add(point string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count[point]++
}

// require tells how often a process was killed at each of the points, which
// must have been at least once.
func (h *hits) require(t *testing.T, points []string) {
	t.Helper()
	var told []string
	for _, point := range points {
		told = append(told, fmt.Sprintf("%s %d", point, h.count[point]))
		if h.count[point] == 0 {
			t.Errorf("nothing was killed at %s", point)
		}
	}
	t.Logf("killed at %s", strings.Join(told, ", "))
}

// killAll kills the victim as often as it says, at random instants and at the
// points, and once more at each point that it was not killed at yet. Then it
// starts it to stay.
func (v *victim) killAll(t *testing.T, random *rand.Rand, at *hits) *process {
	t.Helper()
	killed := make(map[string]bool)
	killAt := func(point string, pass int, wait time.Duration) {
		p := v.start(fmt.Sprintf("%s=%s:%d", fault.PointVariable, point, pass))
		v.await(p)
		if pause(p, wait) {
			killed[point] = true
			at.add(point)
		}
		p.kill()
	}
	for i := range v.kills {
		if len(v.points) == 0 || i%2 > 0 {
			p := v.start()
			v.await(p)
			pause(p, upTo(random, v.life))
			p.kill()
			continue
		}
		point, pass := v.points[i/2%len(v.points)], 1
		if point != fault.Revoked { // which a life rarely has more than one of
			pass += random.IntN(4)
		}
		killAt(point, pass, pointWait)
	}
	more := 0
	for _, point := range v.points {
		if !killed[point] {
			killAt(point, 1, startBound)
			more++
		}
	}
	t.Logf("%s: killed %d times", v.name, v.kills+more)
	p := v.start()
	eventually(t, startBound, v.name+" to work again", func() error {
		if p.ended() {
			return fmt.Errorf("it has ended: %s", p.log.tail(logTailBytes))
		}
		return v.ready(p)
	})
	return p
}

// await waits until the victim works, or has ended.
func (v *victim) await(p *process) {
	for deadline := time.Now().Add(readyWait); time.Now().Before(deadline) && !p.ended(); {
		if v.ready(p) == nil {
			return
		}
		pause(p, 20*time.Millisecond)
	}
}

// pause waits, and reports whether the process ended meanwhile.
func pause(p *process, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// healthy asks the API.
func (s *system) healthy() error {
	a, err := s.client().do(http.MethodGet, "/healthz", nil, "")
	if err == nil && a.status != http.StatusOK {
		err = fmt.Errorf("status %d", a.status)
	}
	return err
}

// hasPartitions says whether the consumer was given partitions.
func hasPartitions(p *process) error {
	if !bytes.Contains(p.log.bytes(), []byte("partitions assigned")) {
		return errors.New("no partitions")
	}
	return nil
}

// killClickHouse kills ClickHouse's process, which is then started again.
func (s *system) killClickHouse(t *testing.T, random *rand.Rand, kills int) {
	for range kills {
		pid := s.clickhouse.engine.PID()
		if pid == 0 { // is being started
			<-time.After(upTo(random, 500*time.Millisecond))
			continue
		}
		s.restartClickHouse(t, pid)
		<-time.After(200*time.Millisecond + upTo(random, time.Second))
	}
	t.Logf("ClickHouse: killed %d times", kills)
}

// restartClickHouse kills ClickHouse's process and waits for the next.
func (s *system) restartClickHouse(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill ClickHouse: %v", err)
	}
	eventually(t, startBound, "another ClickHouse", func() error {
		if now := s.clickhouse.engine.PID(); now == pid || now == 0 {
			return fmt.Errorf("process %d", now)
		}
		return nil
	})
}

// killBroker kills the broker as often, and starts it again.
func (s *system) killBroker(t *testing.T, random *rand.Rand, kills int) {
	t.Helper()
	began := time.Now()
	for range kills {
		s.broker.Kill(0)
		if err := s.broker.Restart(0); err != nil {
			t.Fatal(err)
		}
		<-time.After(upTo(random, time.Second))
	}
	t.Logf("broker: killed %d times in %s", kills, time.Since(began).Round(time.Second))
}

// killAtOnce kills all victims at the same time, and returns the processes that
// it left.
func killAtOnce(t *testing.T, random *rand.Rand, victims []victim) []*process {
	t.Helper()
	var (
		all    sync.WaitGroup
		at     = newHits()
		left   = make([]*process, len(victims))
		points = make(map[string]struct{})
		began  = time.Now()
	)
	for i, v := range victims {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		all.Go(func() { left[i] = v.killAll(t, own, at) })
		for _, point := range v.points {
			points[point] = struct{}{}
		}
	}
	all.Wait()
	t.Logf("in %s", time.Since(began).Round(time.Second))
	at.require(t, slices.Sorted(maps.Keys(points)))
	return left
}

// Tests that run beside each other begin in about the order in which they
// stand, files in that of their names: the longest is first, or it would run alone
// at the end.

// TestFaultKillsKafka kills every part of a system on Apache Kafka again and
// again while a load runs: first the API and the consumers, each in a lane of
// its own, so that a killed consumer's partitions wait for nobody but it; then
// the broker and ClickHouse, which the lanes share.
func TestFaultKillsKafka(t *testing.T) {
	t.Parallel()
	random, size := newRandom(t), suiteSize(t)
	lanes := []*system{newKafkaSystem(t, 1)}
	for i := range 2 {
		lanes = append(lanes, onServers(t, lanes[0].broker, lanes[0].clickhouse, fmt.Sprintf("lane_%d", i+2)))
	}
	var (
		victims []victim
		stops   []func()
	)
	for i, s := range lanes {
		stop := s.load(random.Uint64(), 4)
		defer stop()
		stops = append(stops, stop)
		if i == 0 {
			s.runConsumer(t)
			victims = append(victims, victim{
				name: "api", kills: size.goKills, points: fault.APIPoints(), life: 500 * time.Millisecond,
				start: func(env ...string) *process { return s.runAPI(t, env...) }, ready: func(*process) error { return s.healthy() },
			})
			continue
		}
		s.runAPI(t)
		victims = append(victims, victim{
			name: fmt.Sprintf("consumer %d", i), kills: size.goKills / 2, points: fault.ConsumerPoints(), life: time.Second,
			start: func(env ...string) *process { return s.runConsumer(t, env...) }, ready: hasPartitions,
		})
	}
	// A lone consumer gives partitions up only when it stops.
	for i := range victims {
		victims[i].points = slices.DeleteFunc(victims[i].points, func(point string) bool { return point == fault.Revoked })
	}
	killAtOnce(t, random, victims)

	var both sync.WaitGroup
	own := rand.New(rand.NewPCG(random.Uint64(), 0))
	both.Go(func() { lanes[0].killClickHouse(t, own, size.otherKills) })
	lanes[0].killBroker(t, random, size.otherKills)
	both.Wait()
	for i, s := range lanes {
		s.waitForWrites(t, 100) // it still works
		stops[i]()
		if err := s.verdict(t); err != nil {
			t.Errorf("lane %d: %v", i, err)
		}
		s.stopConsumers(t)
		s.checkReplay(t, func() { s.runConsumer(t) })
	}
}

// TestFaultKillsEmbedded kills a sluice serve, which is API, broker and
// consumer in one, again and again while a load runs, and its ClickHouse.
func TestFaultKillsEmbedded(t *testing.T) {
	t.Parallel()
	random, size := newRandom(t), suiteSize(t)
	s := newEmbeddedSystem(t)
	stop := s.load(random.Uint64(), 6)
	defer stop()
	points := slices.Concat(fault.APIPoints(), fault.BrokerPoints(), fault.ConsumerPoints())
	// A lone consumer gives partitions up only when it stops.
	points = slices.DeleteFunc(points, func(point string) bool { return point == fault.Revoked })
	left := killAtOnce(t, random, []victim{{
		name: "serve", kills: size.goKills, points: points, life: 500 * time.Millisecond,
		start: func(env ...string) *process { return s.runServe(t, env...) }, ready: func(*process) error { return s.healthy() },
	}})
	s.killClickHouse(t, random, size.otherKills)
	s.waitForWrites(t, 200) // it still works
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	left[0].stop(t)
	s.checkReplay(t, func() { s.runServe(t) })
}

// TestFaultKillsWhole kills sluice serve with its ClickHouse in it.
func TestFaultKillsWhole(t *testing.T) {
	t.Parallel()
	random, size := newRandom(t), suiteSize(t)
	dir := t.TempDir()
	s := newWholeSystem(t, dir)
	stop := s.load(random.Uint64(), 6)
	defer stop()
	v := victim{
		name: "serve with its ClickHouse", kills: size.otherKills, life: time.Second,
		start: func(env ...string) *process { return s.runServe(t, env...) }, ready: func(*process) error { return s.healthy() },
	}
	p := v.killAll(t, random, newHits())
	s.waitForWrites(t, 200) // it still works
	stop()
	s.drain(t)
	p.stop(t)
	// Its ClickHouse has a password that nobody else knows; another one on the
	// same data has not.
	s.clickhouse = startClickHouse(t, filepath.Join(dir, "clickhouse"))
	s.embeddedBroker(t, func() {
		if err := s.verdict(t); err != nil {
			t.Error(err)
		}
	})
}
