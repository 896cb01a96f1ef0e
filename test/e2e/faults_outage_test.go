//go:build faults

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/engine"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/test/checker"
)

// writer creates events in batches, on connections of its own, beside the load
// that the history is of, and keeps account of the answers. It neither reads nor
// waits for what it wrote, so that a database that hangs does not hold it up.
type writer struct {
	// connections is how many batches are under way at a time, events and
	// inputBytes how large one is.
	connections, events, inputBytes int
	// pause is the least time from one request of a connection to its next.
	pause time.Duration

	stop func()

	mu       sync.Mutex
	answers  []writerAnswer
	acked    map[string]string // receipts by id
	receipts receipts
	errs     []error
}

type writerAnswer struct {
	status     int
	retryAfter string
	took       time.Duration
}

// write starts a writer. Its stop returns when the last answer is there.
func (s *system) write(random *rand.Rand, w *writer) *writer {
	done := make(chan struct{})
	w.acked = make(map[string]string)
	name := fmt.Sprintf("%s%x", ourIDs, random.Uint64())
	// Compressible by half, as text is.
	rest := fmt.Sprintf(`,"conversation_id":%q,"event_name":"event_a","input":"%x"}`, name, randomBytes(random, w.inputBytes/2))
	var connections sync.WaitGroup
	for i := range w.connections {
		connections.Go(func() {
			c := s.client()
			defer c.http.CloseIdleConnections()
			// Not all in the same moment.
			tick := time.NewTicker(w.pause * time.Duration(i+1) / time.Duration(w.connections))
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				case <-tick.C:
					tick.Reset(w.pause)
					w.batch(c, fmt.Sprintf("%s %d %d", name, i, n), rest)
				}
			}
		})
	}
	w.stop = sync.OnceFunc(func() { close(done); connections.Wait() })
	return w
}

// batch makes one request and takes its answer to account. All events are alike
// but for their ids.
func (w *writer) batch(c *client, name, rest string) {
	var body bytes.Buffer
	ids := make([]string, w.events)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s %d", name, i)
		fmt.Fprintf(&body, `{"id":%q%s`+"\n", ids[i], rest)
	}
	call := time.Now()
	a, err := c.do(http.MethodPost, "/events", body.Bytes(), "")
	took := time.Since(call)
	var batch struct {
		Results []result `json:"results"`
	}
	if err == nil && a.status == http.StatusAccepted {
		if err = json.Unmarshal(a.body, &batch); err == nil && len(batch.Results) != len(ids) {
			err = fmt.Errorf("%d results for %d writes", len(batch.Results), len(ids))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.errs = append(w.errs, fmt.Errorf("%s, after %s: %w", name, took, err))
		return
	}
	w.answers = append(w.answers, writerAnswer{a.status, a.header.Get("Retry-After"), took})
	for i, r := range batch.Results {
		w.acked[ids[i]] = r.Receipt
	}
	if err := w.receipts.add(batch.Results...); err != nil {
		w.errs = append(w.errs, err)
	}
}

// count is the number of answers with the status.
func (w *writer) count(status int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.answers {
		if a.status == status {
			n++
		}
	}
	return n
}

// slowest is the longest that an answer took.
func (w *writer) slowest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var most time.Duration
	for _, a := range w.answers {
		most = max(most, a.took)
	}
	return most
}

// requireAll fails the test unless every request was answered with the status,
// and in time.
func (w *writer) requireAll(t *testing.T, status int, bound time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 0 {
		t.Error("no writes were answered")
	}
	for _, err := range w.errs[:min(len(w.errs), 5)] {
		t.Errorf("of %d: %v", len(w.errs), err)
	}
	bad := 0
	for _, a := range w.answers {
		if a.status == status && a.took <= bound && (status == http.StatusServiceUnavailable) == (a.retryAfter != "") {
			continue
		}
		if bad++; bad <= 5 {
			t.Errorf("a write was answered %d after %s, Retry-After %q", a.status, a.took, a.retryAfter)
		}
	}
	if bad > 5 {
		t.Errorf("%d answers of %d are wrong", bad, len(w.answers))
	}
}

// requireLogged fails the test unless all that was acknowledged to the writers
// is in the log, once, at its receipt. That the tables have what the log has, is
// the verdict's.
func (s *system) requireLogged(t *testing.T, writers ...*writer) {
	t.Helper()
	at := make(map[string][]string)
	for _, r := range s.readLog(t).Records {
		if id := string(r.Key); isOurs(id) {
			at[id] = append(at[id], r.Receipt().String())
		}
	}
	acked := 0
	for _, w := range writers {
		acked += len(w.acked)
		for id, receipt := range w.acked {
			if !slices.Contains(at[id], receipt) {
				t.Errorf("%s, acknowledged as %s, is in the log at %v", id, receipt, at[id])
			}
		}
	}
	unacked := 0
	for id, receipts := range at {
		if len(receipts) > 1 {
			t.Errorf("%s is in the log at %v", id, receipts)
		}
		unacked++
	}
	t.Logf("beside the load: %d writes were acknowledged, and %d more are in the log", acked, unacked-acked)
}

// peakBytes is the most memory that a process has had.
func peakBytes(t *testing.T, p *process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("a process's memory is read as on Linux")
	}
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := bytes.Cut(text, []byte("VmHWM:"))
	kib, err := strconv.ParseInt(string(bytes.Fields(after)[0]), 10, 64)
	if !ok || err != nil {
		t.Fatalf("no VmHWM in %s", text)
	}
	return kib << 10
}

const (
	// answerBound is how long a write may take that nobody acknowledges: the 5 s
	// that are promised, and what a busy machine of two cores adds.
	answerBound = raceFactor * 6 * time.Second
	// backBound is how long it may take from the end of an outage to the first
	// write that is acknowledged, and to the first that is applied.
	backBound = raceFactor * 10 * time.Second
	// memoryBound is that of the API's process, throughout: the soft limit of 448
	// MiB, and what Go takes beyond it before it has collected.
	memoryBound = raceFactor * 640 << 20
	mib         = 1 << 20
)

// outage is a way for the broker not to answer.
type outage struct {
	name  string
	lasts time.Duration
	// inputBytes are those of each event that is written meanwhile.
	inputBytes int
	begin      func(t *testing.T) (end func())
}

// TestFaultBrokerUnreachable takes the only broker away in several ways, while
// many clients write a lot.
func TestFaultBrokerUnreachable(t *testing.T) {
	random := newRandom(t)
	var p *proxy
	broker := kafkatest.Start(t, kafkatest.Options{Advertise: func(addr string) string {
		p = newProxy(t, addr)
		return p.addr
	}})
	s := onServers(t, broker, startClickHouse(t, t.TempDir()), engine.Database)
	s.history.Foreign = isOurs
	// The default: a consumer that outlives the outage as a member of the group
	// need not join again, which takes as long as the group waits for others.
	s.flags[slices.Index(s.flags, "--kafka-session-timeout")+1] = "45s"
	api := s.runAPI(t)
	s.runConsumer(t)
	stop := s.load(random.Uint64(), 4)
	defer stop()
	var writers []*writer
	for _, o := range []outage{
		{"unreachable", 10 * time.Second, 128 << 10, func(t *testing.T) func() {
			p.refuse()
			return func() { p.listen(t) }
		}},
		{"black-holed", 15 * time.Second, 128 << 10, func(*testing.T) func() {
			p.swallow(true)
			return func() { p.swallow(false) }
		}},
		// What the broker's machine has buffered it gets when it goes on.
		{"frozen", 8 * time.Second, 4 << 10, func(t *testing.T) func() {
			thaw, err := broker.Freeze(0)
			if err != nil {
				t.Fatal(err)
			}
			return thaw
		}},
	} {
		t.Run(o.name, func(t *testing.T) { writers = append(writers, s.testOutage(t, random, api, o)) })
	}
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	s.requireLogged(t, writers...)
	requireRunning(t, s.started...)
}

// testOutage wants every write refused while the broker is away, in time and in
// bounded memory, and all to go on soon when it is back.
func (s *system) testOutage(t *testing.T, random *rand.Rand, api *process, o outage) *writer {
	t.Helper()
	s.waitForWrites(t, 100)
	end := sync.OnceFunc(o.begin(t))
	defer end()
	began := time.Now()
	// Enough for the buffer to be full: see the metrics below.
	w := s.write(random, &writer{connections: 64, events: 16, inputBytes: o.inputBytes, pause: 500 * time.Millisecond})
	defer w.stop()
	<-time.After(6 * time.Second) // until whatever was sent before has been answered
	acknowledged, applied := s.acknowledged(), s.history.Count(checker.Applied)
	<-time.After(o.lasts - time.Since(began))
	buffered := metric(t, s.api, "sluice_produce_buffered_bytes")
	inFlight := metric(t, s.api, "sluice_api_in_flight_bytes")
	w.stop()
	if now := s.acknowledged(); now != acknowledged {
		t.Errorf("%d writes were acknowledged without a broker", now-acknowledged)
	}
	w.requireAll(t, http.StatusServiceUnavailable, answerBound)
	t.Logf("%d batches on %d connections: all answered 503, the slowest after %s",
		len(w.answers), w.connections, w.slowest().Round(time.Millisecond))
	peak := peakBytes(t, api)
	if peak > memoryBound {
		t.Errorf("the API's process has had %d MiB", peak/mib)
	}
	t.Logf("API: %d MiB at most; %.0f MiB wait for the broker, %.0f MiB are held by requests; %.0f records were refused because the buffer was full",
		peak/mib, buffered/mib, inFlight/mib, metric(t, s.api, "sluice_produce_refused_records_total"))

	end()
	back := time.Now()
	eventually(t, backBound, "a write to be acknowledged", func() error {
		if s.acknowledged() == acknowledged {
			return errors.New("none is")
		}
		return nil
	})
	acknowledgedAfter := time.Since(back)
	eventually(t, backBound-acknowledgedAfter, "a write to be applied", func() error {
		if s.history.Count(checker.Applied) == applied {
			return errors.New("none is")
		}
		return nil
	})
	t.Logf("back: the first write was acknowledged after %s, one applied after %s",
		acknowledgedAfter.Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
	return w
}

// TestFaultOneOfThreeBrokers kills two of three brokers, one after the other,
// each while it leads partitions.
func TestFaultOneOfThreeBrokers(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	s := newKafkaSystem(t, 3)
	s.runAPI(t)
	s.runConsumer(t)
	s.runConsumer(t)
	stop := s.load(random.Uint64(), 6)
	defer stop()
	killed := -1
	for range 2 {
		s.waitForWrites(t, 200)
		i, leads := s.leader(t, killed)
		s.broker.Kill(i)
		down := time.Now()
		unknown := s.history.Count(checker.Unknown)
		s.waitForWrites(t, 1)
		first := time.Since(down)
		s.waitForWrites(t, 300)
		t.Logf("broker %d, which led %d partitions: without it, the first write was acknowledged after %s, 300 more in %s; %d were not",
			i+1, leads, first.Round(time.Millisecond), (time.Since(down) - first).Round(time.Millisecond), s.history.Count(checker.Unknown)-unknown)
		if err := s.broker.Restart(i); err != nil {
			t.Fatal(err)
		}
		s.waitInSync(t)
		killed = i
	}
	s.waitForWrites(t, 200)
	stop()
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	requireRunning(t, s.started...)
}

// partitions are those of the events topic.
func (s *system) partitions(t *testing.T) (details kadm.PartitionDetails, err error) {
	t.Helper()
	topic := s.kafka.EventsTopic()
	err = s.admin(t, func(ctx context.Context, adm *kadm.Client) error {
		topics, err := adm.ListTopics(ctx, topic)
		details = topics[topic].Partitions
		return errors.Join(err, topics.Error())
	})
	return details, err
}

// leader is the broker, other than the one given, that leads most partitions.
func (s *system) leader(t *testing.T, but int) (broker, leads int) {
	t.Helper()
	details, err := s.partitions(t)
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[int]int)
	for _, p := range details {
		count[int(p.Leader)-1]++
	}
	for i, n := range count {
		if i != but && n > leads {
			broker, leads = i, n
		}
	}
	if leads == 0 {
		t.Fatalf("only broker %d leads partitions: %v", but+1, details)
	}
	return broker, leads
}

// waitInSync waits until every broker has all of every partition.
func (s *system) waitInSync(t *testing.T) {
	t.Helper()
	eventually(t, startBound, "the replicas to be in sync", func() error {
		details, err := s.partitions(t)
		if err != nil {
			return err
		}
		for _, p := range details {
			if len(p.ISR) < len(s.broker.Addrs) {
				return fmt.Errorf("partition %d is in sync on %v", p.Partition, p.ISR)
			}
		}
		return nil
	})
}

// databaseFault is something that ClickHouse suffers from.
type databaseFault struct {
	name   string
	inject func(t *testing.T) (lift func())
	// says is what a consumer must say of a try that did not succeed; empty
	// where the database is slow, and no try fails in that time.
	says string
	// stalls: no write at all is applied while it lasts.
	stalls bool
}

const (
	// faultLasts is how long each lasts at least.
	faultLasts = 3 * time.Second
	// appliedBound is how long all that was written during a fault may take to
	// be applied after it. The consumer's pauses grow with the tries.
	appliedBound = time.Minute
	// engineBytes is what ClickHouse may use, diskBytes what its disk holds.
	engineBytes = 1 << 30
	diskSize    = "4g"
)

// TestFaultClickHouse has one ClickHouse suffer from one thing after the other,
// under load.
func TestFaultClickHouse(t *testing.T) {
	t.Parallel()
	random := newRandom(t)
	dir := t.TempDir()
	canMount := false
	t.Run("a disk of its own", func(t *testing.T) { // skipped where there can be none
		mountSmall(t, filepath.Join(t.TempDir(), "disk"), "1m")
		canMount = true
	})
	var resize func(size string) error
	if canMount {
		resize = mountSmall(t, dir, diskSize)
	}
	broker := kafkatest.Start(t, kafkatest.Options{})
	server := startClickHouse(t, dir, func(c *engine.Config) { c.MemoryMaxBytes = engineBytes })
	s := onServers(t, broker, server, engine.Database)
	s.history.Foreign = isOurs
	p := newProxy(t, server.engine.Addr())
	s.flags[slices.Index(s.flags, "--clickhouse-url")+1] = server.url(p.addr, s.database)

	s.runAPI(t)
	var consumers []*consumerProcess
	for range 2 {
		addr := freeAddr(t)
		consumers = append(consumers, &consumerProcess{s.run(t, nil, "consume", "--metrics-listen", addr), addr})
	}
	for _, c := range consumers {
		s.awaitPartitions(t, c.process)
	}
	stop := s.load(random.Uint64(), 6)
	defer stop()
	w := s.write(random, &writer{connections: 2, events: 5, inputBytes: 100, pause: 20 * time.Millisecond})
	defer w.stop()
	for _, f := range s.databaseFaults(p, dir, resize) {
		t.Run(f.name, func(t *testing.T) {
			if f.name == "disk full" && !canMount {
				t.Skip("no disk can be mounted here")
			}
			s.testDatabaseFault(t, f, w, consumers)
		})
	}
	w.stop()
	stop()
	w.requireAll(t, http.StatusAccepted, answerBound)
	t.Logf("%d batches beside the load, the slowest acknowledged after %s", len(w.answers), w.slowest().Round(time.Millisecond))
	if err := s.verdict(t); err != nil {
		t.Error(err)
	}
	s.requireLogged(t, w)
	requireRunning(t, s.started...)
}

func (s *system) databaseFaults(p *proxy, dir string, resize func(size string) error) []databaseFault {
	tables := []string{"events", "event_contents", "event_embeddings", "event_aliases"}
	alter := func(settings, back string) func(t *testing.T) func() {
		return func(t *testing.T) func() {
			for _, table := range tables {
				s.sql(t, "ALTER TABLE "+table+" MODIFY SETTING "+settings)
			}
			return func() {
				for _, table := range tables {
					s.sql(t, "ALTER TABLE "+table+" MODIFY SETTING "+back)
				}
			}
		}
	}
	return []databaseFault{
		{name: "slow", inject: func(t *testing.T) func() {
			before := p.delayed.Load()
			p.slow(100 * time.Millisecond)
			return func() {
				p.slow(0)
				t.Logf("%d chunks were delayed", p.delayed.Load()-before)
			}
		}},
		{name: "cut in the middle of inserts", says: `insert \d+ rows into`, inject: func(t *testing.T) func() {
			before := p.broken.Load()
			// A hello, a query and its settings are about 1 KiB.
			p.breakAfter(func() int64 { return 1<<10 + rand.Int64N(15<<10) })
			p.cut() // the connections that there are
			return func() {
				p.breakAfter(nil)
				t.Logf("%d connections were cut", p.broken.Load()-before)
			}
		}},
		{name: "frozen", stalls: true, inject: func(t *testing.T) func() {
			pid := s.clickhouse.engine.PID()
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
		}},
		{name: "read-only", stalls: true, says: `\(774\)`, inject: alter("table_readonly = 1", "table_readonly = 0")},
		{name: "too many parts", stalls: true, says: `\(252\)`, inject: alter(
			"parts_to_delay_insert = 1, parts_to_throw_insert = 1", "parts_to_delay_insert = 1000, parts_to_throw_insert = 3000")},
		{name: "out of memory", says: `\(241\)`, inject: func(t *testing.T) func() { return s.fillMemory(t) }},
		// Merges give room back now and then, which is taken away at once.
		{name: "disk full", says: `\(243\)`, inject: func(t *testing.T) func() {
			shrink := func() error { return resize(strconv.Itoa(diskUsed(t, dir))) }
			eventually(t, startBound, "a disk without room", shrink)
			t.Logf("the disk has %d MiB of files", diskUsed(t, dir)/mib)
			over := repeat(50*time.Millisecond, func() { _ = shrink() }) // what was written meanwhile does not fit
			return func() {
				over()
				if err := resize(diskSize); err != nil {
					t.Error(err)
				}
				// As is to be done after it: a merge may have left a part without its
				// marks, which cannot be read (246). At its start, ClickHouse goes back
				// to the parts that it was merged of, while they are there (8 min).
				s.restartClickHouse(t, s.clickhouse.engine.PID())
			}
		}},
	}
}

// fillMemory has the server hold rows in memory until it refuses more.
func (s *system) fillMemory(t *testing.T) (free func()) {
	t.Helper()
	s.sql(t, "CREATE TABLE ballast (b String) ENGINE = Memory")
	fill := func(ctx context.Context, rows int) error {
		_, err := s.checkerDatabase().Query(ctx, fmt.Sprintf("INSERT INTO ballast SELECT randomString(1048576) FROM numbers(%d)", rows))
		return err
	}
	for rows := 32; rows > 0; {
		err := fill(t.Context(), rows)
		switch {
		case err != nil && !strings.Contains(err.Error(), "241"):
			t.Errorf("fill ClickHouse's memory: %v", err)
			rows = 0
		case err != nil:
			rows /= 2
		}
	}
	// What caches give back is taken too.
	over := repeat(50*time.Millisecond, func() { _ = fill(t.Context(), 1) })
	return func() {
		over()
		// For want of memory ClickHouse may refuse this too, until others give some back.
		eventually(t, startBound, "ClickHouse to drop the ballast", func() error {
			_, err := s.checkerDatabase().Query(t.Context(), "DROP TABLE IF EXISTS ballast SYNC")
			return err
		})
	}
}

// repeat does something again and again until the returned function is called.
func repeat(pause time.Duration, do func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				do()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// diskUsed is how many bytes are taken of the disk that has the directory.
func diskUsed(t *testing.T, dir string) int {
	t.Helper()
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		t.Fatal(err)
	}
	return int(disk.Blocks-disk.Bfree) * int(disk.Bsize)
}

// consumerProcess is a consumer with the address of its metrics.
type consumerProcess struct {
	*process
	metrics string
}

// failedTry is what the consumer says of a try that did not succeed.
var failedTry = regexp.MustCompile(`msg="step did not succeed, trying again" step="?([^"=]*)"? tries=(\d+) .* error=(.*)`)

// failedTries is the most tries of one step that did not succeed for such a
// reason, in what the consumer has said from a place of its log on.
func (c *consumerProcess) failedTries(from int, reason *regexp.Regexp) (most int, last string) {
	lines := bufio.NewScanner(bytes.NewReader(c.log.bytes()[from:]))
	for lines.Scan() {
		m := failedTry.FindStringSubmatch(lines.Text())
		if m == nil || !reason.MatchString(m[3]) {
			continue
		}
		n, _ := strconv.Atoi(m[2]) // digits
		most, last = max(most, n), fmt.Sprintf("%s: %.300s", m[1], m[3])
	}
	return most, last
}

// testDatabaseFault wants writes acknowledged as ever while the fault lasts, no
// batch given up, and all applied after it.
func (s *system) testDatabaseFault(t *testing.T, f databaseFault, w *writer, consumers []*consumerProcess) {
	t.Helper()
	const (
		// triesWanted is how often the same batch is to fail.
		triesWanted = 3
		writesMore  = 40 // batches
	)
	s.waitForWrites(t, 100)
	var from []int
	for _, c := range consumers {
		from = append(from, len(c.log.bytes()))
	}
	began, before := time.Now(), w.count(http.StatusAccepted)
	lift := sync.OnceFunc(f.inject(t))
	defer lift()

	if f.says != "" {
		reason := regexp.MustCompile(f.says)
		var failing []*consumerProcess
		eventually(t, startBound, "a consumer to say "+f.says, func() error {
			failing = failing[:0]
			for i, c := range consumers {
				if n, _ := c.failedTries(from[i], reason); n >= triesWanted {
					failing = append(failing, c)
				}
			}
			if len(failing) == 0 || f.stalls && len(failing) < len(consumers) {
				return fmt.Errorf("%d of them do", len(failing))
			}
			return nil
		})
		for i, c := range consumers {
			n, last := c.failedTries(from[i], reason)
			t.Logf("consumer %d: %d tries of a step did not succeed, such as %s", i+1, n, last)
		}
	}
	// What was applied before may be answered only now, and counts for nothing.
	since, fetched := s.history.Now(), recordsFetched(t, consumers)
	s.waitForBatches(t, w, 1)
	made := w.receipts.copy()
	s.waitForBatches(t, w, writesMore)
	<-time.After(faultLasts - time.Since(began))
	switch applied := s.history.AppliedSince(since); {
	case f.stalls && applied > 0:
		t.Errorf("%d writes were applied", applied)
	case f.stalls && f.says != "":
		if now := recordsFetched(t, consumers); !slices.Equal(now, fetched) {
			t.Errorf("the consumers went on fetching: from %v records to %v", fetched, now)
		}
	case f.says == "" && !f.stalls:
		// By receipts, because a flush may take longer than a write of the load waits.
		made.waitApplied(t, s.client(), appliedBound)
	}
	lift()
	lasted, back := time.Since(began), time.Now()
	t.Logf("in %s, %d batches were acknowledged", lasted.Round(time.Millisecond), w.count(http.StatusAccepted)-before)
	w.receipts.waitApplied(t, s.client(), appliedBound)
	t.Logf("all of them were applied %s after it", time.Since(back).Round(time.Millisecond))
	for i, c := range consumers {
		if bytes.Contains(c.log.bytes()[from[i]:], []byte("record rejected")) {
			t.Errorf("consumer %d gave records up", i+1)
		}
	}
}

// waitForBatches waits until the writer has so many more acknowledged.
func (s *system) waitForBatches(t *testing.T, w *writer, n int) {
	t.Helper()
	want := w.count(http.StatusAccepted) + n
	eventually(t, startBound, fmt.Sprintf("%d more batches", n), func() error {
		if now := w.count(http.StatusAccepted); now < want {
			return fmt.Errorf("%d are missing", want-now)
		}
		return nil
	})
}

// recordsFetched is how many records each consumer has taken from the brokers.
func recordsFetched(t *testing.T, consumers []*consumerProcess) []float64 {
	t.Helper()
	var n []float64
	for _, c := range consumers {
		n = append(n, metric(t, c.metrics, "sluice_consumer_records_total"))
	}
	return n
}
