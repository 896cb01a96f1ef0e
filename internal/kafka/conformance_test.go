package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// The suite is what Sluice relies on of a broker, and of its own side of it.
var suite = []struct {
	name string
	test func(t *testing.T, b *backend)
}{
	{"topics made by two at once", testEnsureConcurrently},
	{"topics of another shape are refused", testEnsureMismatch},
	{"the number of partitions is found", testEnsurePartitions},
	{"records keep the order of their key", testOrder},
	{"a large write", testLarge},
	{"a full buffer refuses at once", testBufferFull},
	{"a frozen broker", testFrozen},
	{"a killed broker", testKilled},
	{"readiness", testReady},
	{"commit and resume", testResume},
	{"pause and lag", testPause},
	{"foreign batches", testForeignBatches},
	{"transactions of others", testTransactions},
	{"rebalance", testRebalance},
	{"a fenced commit", testFenced},
	{"lost records", testDataLoss},
	{"generations", testGenerations},
	{"beginning a generation", testBegin},
	{"a fence when a generation begins", testFence},
	{"what a fence notices", testFenceNotices},
	{"a fence without brokers", testFenceBlind},
	{"offsets set back", testRewind},
	{"waiting for writes", testWait},
	{"refusals that a watcher may have missed", testRefusals},
	{"dead letters", testDeadLetters},
	{"a replay sends each letter once", testReplayOnce},
	{"a replay overwrites nothing newer", testReplayHoldsBack},
	{"a replay of what the log has lost", testReplayUncertain},
	{"a replay in a new generation", testReplayGenerations},
}

func TestEmbeddedBroker(t *testing.T) {
	for _, tt := range suite {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, embeddedBackend(t))
		})
	}
}

func TestApacheKafka(t *testing.T) {
	for _, tt := range suite {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, apacheBackend(t)) })
	}
}

func testEnsureConcurrently(t *testing.T, b *backend) {
	cfg := b.config()
	infos := make([]kafka.TopicInfo, 4)
	errs := make([]error, len(infos))
	var wg sync.WaitGroup
	for i := range infos {
		wg.Go(func() { infos[i], errs[i] = kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	want := kafka.TopicInfo{
		Topic: cfg.TopicPrefix + ".g1", Generation: 1, ID: infos[0].ID, Partitions: 4, ReplicationFactor: 1,
		DeadLetterTopic: cfg.TopicPrefix + ".dlq",
	}
	for _, info := range infos {
		if diff := cmp.Diff(want, info); diff != "" {
			t.Error(diff)
		}
	}
	if strings.Trim(want.ID, "A=") == "" {
		t.Errorf("topic id %q is zero", want.ID)
	}
	adm := b.admin(t)
	for topic, wantConfigs := range map[string]map[string]string{
		want.Topic: {
			"cleanup.policy": "delete", "retention.ms": "604800000", "message.timestamp.type": "LogAppendTime",
			"min.insync.replicas": "1", "max.message.bytes": "2113536",
		},
		want.DeadLetterTopic: {
			"cleanup.policy": "delete", "retention.ms": "2592000000", "message.timestamp.type": "LogAppendTime",
			"min.insync.replicas": "1", "max.message.bytes": "2129920",
		},
	} {
		described, err := adm.DescribeTopicConfigs(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := described.On(topic, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for _, c := range rc.Configs {
			if _, ok := wantConfigs[c.Key]; ok {
				got[c.Key] = c.MaybeValue()
			}
		}
		if diff := cmp.Diff(wantConfigs, got); diff != "" {
			t.Errorf("%s: %s", topic, diff)
		}
	}
	details, err := adm.ListTopics(t.Context(), want.DeadLetterTopic)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(details[want.DeadLetterTopic].Partitions); n != 1 {
		t.Errorf("dead-letter topic has %d partitions, want 1", n)
	}
}

// Without a number of partitions, a new topic gets the default and one that is
// there is taken as it is.
func testEnsurePartitions(t *testing.T, b *backend) {
	cfg := b.config()
	cfg.Partitions, cfg.PartitionsNew = 0, 3
	for _, find := range []func(context.Context, kafka.Config, *slog.Logger) (kafka.TopicInfo, error){kafka.EnsureTopics, kafka.FindTopics} {
		info, err := find(t.Context(), cfg, kafkatest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		if info.Partitions != 3 {
			t.Errorf("%d partitions, want 3", info.Partitions)
		}
		cfg.PartitionsNew = 5
	}
	if _, err := kafka.NewProducer(cfg, kafkatest.Log(t), prometheus.NewRegistry()); err == nil || !strings.HasPrefix(err.Error(), "partitions:") {
		t.Errorf("error %v of a producer that does not know the partitions", err)
	}
	if _, err := kafka.NewWatcher(cfg, kafkatest.Log(t)); err == nil || !strings.HasPrefix(err.Error(), "partitions:") {
		t.Errorf("error %v of a watcher that does not know the partitions", err)
	}
	cfg.Partitions = 5
	if _, err := kafka.FindTopics(t.Context(), cfg, kafkatest.Log(t)); !errors.Is(err, kafka.ErrTopicMismatch) {
		t.Errorf("error %v, want a mismatch", err)
	}
}

func testEnsureMismatch(t *testing.T, b *backend) {
	value := kadm.StringPtr
	good := map[string]*string{
		"message.timestamp.type": value("LogAppendTime"), "max.message.bytes": value("4000000"), "cleanup.policy": value("delete"),
	}
	for _, tt := range []struct {
		name       string
		partitions int32
		key, value string
		want       string
	}{
		{"partitions", 3, "", "", "has 3 partitions, expected 4"},
		{"timestamps", 4, "message.timestamp.type", "CreateTime", "message.timestamp.type=CreateTime"},
		{"clean-up", 4, "cleanup.policy", "compact", "cleanup.policy=compact"},
		{"record size", 4, "max.message.bytes", "1000", "max.message.bytes=1000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := b.config()
			configs := make(map[string]*string)
			for k, v := range good {
				configs[k] = v
			}
			if tt.key != "" {
				configs[tt.key] = value(tt.value)
			}
			if _, err := b.admin(t).CreateTopic(t.Context(), tt.partitions, 1, configs, cfg.EventsTopic()); err != nil {
				t.Fatal(err)
			}
			_, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
			if !errors.Is(err, kafka.ErrTopicMismatch) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want a mismatch that says %q", err, tt.want)
			}
		})
	}
}

func testOrder(t *testing.T, b *backend) {
	const n, aliases = 2000, 50
	cfg := b.topics(t)
	begin := time.Now().Add(-time.Minute)
	p := kafkatest.NewProducer(t, cfg)
	writes := kafkatest.Updates(0, n, aliases)
	for i := range writes {
		if w := &writes[i]; i%3 == 0 { // whose records are of another version
			w.Set, w.Metadata, w.MergeMetadata = w.Set.With(event.FieldMetadata), []byte(`{"a":null}`), true
		}
	}
	var receipts []event.Receipt
	for part := range slices.Chunk(writes, 300) {
		receipts = append(receipts, kafkatest.Produce(t, p, part)...)
	}
	records := kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), n)

	byReceipt := make(map[event.Receipt]*record.Record)
	last := make(map[string]float64)
	partition := make(map[string]int32)
	next := make(map[int32]int64)
	for i := range records {
		r := &records[i]
		byReceipt[r.Receipt()] = r
		if r.Offset != next[r.Partition] {
			t.Fatalf("partition %d: offset %d, want %d", r.Partition, r.Offset, next[r.Partition])
		}
		next[r.Partition]++
		if r.Generation != 1 {
			t.Fatalf("record has generation %d", r.Generation)
		}
		if r.AppendTime.Before(begin) || r.AppendTime.After(time.Now().Add(time.Minute)) {
			t.Fatalf("append time %s is not now", r.AppendTime)
		}
		var w event.Write
		if err := record.DecodeWrite(&w, r.Value); err != nil {
			t.Fatal(err)
		}
		if r.Version != record.FormatVersionOf(&w) {
			t.Fatalf("record has version %d, want %d", r.Version, record.FormatVersionOf(&w))
		}
		key := string(r.Key)
		if before, ok := last[key]; ok && w.Latency <= before {
			t.Fatalf("key %s: write %v came after %v", key, w.Latency, before)
		}
		last[key] = w.Latency
		if before, ok := partition[key]; ok && before != r.Partition {
			t.Fatalf("key %s is in partitions %d and %d", key, before, r.Partition)
		}
		partition[key] = r.Partition
	}
	for i, receipt := range receipts {
		r := byReceipt[receipt]
		if r == nil {
			t.Fatalf("no record at the receipt %s", receipt)
		}
		var w event.Write
		if err := record.DecodeWrite(&w, r.Value); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(writes[i], w); diff != "" {
			t.Fatalf("write %d: %s", i, diff)
		}
	}
	if len(next) != cfg.Partitions {
		t.Errorf("%d keys went to %d of %d partitions", aliases, len(next), cfg.Partitions)
	}
}

func testLarge(t *testing.T, b *backend) {
	cfg := b.topics(t)
	p := kafkatest.NewProducer(t, cfg)
	writes := []event.Write{kafkatest.Content("a", 10), kafkatest.Content("a", kafka.RecordBytesMax+1), kafkatest.Content("a", kafka.RecordBytesMax-100)}
	acks := p.Produce(t.Context(), writes)
	var tooLarge *event.Error
	if acks[0].Err != nil || acks[2].Err != nil || !errors.As(acks[1].Err, &tooLarge) || tooLarge.Code != event.CodeTooLarge {
		t.Fatalf("errors %v, %v, %v; want only the second to be too large", acks[0].Err, acks[1].Err, acks[2].Err)
	}
	records := kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), 2)
	for i, want := range []int{0, 2} {
		var w event.Write
		if err := record.DecodeWrite(&w, records[i].Value); err != nil {
			t.Fatal(err)
		}
		if len(w.Input.Data) != len(writes[want].Input.Data) {
			t.Errorf("record %d has %d bytes, want %d", i, len(w.Input.Data), len(writes[want].Input.Data))
		}
	}
}

func testBufferFull(t *testing.T, b *backend) {
	for _, tt := range []struct {
		name  string
		limit func(*kafka.Config)
		write event.Write
	}{
		{"records", func(c *kafka.Config) { c.Producer.BufferRecordsMax = 10 }, kafkatest.Content("a", 10)},
		{"bytes", func(c *kafka.Config) { c.Producer.BufferBytesMax = 3 << 20 }, kafkatest.Content("a", 400<<10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := b.topics(t)
			tt.limit(&cfg)
			p := kafkatest.NewProducer(t, cfg)
			kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4)) // connected
			six := slices.Repeat([]event.Write{tt.write}, 6)

			thaw := b.freeze(t)
			defer thaw()
			first := make(chan []event.Ack)
			go func() { first <- p.Produce(t.Context(), six) }()
			// The first call has its share of the buffer before the second may be tried.
			var acks []event.Ack
			kafkatest.Eventually(t, "a full buffer", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				start := time.Now()
				acks = p.Produce(ctx, six)
				if took := time.Since(start); took > time.Second {
					t.Fatalf("took %s", took)
				}
				return strings.Contains(acks[5].Err.Error(), "buffer is full")
			})
			for i, a := range acks {
				if !errors.Is(a.Err, event.ErrUnavailable) || !strings.Contains(a.Err.Error(), "buffer is full") {
					t.Fatalf("ack %d: %v", i, a.Err)
				}
			}
			thaw()
			for i, a := range <-first {
				if a.Err != nil && !strings.Contains(a.Err.Error(), "buffer is full") {
					t.Errorf("first call, ack %d: %v", i, a.Err)
				}
			}
			kafkatest.Eventually(t, "room in the buffer again", func() bool {
				return p.Produce(t.Context(), six)[5].Err == nil
			})
		})
	}
}

func testFrozen(t *testing.T, b *backend) {
	cfg := b.topics(t)
	cfg.Producer.AckTimeout = time.Second
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4))
	thaw := b.freeze(t)
	defer thaw()

	for _, tt := range []struct {
		name  string
		limit time.Duration
		want  string
	}{
		{"its own deadline", time.Minute, "not acknowledged within 1s"},
		{"the caller's", 200 * time.Millisecond, "deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
			defer cancel()
			start := time.Now()
			acks := p.Produce(ctx, kafkatest.Updates(0, 100, 10))
			if took := time.Since(start); took > min(tt.limit, cfg.Producer.AckTimeout)+500*time.Millisecond {
				t.Errorf("took %s", took)
			}
			for i, a := range acks {
				if !errors.Is(a.Err, event.ErrUnavailable) || a.Receipt != (event.Receipt{}) {
					t.Fatalf("ack %d: %+v", i, a)
				}
			}
			if err := acks[99].Err; !strings.Contains(err.Error(), tt.want) && !strings.Contains(err.Error(), "timed out") {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
	thaw()
	kafkatest.Eventually(t, "writes again", func() bool { return p.Produce(t.Context(), kafkatest.Updates(0, 1, 1))[0].Err == nil })
}

func testKilled(t *testing.T, b *backend) {
	cfg := b.topics(t)
	cfg.Producer.AckTimeout = time.Second
	p := kafkatest.NewProducer(t, cfg)
	before := kafkatest.Produce(t, p, kafkatest.Updates(0, 100, 10))
	restart := b.kill(t)
	start := time.Now()
	acks := p.Produce(t.Context(), kafkatest.Updates(100, 100, 10))
	if took := time.Since(start); took > cfg.Producer.AckTimeout+500*time.Millisecond {
		t.Errorf("took %s", took)
	}
	for i, a := range acks {
		if !errors.Is(a.Err, event.ErrUnavailable) {
			t.Fatalf("ack %d: %+v", i, a)
		}
	}
	if err := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return p.Ready(ctx)
	}(); err == nil {
		t.Error("ready without a broker")
	}
	restart()
	kafkatest.Eventually(t, "writes again", func() bool { return p.Produce(t.Context(), kafkatest.Updates(200, 1, 1))[0].Err == nil })

	// Whatever became of the others, all acknowledged are there.
	c := kafkatest.NewConsumer(t, cfg, nil)
	seen := make(map[event.Receipt]bool)
	kafkatest.Eventually(t, "all acknowledged records", func() bool {
		chunks, err := c.Poll(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range chunks {
			for i := range chunk.Records {
				seen[chunk.Records[i].Receipt()] = true
			}
		}
		return !slices.ContainsFunc(before, func(r event.Receipt) bool { return !seen[r] })
	})
}

func testReady(t *testing.T, b *backend) {
	cfg := b.config()
	p := kafkatest.NewProducer(t, cfg)
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready without a topic")
	}
	info, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	cfg.TopicID = info.ID
	p = kafkatest.NewProducer(t, cfg)
	if err := p.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	cfg.Partitions = 5
	if err := kafkatest.NewProducer(t, cfg).Ready(t.Context()); !errors.Is(err, kafka.ErrTopicMismatch) {
		t.Errorf("error %v, want a mismatch of partitions", err)
	}
	cfg.Partitions = 0
	if _, err := b.admin(t).DeleteTopic(t.Context(), info.Topic); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, "another topic of the name", func() bool {
		now, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
		return err == nil && now.ID != info.ID
	})
	if err := p.Ready(t.Context()); !errors.Is(err, kafka.ErrTopicMismatch) {
		t.Errorf("error %v, want a mismatch of ids", err)
	}
}

func testResume(t *testing.T, b *backend) {
	cfg := b.topics(t)
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 100, 20))
	first := kafkatest.NewConsumer(t, cfg, nil)
	committed := kafkatest.Offsets(kafkatest.Collect(t, first, 100))
	if err := first.Commit(t.Context(), committed); err != nil {
		t.Fatal(err)
	}
	more := kafkatest.Produce(t, p, kafkatest.Updates(100, 50, 20))
	kafkatest.Collect(t, first, 50) // read, and not committed
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	second := kafkatest.NewConsumer(t, cfg, nil)
	records := kafkatest.Collect(t, second, 50)
	for i := range records {
		if !slices.Contains(more, records[i].Receipt()) {
			t.Errorf("record %s was committed before", records[i].Receipt())
		}
	}
	// What another assignment has passed already does not go back.
	if err := second.Commit(t.Context(), map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(committed, kafkatest.GroupOffsets(t, cfg)); diff != "" {
		t.Errorf("committed offsets: %s", diff)
	}
}

func testPause(t *testing.T, b *backend) {
	cfg := b.topics(t)
	p := kafkatest.NewProducer(t, cfg)
	c := kafkatest.NewConsumer(t, cfg, nil)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 20, 20))
	next := kafkatest.Offsets(kafkatest.Collect(t, c, 20))
	if err := c.Commit(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	c.Pause()
	kafkatest.Produce(t, p, kafkatest.Updates(20, 30, 20))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if chunks, err := c.Poll(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("paused poll: %d chunks, error %v", len(chunks), err)
	}
	lag, err := c.Lag(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, n := range lag {
		sum += n
	}
	if sum != 30 || len(lag) != cfg.Partitions {
		t.Errorf("lag %v, want 30 in all of 4 partitions", lag)
	}
	c.Resume()
	kafkatest.Collect(t, c, 30)
}

func testRebalance(t *testing.T, b *backend) {
	cfg := b.topics(t)
	p := kafkatest.NewProducer(t, cfg)
	const n = 400

	// member applies what it polls at once, and commits when asked to give up.
	type member struct {
		c       *kafka.Consumer
		mu      sync.Mutex
		next    map[int32]int64
		epochs  map[int32]int64
		revoked []int32
		count   int
	}
	var mu sync.Mutex
	read := make(map[event.Receipt]int)
	var errs []error
	run := func(ctx context.Context) *member {
		m := &member{next: make(map[int32]int64), epochs: make(map[int32]int64)}
		ready := make(chan struct{})
		m.c = kafkatest.NewConsumer(t, cfg, func(ctx context.Context, partitions []int32, lost bool) {
			<-ready
			m.mu.Lock()
			defer m.mu.Unlock()
			if lost {
				errs = append(errs, fmt.Errorf("partitions %v lost", partitions))
			}
			if _, ok := ctx.Deadline(); !ok {
				errs = append(errs, errors.New("no deadline"))
			}
			m.revoked = append(m.revoked, partitions...)
			if err := m.c.Commit(ctx, m.next); err != nil {
				errs = append(errs, err)
			}
			for _, p := range partitions {
				delete(m.next, p)
			}
		})
		close(ready)
		go func() {
			for {
				chunks, err := m.c.Poll(ctx, 20)
				if err != nil {
					return
				}
				m.mu.Lock()
				for _, chunk := range chunks {
					if chunk.Epoch < m.epochs[chunk.Partition] {
						errs = append(errs, fmt.Errorf("partition %d: epoch %d after %d", chunk.Partition, chunk.Epoch, m.epochs[chunk.Partition]))
					}
					m.epochs[chunk.Partition] = chunk.Epoch
					m.count += len(chunk.Records)
					mu.Lock()
					for i := range chunk.Records {
						read[chunk.Records[i].Receipt()]++
						m.next[chunk.Partition] = chunk.Records[i].Offset + 1
					}
					mu.Unlock()
				}
				m.mu.Unlock()
			}
		}()
		return m
	}
	total := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(read)
	}

	a := run(t.Context())
	kafkatest.Produce(t, p, kafkatest.Updates(0, n, 100))
	kafkatest.Eventually(t, "the first member reads all", func() bool { return total() == n })
	epochs := func(m *member) map[int32]int64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		got := make(map[int32]int64)
		for p, e := range m.epochs {
			got[p] = e
		}
		return got
	}
	first := epochs(a)

	ctx, stop := context.WithCancel(t.Context())
	second := run(ctx)
	done := n
	kafkatest.Eventually(t, "the second member reads some", func() bool {
		kafkatest.Produce(t, p, kafkatest.Updates(done, 20, 100))
		done += 20
		second.mu.Lock()
		defer second.mu.Unlock()
		return second.count > 0
	})
	kafkatest.Eventually(t, "both read all", func() bool { return total() == done })
	a.mu.Lock()
	if len(a.revoked) != 2 {
		t.Errorf("the first member gave up partitions %v, want two of four", a.revoked)
	}
	moved := slices.Clone(a.revoked)
	a.mu.Unlock()
	if moved := slices.Contains(moved, 0); a.c.Leads() == moved || second.c.Leads() != moved {
		t.Errorf("of two members the first leads: %v, the second: %v", a.c.Leads(), second.c.Leads())
	}

	// The second leaves; its partitions come back under new epochs.
	stop()
	if err := second.c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	kafkatest.Eventually(t, "the first member has them all again", func() bool {
		kafkatest.Produce(t, p, kafkatest.Updates(done, 20, 100))
		done += 20
		now := epochs(a)
		for p, e := range now {
			if slices.Contains(moved, p) != (e > first[p]) {
				return false
			}
		}
		return true
	})
	kafkatest.Eventually(t, "all is read", func() bool { return total() == done })
	mu.Lock()
	defer mu.Unlock()
	for receipt, times := range read {
		if times != 1 {
			t.Errorf("record %s was read %d times", receipt, times)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	second.mu.Lock()
	defer second.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func testFenced(t *testing.T, b *backend) {
	t.Run("back in the group", func(t *testing.T) {
		cfg := b.topics(t)
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 40, 40))
		next := kafkatest.Offsets(kafkatest.Collect(t, c, 40))
		expel(t, b, cfg.Group)
		if err := c.Commit(t.Context(), next); !errors.Is(err, kafka.ErrFenced) {
			t.Fatalf("error %v, want fenced", err)
		}
		if got := kafkatest.GroupOffsets(t, cfg); len(got) != 0 {
			t.Errorf("offsets %v are committed", got)
		}
		// Without another Poll: a caller may do nothing else than try again.
		kafkatest.Eventually(t, "the commit", func() bool {
			err := c.Commit(t.Context(), next)
			if err != nil && !errors.Is(err, kafka.ErrFenced) {
				t.Fatal(err)
			}
			return err == nil
		})
		if diff := cmp.Diff(next, kafkatest.GroupOffsets(t, cfg)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("lost partitions", func(t *testing.T) {
		cfg := b.topics(t)
		type loss struct {
			partitions []int32
			err        error
		}
		losses := make(chan loss, 1)
		var c *kafka.Consumer
		var next map[int32]int64
		ready := make(chan struct{})
		c = kafkatest.NewConsumer(t, cfg, func(ctx context.Context, partitions []int32, lost bool) {
			if lost {
				<-ready
				losses <- loss{partitions, c.Commit(ctx, next)}
			}
		})
		kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 40, 40))
		next = kafkatest.Offsets(kafkatest.Collect(t, c, 40))
		close(ready)
		expel(t, b, cfg.Group)
		select {
		case got := <-losses:
			if diff := cmp.Diff([]int32{0, 1, 2, 3}, got.partitions); diff != "" {
				t.Errorf("lost partitions: %s", diff)
			}
			if got.err != nil {
				t.Errorf("commit of lost partitions: %v", got.err)
			}
		case <-time.After(kafkatest.Timeout):
			t.Fatal("partitions are not reported lost")
		}
		// They come back, and what was not committed is read again.
		again := kafkatest.Collect(t, c, 40)
		if got := kafkatest.GroupOffsets(t, cfg); len(got) != 0 {
			t.Errorf("offsets %v of lost partitions are committed", got)
		}
		if err := c.Commit(t.Context(), kafkatest.Offsets(again)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(next, kafkatest.GroupOffsets(t, cfg)); diff != "" {
			t.Error(diff)
		}
	})
}

// expel makes the group's members leave it, without their knowing.
func expel(t *testing.T, b *backend, group string) {
	t.Helper()
	described, err := b.admin(t).DescribeGroups(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	for _, m := range described[group].Members {
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = m.MemberID
		req.Members = append(req.Members, member)
	}
	if len(req.Members) == 0 {
		t.Fatal("group has no members")
	}
	resp, err := req.RequestWith(t.Context(), cl)
	if err != nil || resp.ErrorCode != 0 {
		t.Fatalf("leave group: code %d, error %v", resp.ErrorCode, err)
	}
}

func testDataLoss(t *testing.T, b *backend) {
	poll := func(t *testing.T, c *kafka.Consumer) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), kafkatest.Timeout)
		defer cancel()
		for {
			if _, err := c.Poll(ctx, 100); err != nil {
				if _, again := c.Poll(ctx, 100); !errors.Is(again, err) {
					t.Errorf("error %v became %v", err, again)
				}
				return err
			}
		}
	}
	check := func(t *testing.T, err error, want ...string) {
		t.Helper()
		if !errors.Is(err, kafka.ErrDataLoss) {
			t.Fatalf("error %v, want data loss", err)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("error %q does not say %q", err, w)
			}
		}
	}
	truncate := func(t *testing.T, cfg kafka.Config, offset int64) {
		t.Helper()
		var os kadm.Offsets
		os.AddOffset(cfg.EventsTopic(), 0, offset, -1)
		resp, err := b.admin(t).DeleteRecords(t.Context(), os)
		if err == nil {
			err = resp.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	single := func(t *testing.T) kafka.Config {
		t.Helper()
		cfg := b.config()
		cfg.Partitions = 1
		if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	// commit reads n records and leaves the group at the offset.
	commit := func(t *testing.T, cfg kafka.Config, n int, offset int64) {
		t.Helper()
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Collect(t, c, n)
		if err := c.Commit(t.Context(), map[int32]int64{0: offset}); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("a log that ends before the commit", func(t *testing.T) {
		cfg := single(t)
		p := kafkatest.NewProducer(t, cfg)
		kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 1))
		commit(t, cfg, 10, 10)
		adm := b.admin(t)
		if _, err := adm.DeleteTopic(t.Context(), cfg.EventsTopic()); err != nil {
			t.Fatal(err)
		}
		// The deletion takes a while to reach all of the broker, and may or may
		// not take the group's commits along, which are put back here.
		kafkatest.Eventually(t, "the topic anew", func() bool {
			_, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t))
			return err == nil
		})
		var os kadm.Offsets
		os.AddOffset(cfg.EventsTopic(), 0, 10, -1)
		kafkatest.Eventually(t, "the commit", func() bool {
			resp, err := adm.CommitOffsets(t.Context(), cfg.Group, os)
			return err == nil && resp.Error() == nil
		})
		check(t, kafka.CheckCommits(t.Context(), cfg, kafkatest.Log(t)), "partition 0", "at offset 10", "ends at 0")
		check(t, poll(t, kafkatest.NewConsumer(t, cfg, nil)), "partition 0", "at offset 10", "ends at 0")
	})
	t.Run("a log that begins after the commit", func(t *testing.T) {
		cfg := single(t)
		kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 10, 1))
		commit(t, cfg, 10, 5)
		truncate(t, cfg, 7)
		check(t, poll(t, kafkatest.NewConsumer(t, cfg, nil)), "partition 0", "at offset 5", "begins at 7")
	})
	t.Run("a group without commits on a log that does not begin at 0", func(t *testing.T) {
		cfg := single(t)
		kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 10, 1))
		truncate(t, cfg, 10)
		check(t, poll(t, kafkatest.NewConsumer(t, cfg, nil)), "partition 0", "no commit", "begins at offset 10")
	})
	t.Run("while reading", func(t *testing.T) {
		cfg := single(t)
		p := kafkatest.NewProducer(t, cfg)
		kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 1))
		c := kafkatest.NewConsumer(t, cfg, nil)
		kafkatest.Collect(t, c, 10)
		c.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := c.Poll(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v, want nothing to read", err)
		}
		for i := range 10 { // batches of their own, since a log may begin only between batches
			kafkatest.Produce(t, p, kafkatest.Updates(10+i, 1, 1))
		}
		truncate(t, cfg, 15)
		c.Resume()
		check(t, poll(t, c), "partition 0")
	})
	t.Run("a log cut back to the commit is none", func(t *testing.T) {
		cfg := single(t)
		p := kafkatest.NewProducer(t, cfg)
		kafkatest.Produce(t, p, kafkatest.Updates(0, 10, 1))
		commit(t, cfg, 10, 10)
		truncate(t, cfg, 10)
		if err := kafka.CheckCommits(t.Context(), cfg, kafkatest.Log(t)); err != nil {
			t.Error(err)
		}
		kafkatest.Produce(t, p, kafkatest.Updates(10, 5, 1))
		kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), 5)
	})
}

func testWait(t *testing.T, b *backend) {
	cfg := b.topics(t)
	cfg.Watcher.RefusedMax = 2
	p := kafkatest.NewProducer(t, cfg)
	c := kafkatest.NewConsumer(t, cfg, nil)
	letters := newDeadLetters(t, cfg)
	// A refusal of before the watcher's time does not stop it.
	if err := letters.Send(t.Context(), []record.DeadLetter{{Record: record.Record{Generation: 1}, Reason: event.CodeBadRecord}}); err != nil {
		t.Fatal(err)
	}
	w, stop := startWatcher(t, cfg)
	mark := w.Mark()

	receipts := kafkatest.Produce(t, p, kafkatest.Updates(0, 8, 8))
	records := kafkatest.Collect(t, c, 8)
	wait := func(limit time.Duration, receipts ...event.Receipt) ([]*event.Error, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		refused, known, err := w.Outcomes(ctx, mark, receipts)
		if err == nil && !known {
			t.Error("the watcher does not know of all refusals")
		}
		if err2 := w.Wait(ctx, receipts); (err == nil) != (err2 == nil) {
			t.Errorf("Outcomes says %v, Wait %v", err, err2)
		}
		return refused, err
	}

	if _, err := wait(200*time.Millisecond, receipts...); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("not applied: error %v, want that time is over", err)
	}
	type answer struct {
		refused []*event.Error
		err     error
	}
	waiting := make(chan answer)
	go func() {
		refused, err := wait(kafkatest.Timeout, receipts...)
		waiting <- answer{refused, err}
	}()
	next := kafkatest.Offsets(records)
	// One partition after the other: only the last brings the answer.
	for p, offset := range next {
		select {
		case got := <-waiting:
			t.Fatalf("answered before all was committed: %+v", got)
		default:
		}
		if p == records[0].Partition {
			letter := record.DeadLetter{Record: records[0], Reason: event.CodeUnknownEvent, Detail: "names no event"}
			if err := letters.Send(t.Context(), []record.DeadLetter{letter}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Commit(t.Context(), map[int32]int64{p: offset}); err != nil {
			t.Fatal(err)
		}
	}
	got := <-waiting
	if got.err != nil {
		t.Fatal(got.err)
	}
	want := make([]*event.Error, len(receipts))
	want[slices.Index(receipts, records[0].Receipt())] = &event.Error{Code: event.CodeUnknownEvent, Message: "names no event"}
	if diff := cmp.Diff(want, got.refused); diff != "" {
		t.Error(diff)
	}
	// Asked again, and of one alone.
	refused, err := wait(kafkatest.Timeout, records[0].Receipt())
	if err != nil || len(refused) != 1 || refused[0] == nil || refused[0].Code != event.CodeUnknownEvent {
		t.Errorf("refused %v, error %v", refused, err)
	}

	for _, tt := range []struct {
		name    string
		receipt event.Receipt
		want    event.Code
	}{
		{"no generation", event.Receipt{Generation: 0, Partition: 0, Offset: 0}, event.CodeInvalidValue},
		{"a generation to come", event.Receipt{Generation: 2, Partition: 0, Offset: 0}, event.CodeInvalidValue},
		{"no such partition", event.Receipt{Generation: 1, Partition: 4, Offset: 0}, event.CodeInvalidValue},
		{"a negative partition", event.Receipt{Generation: 1, Partition: -1, Offset: 0}, event.CodeInvalidValue},
	} {
		_, err := wait(kafkatest.Timeout, receipts[0], tt.receipt)
		var bad *event.Error
		if !errors.As(err, &bad) || bad.Code != tt.want || bad.Field != "receipt" {
			t.Errorf("%s: error %v", tt.name, err)
		}
	}

	stop()

	// Of an older generation everything was applied before this one began.
	cfg.Generation = 2
	later, err := kafka.NewWatcher(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	old := []event.Receipt{{Generation: 1, Partition: 99, Offset: 5}}
	if err := later.Wait(t.Context(), old); err != nil {
		t.Error(err)
	}
	if refused, known, err := later.Outcomes(t.Context(), 0, old); err != nil || !known || len(refused) != 1 || refused[0] != nil {
		t.Errorf("refused %v, known %v, error %v; want applied", refused, known, err)
	}
}

// startWatcher runs a watcher until stop, or the test's end.
func startWatcher(t *testing.T, cfg kafka.Config) (w *kafka.Watcher, stop func()) {
	t.Helper()
	w, err := kafka.NewWatcher(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	return w, runWatcher(t, w)
}

func runWatcher(t *testing.T, w *kafka.Watcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// testRefusals refuses writes when the watcher does not see it at once: it must
// find out, or say that it does not know.
func testRefusals(t *testing.T, b *backend) {
	type outcome struct {
		refused []event.Error
		known   bool
	}
	// setup makes six writes, of which first is the first and the others what is
	// refused beside it.
	type world struct {
		cfg     kafka.Config
		watcher *kafka.Watcher
		mark    int64
		first   event.Receipt
		refuse  func(indices ...int)
		commit  func()
	}
	setup := func(t *testing.T, running bool) *world {
		t.Helper()
		w := &world{cfg: b.topics(t)}
		w.cfg.Watcher.RefusedMax = 2
		letters := newDeadLetters(t, w.cfg)
		p, c := kafkatest.NewProducer(t, w.cfg), kafkatest.NewConsumer(t, w.cfg, nil)
		var err error
		if w.watcher, err = kafka.NewWatcher(w.cfg, kafkatest.Log(t)); err != nil {
			t.Fatal(err)
		}
		if running {
			runWatcher(t, w.watcher)
			// It has begun when it has answered once.
			if err := c.Commit(t.Context(), kafkatest.Offsets(kafkatest.Collect(t, c, len(kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4)))))); err != nil {
				t.Fatal(err)
			}
			if err := w.watcher.Wait(t.Context(), []event.Receipt{{Generation: 1}}); err != nil {
				t.Fatal(err)
			}
		}
		w.mark = w.watcher.Mark()
		w.first = kafkatest.Produce(t, p, kafkatest.Updates(0, 1, 1))[0]
		kafkatest.Produce(t, p, kafkatest.Updates(1, 5, 5))
		records := kafkatest.Collect(t, c, 6)
		i := slices.IndexFunc(records, func(r record.Record) bool { return r.Receipt() == w.first })
		records[0], records[i] = records[i], records[0]
		w.refuse = func(indices ...int) {
			t.Helper()
			for _, i := range indices {
				letter := record.DeadLetter{Record: records[i], Reason: event.CodeUnknownEvent, Detail: "names no event"}
				if err := letters.Send(t.Context(), []record.DeadLetter{letter}); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.commit = func() {
			t.Helper()
			if err := c.Commit(t.Context(), kafkatest.Offsets(records)); err != nil {
				t.Fatal(err)
			}
		}
		return w
	}
	ask := func(t *testing.T, w *world) (o outcome) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), kafkatest.Timeout)
		defer cancel()
		refused, known, err := w.watcher.Outcomes(ctx, w.mark, []event.Receipt{w.first})
		if err != nil || len(refused) != 1 {
			t.Errorf("refused %v, error %v", refused, err)
		}
		o.known = known
		for _, r := range refused {
			if r != nil {
				o.refused = append(o.refused, *r)
			}
		}
		return o
	}
	refused := outcome{refused: []event.Error{{Code: event.CodeUnknownEvent, Message: "names no event"}}, known: true}
	applied, unknown := outcome{known: true}, outcome{}
	check := func(t *testing.T, got, want outcome) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(outcome{})); diff != "" {
			t.Error(diff)
		}
	}

	t.Run("before it has begun", func(t *testing.T) {
		w := setup(t, false)
		w.refuse(0, 1)
		w.commit()
		runWatcher(t, w.watcher)
		check(t, ask(t, w), refused)
	})
	t.Run("before it has begun, and too many since", func(t *testing.T) {
		w := setup(t, false)
		w.refuse(0, 1, 2, 3)
		w.commit()
		runWatcher(t, w.watcher)
		check(t, ask(t, w), unknown)
	})
	t.Run("of before it has begun, asked for before", func(t *testing.T) {
		w := setup(t, false)
		w.refuse(0, 1, 2, 3)
		w.commit()
		got := make(chan outcome)
		go func() { got <- ask(t, w) }()
		kafkatest.Eventually(t, "somebody waits", func() bool { return w.watcher.Waiting() == 1 })
		runWatcher(t, w.watcher)
		check(t, <-got, unknown)
	})
	t.Run("and forgotten before it is asked", func(t *testing.T) {
		w := setup(t, true)
		w.refuse(0, 1, 2, 3)
		kafkatest.Eventually(t, "the refusals are known", func() bool { return w.watcher.Mark() == 4 })
		w.commit()
		check(t, ask(t, w), unknown)
	})
	t.Run("and not forgotten yet", func(t *testing.T) {
		w := setup(t, true)
		w.refuse(0, 1)
		w.commit()
		check(t, ask(t, w), refused)
	})
	t.Run("with many others while it is asked", func(t *testing.T) {
		w := setup(t, true)
		got := make(chan outcome)
		go func() { got <- ask(t, w) }()
		kafkatest.Eventually(t, "somebody waits", func() bool { return w.watcher.Waiting() == 1 })
		w.refuse(1, 2, 0, 3, 4, 5)
		w.commit()
		check(t, <-got, refused)
	})
	t.Run("others, and forgotten, before it was made", func(t *testing.T) {
		w := setup(t, true)
		w.refuse(1, 2, 3, 4)
		kafkatest.Eventually(t, "the refusals are known", func() bool { return w.watcher.Mark() == 4 })
		w.mark = w.watcher.Mark()
		w.commit()
		check(t, ask(t, w), applied)
	})
}

func newDeadLetters(t *testing.T, cfg kafka.Config) *kafka.DeadLetters {
	t.Helper()
	d, err := kafka.NewDeadLetters(cfg, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func testDeadLetters(t *testing.T, b *backend) {
	cfg := b.topics(t)
	d := newDeadLetters(t, cfg)
	if got, err := d.List(t.Context(), 0, 10); err != nil || len(got) != 0 {
		t.Fatalf("letters %v, error %v; want none", got, err)
	}
	fresh := event.Write{
		Op: event.OpCreate, ID: event.NewID(time.Now().UnixMicro(), "c"), Fresh: true, ConversationID: "c",
		Set: event.Fields(0).With(event.FieldEventName), EventName: "event_a",
	}
	bad := kafkatest.Updates(0, 1, 1)[0]
	bad.Fresh = true
	letters := []record.DeadLetter{
		{
			Record: record.Record{Generation: 2, Partition: 3, Offset: 1 << 40, Key: []byte(fresh.Ref().String()), Value: record.AppendWrite(nil, &fresh), Version: 1},
			Reason: event.CodeRejectedByStore, Detail: "the database refused the row",
		},
		{
			Record: record.Record{Generation: 1, Partition: 0, Offset: 0, Key: []byte("k"), Value: []byte("\xff no write"), Version: 1},
			Reason: event.CodeBadRecord, Detail: "",
		},
		{
			Record: record.Record{Generation: 2, Partition: 1, Offset: 7, Key: []byte("no header"), Value: []byte("v")},
			Reason: event.CodeBadRecord, Detail: "has no version header",
		},
		{
			Record: record.Record{Generation: 1, Partition: 1, Offset: 8, Key: []byte("later"), Value: []byte("v"), Version: 12},
			Reason: event.CodeUnsupportedVersion, Detail: "is of version 12",
		},
		{
			Record: record.Record{Generation: 1, Partition: 1, Offset: 9, Key: []byte("large"), Value: make([]byte, kafka.RecordBytesMax), Version: 1},
			Reason: event.CodeBadRecord, Detail: strings.Repeat("d", kafka.DetailBytesMax),
		},
		{
			// It can be decoded, and would be valid without its mark.
			Record: record.Record{Generation: 1, Partition: 2, Offset: 3, Key: []byte(bad.Ref().String()), Value: record.AppendWrite(nil, &bad), Version: 1},
			Reason: event.CodeBadRecord, Detail: "is fresh and no create",
		},
	}
	if err := d.Send(t.Context(), letters); err != nil {
		t.Fatal(err)
	}
	stored, err := d.List(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []record.DeadLetter
	for i, s := range stored {
		if s.Seq != int64(i) || time.Since(s.At).Abs() > time.Minute {
			t.Errorf("letter %d has place %d and time %s", i, s.Seq, s.At)
		}
		got = append(got, s.Letter)
	}
	if diff := cmp.Diff(letters, got, cmp.Comparer(bytes.Equal)); diff != "" {
		t.Fatal(diff)
	}
	if part, err := d.List(t.Context(), 1, 2); err != nil || len(part) != 2 || part[0].Seq != 1 || part[1].Seq != 2 {
		t.Errorf("two from the second: %v, error %v", part, err)
	}
	stop := errors.New("enough")
	if err := d.Read(t.Context(), 0, func(kafka.StoredLetter) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v, want the callback's", err)
	}

	for i, a := range kafkatest.NewProducer(t, cfg).Replay(t.Context(), got) {
		if a.Err != nil {
			t.Fatalf("replay of letter %d: %v", i, a.Err)
		}
	}
	fresh.Fresh = false
	replayed := make(map[string]record.Record)
	for _, r := range kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), len(letters)) {
		replayed[string(r.Key)] = r
	}
	for i := range letters {
		want := &letters[i].Record
		r, ok := replayed[string(want.Key)]
		if !ok {
			t.Fatalf("letter %d was not replayed", i)
		}
		value := want.Value
		if i == 0 {
			value = record.AppendWrite(nil, &fresh)
		}
		if r.Version != want.Version || string(r.Value) != string(value) {
			t.Errorf("letter %d: version %d and %d bytes, want %d and %d", i, r.Version, len(r.Value), want.Version, len(value))
		}
	}
}
