package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/broker"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

func startBrokerFsync(t *testing.T, dir string, fsync func(*os.File) error) *broker.Broker {
	t.Helper()
	b, err := broker.NewFsync(broker.Config{Dir: dir}, kafkatest.Log(t), fsync)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Nobody hears of a record before it is synced: neither who wrote it nor who
// waits to read it.
func TestSyncBeforeAnswer(t *testing.T) {
	t.Parallel()
	var disk sync.RWMutex // held: syncs do not return
	b := startBrokerFsync(t, t.TempDir(), func(*os.File) error {
		disk.RLock()
		defer disk.RUnlock()
		return nil
	})
	t.Cleanup(func() { _ = b.Close() })
	cfg := kafkatest.NewTopics(t, b.Addr())
	p, c := kafkatest.NewProducer(t, cfg), kafkatest.NewConsumer(t, cfg, nil)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4))
	kafkatest.Collect(t, c, 4)

	disk.Lock()
	heard := make(chan string, 2)
	go func() {
		if a := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1)); a[0].Err != nil {
			t.Error(a[0].Err)
		}
		heard <- "produce"
	}()
	go func() {
		kafkatest.Collect(t, c, 1)
		heard <- "poll"
	}()
	waiting := 2
	select {
	case who := <-heard:
		t.Errorf("%s returned before the sync", who)
		waiting--
	case <-time.After(300 * time.Millisecond):
	}
	disk.Unlock()
	for range waiting {
		<-heard
	}
}

// After a failed sync the broker acknowledges nothing, even if the next would
// succeed, and Run says why.
func TestSyncFailure(t *testing.T) {
	t.Parallel()
	errDisk := errors.New("the disk is broken")
	var broken atomic.Bool
	b := startBrokerFsync(t, t.TempDir(), func(*os.File) error {
		if broken.Load() {
			return errDisk
		}
		return nil
	})
	ran := make(chan error, 1)
	go func() { ran <- b.Run(t.Context()) }()
	cfg := kafkatest.NewConfig(b.Addr())
	cfg.Producer.AckTimeout = time.Second
	if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	p := kafkatest.NewProducer(t, cfg)
	kafkatest.Produce(t, p, kafkatest.Updates(0, 4, 4))

	broken.Store(true)
	refused := func() {
		t.Helper()
		if a := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1)); !errors.Is(a[0].Err, event.ErrUnavailable) {
			t.Errorf("ack %+v, want %v", a[0], event.ErrUnavailable)
		}
	}
	refused()
	if err := <-ran; !errors.Is(err, errDisk) {
		t.Errorf("Run: error %v, want %v", err, errDisk)
	}
	broken.Store(false)
	refused()
	if err := b.Close(); !errors.Is(err, errDisk) {
		t.Errorf("Close: error %v, want %v", err, errDisk)
	}
}

// A write that fails, as on a full disk, stops the broker too: its own way is to
// take the client's second try for a duplicate, and to acknowledge it.
func TestWriteFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, err := broker.New(broker.Config{Dir: dir}, kafkatest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- b.Run(t.Context()) }()
	cfg := kafkatest.NewConfig(b.Addr())
	cfg.Partitions, cfg.Producer.AckTimeout = 1, time.Second
	if _, err := kafka.EnsureTopics(t.Context(), cfg, kafkatest.Log(t)); err != nil {
		t.Fatal(err)
	}
	// Where the partition's directory should be is a file.
	partition := filepath.Join(dir, "data", "partitions", cfg.EventsTopic()+"-0")
	if err := os.MkdirAll(filepath.Dir(partition), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(partition, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := kafkatest.NewProducer(t, cfg)
	for range 2 {
		if a := p.Produce(t.Context(), kafkatest.Updates(0, 1, 1)); !errors.Is(a[0].Err, event.ErrUnavailable) {
			t.Errorf("ack %+v, want %v", a[0], event.ErrUnavailable)
		}
	}
	if err := <-ran; err == nil || !strings.Contains(err.Error(), "persist batch") {
		t.Errorf("Run: error %v, want that a batch could not be written", err)
	}
	_ = b.Close() // returns that error too
}

// What a power failure leaves has every record that was acknowledged or read
// before it.
func TestPowerFailure(t *testing.T) {
	t.Parallel()
	disk := &volatileDisk{sizes: make(map[string]int64), entries: make(map[string][]string)}
	dir := t.TempDir()
	b := startBrokerFsync(t, dir, disk.fsync)
	t.Cleanup(func() { _ = b.Close() })
	cfg := kafkatest.NewTopics(t, b.Addr())
	// Many segments are begun and ended meanwhile.
	if _, err := kafkatest.Admin(t, b.Addr()).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{
		{Op: kadm.SetConfig, Name: "segment.bytes", Value: new("32768")},
	}, cfg.EventsTopic()); err != nil {
		t.Fatal(err)
	}

	known := &knownRecords{values: make(map[event.Receipt]float64)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	c := kafkatest.NewConsumer(t, cfg, nil)
	// Producers of their own, or their requests would not overlap.
	cfg.Producer.Linger = -1
	for i := range 8 {
		p := kafkatest.NewProducer(t, cfg)
		load.Go(func() { known.produce(ctx, p, i*1_000_000) })
	}
	load.Go(func() { known.consume(ctx, c) })

	type remains struct {
		dir   string
		known map[event.Receipt]float64
	}
	var cuts []remains
	for range 5 {
		before := known.len()
		kafkatest.Eventually(t, "more records", func() bool { return known.len() > before+300 })
		cut := remains{dir: t.TempDir()}
		disk.mu.Lock() // no sync succeeds any more; acknowledgements of earlier ones arrive
		<-time.After(5 * time.Millisecond)
		cut.known = known.all()
		err := disk.copyDir(dir, cut.dir)
		disk.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		cuts = append(cuts, cut)
	}
	stop()
	load.Wait()

	for i, cut := range cuts {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			at := kafkatest.StartEmbedded(t, broker.Config{Dir: cut.dir}).Addr()
			cfg := cfg
			cfg.Brokers, cfg.Group = []string{at}, cfg.Group+".after"
			// What is written now follows what is left, and is read with it.
			for _, r := range kafkatest.Produce(t, kafkatest.NewProducer(t, cfg), kafkatest.Updates(0, 100, 100)) {
				if _, again := cut.known[r]; again {
					t.Errorf("%s is given to another record", r)
				}
			}
			ends, err := kafkatest.Admin(t, at).ListEndOffsets(t.Context(), cfg.EventsTopic())
			if err != nil {
				t.Fatal(err)
			}
			total := 0
			ends.Each(func(o kadm.ListedOffset) { total += int(o.Offset) })
			got := make(map[event.Receipt]float64)
			for _, r := range kafkatest.Collect(t, kafkatest.NewConsumer(t, cfg, nil), total) {
				if _, want := cut.known[r.Receipt()]; want {
					got[r.Receipt()] = latency(t, &r)
				}
			}
			if diff := cmp.Diff(cut.known, got); diff != "" {
				t.Errorf("records of %d after a power failure: %s", len(cut.known), diff)
			}
		})
	}
}

// latency is by what updates tells its records apart.
func latency(t *testing.T, r *record.Record) float64 {
	t.Helper()
	var w event.Write
	if err := record.DecodeWrite(&w, r.Value); err != nil {
		t.Fatal(err)
	}
	return w.Latency
}

// knownRecords are those that somebody has heard of.
type knownRecords struct {
	mu     sync.Mutex
	values map[event.Receipt]float64
}

func (k *knownRecords) produce(ctx context.Context, p *kafka.Producer, first int) {
	for i := first; ctx.Err() == nil; i += 3 {
		writes := kafkatest.Updates(i, 3, 50)
		for j, a := range p.Produce(context.WithoutCancel(ctx), writes) {
			if a.Err == nil {
				k.add(a.Receipt, writes[j].Latency)
			}
		}
	}
}

func (k *knownRecords) consume(ctx context.Context, c *kafka.Consumer) {
	for ctx.Err() == nil {
		chunks, err := c.Poll(ctx, 500)
		if err != nil {
			return
		}
		for _, chunk := range chunks {
			for _, r := range chunk.Records {
				var w event.Write
				if record.DecodeWrite(&w, r.Value) == nil {
					k.add(r.Receipt(), w.Latency)
				}
			}
		}
	}
}

func (k *knownRecords) add(r event.Receipt, value float64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.values[r] = value
}

func (k *knownRecords) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.values)
}

func (k *knownRecords) all() map[event.Receipt]float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make(map[event.Receipt]float64, len(k.values))
	for r, v := range k.values {
		all[r] = v
	}
	return all
}

// volatileDisk knows what a power failure would leave of a directory: of a
// file as much as there was at its last sync, and only if its directory was
// synced with its entry.
type volatileDisk struct {
	mu      sync.Mutex
	sizes   map[string]int64
	entries map[string][]string
}

func (d *volatileDisk) fsync(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var names []string
	if info.IsDir() {
		if names, err = f.Readdirnames(-1); err != nil {
			return err
		}
	}
	<-time.After(time.Millisecond) // what is written meanwhile is not part of it
	d.mu.Lock()
	defer d.mu.Unlock()
	if info.IsDir() {
		d.entries[f.Name()] = names
	} else {
		d.sizes[f.Name()] = info.Size()
	}
	return nil
}

// copyDir makes to what a power failure would leave of from. Its caller holds mu.
func (d *volatileDisk) copyDir(from, to string) error {
	for _, name := range d.entries[from] {
		src, dst := filepath.Join(from, name), filepath.Join(to, name)
		info, err := os.Lstat(src)
		switch {
		case errors.Is(err, os.ErrNotExist): // removed since
			continue
		case err != nil:
			return err
		case info.IsDir():
			if err := os.Mkdir(dst, 0o700); err != nil {
				return err
			}
			err = d.copyDir(src, dst)
		default:
			err = d.copyFile(src, dst)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *volatileDisk) copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.LimitReader(src, d.sizes[from]))
	return errors.Join(err, dst.Close())
}
