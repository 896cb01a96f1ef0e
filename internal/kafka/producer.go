package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

const (
	headerVersion = "sluice-version"
	// blockBytes is the size of the blocks that records are encoded into. A record
	// in flight keeps its block in memory, so much larger blocks would hold memory
	// that the limit of the buffer does not count.
	blockBytes = 256 << 10
	// recordOverheadBytes is what a buffered record takes besides its bytes.
	recordOverheadBytes = 256
)

// Producer writes to the events topic. It is idempotent and waits for all
// in-sync replicas. Its methods are safe for concurrent use; close it with
// [Producer.Close].
type Producer struct {
	cfg                   Config
	topic                 string
	cl                    *kgo.Client
	headers, patchHeaders []kgo.RecordHeader
	blocks                sync.Pool
	metrics               *producerMetrics

	bufferedRecords, bufferedBytes atomic.Int64
}

type producerMetrics struct {
	records, bytes, refused, failed prometheus.Counter
	latency                         prometheus.Histogram
}

// NewProducer returns a producer of the events topic, whose partitions cfg must
// name. It does not connect.
func NewProducer(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Producer, error) {
	if cfg.Partitions == 0 {
		return nil, errPartitionsUnknown
	}
	p := &Producer{
		headers:      []kgo.RecordHeader{VersionHeader(record.FormatVersion)},
		patchHeaders: []kgo.RecordHeader{VersionHeader(record.FormatVersionPatch)},
	}
	p.blocks.New = func() any { return &block{buf: make([]byte, 0, blockBytes)} }
	cfg = cfg.WithDefaults()
	cl, err := newClient(&cfg, log, append(ProducerOptions(&cfg),
		clientMetrics(&cfg, "producer"),
		kgo.ProduceRequestTimeout(cfg.Producer.AckTimeout),
		// A connection that swallowed a request is given up after this much more;
		// until then its partitions wait.
		kgo.RequestTimeoutOverhead(max(time.Second, cfg.Producer.AckTimeout)),
		// A write whose caller was told that it is unavailable should not be written
		// much later, so records that were not sent in time are dropped.
		kgo.RecordDeliveryTimeout(cfg.Producer.AckTimeout+max(0, cfg.Producer.Linger)),
	)...)
	if err != nil {
		return nil, err
	}
	p.cfg, p.topic, p.cl = cfg, cfg.EventsTopic(), cl
	p.metrics = p.newMetrics(reg)
	return p, nil
}

// ProducerOptions returns the options of a [Producer]'s client that decide how
// records get to the brokers, except for timeouts. The configuration must have
// its defaults filled in and name the partitions.
func ProducerOptions(cfg *Config) []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.DefaultProduceTopic(cfg.EventsTopic()),
		kgo.RecordPartitioner(pinned{kgo.StickyKeyPartitioner(nil), cfg.Partitions}),
		kgo.ProducerLinger(max(0, cfg.Producer.Linger)),
		kgo.ProducerBatchMaxBytes(int32(cfg.Producer.BatchBytesMax)),
		kgo.ProducerBatchCompression(codec(cfg.Producer.Compression)),
		// Produce has reserved its share of the buffer before. The client's own limits
		// count differently and must not apply first.
		kgo.MaxBufferedRecords(2 * cfg.Producer.BufferRecordsMax),
	}
}

func (p *Producer) newMetrics(reg prometheus.Registerer) *producerMetrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m := &producerMetrics{
		records: counter("sluice_produced_records_total", "Records that the brokers acknowledged."),
		bytes:   counter("sluice_produced_bytes_total", "Bytes of keys and values that the brokers acknowledged, before compression."),
		refused: counter("sluice_produce_refused_records_total", "Records refused because the buffer was full, or writes were stopped."),
		failed:  counter("sluice_produce_failed_records_total", "Records that were not acknowledged in time, or refused by the brokers."),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_produce_seconds", Help: "Time until all writes of a call were acknowledged, or given up.",
			Buckets: []float64{.001, .0025, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	reg.MustRegister(m.latency,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_produce_buffered_records", Help: "Records that wait for the brokers.",
		}, func() float64 { return float64(p.bufferedRecords.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_produce_buffered_bytes", Help: "Bytes of the records that wait for the brokers.",
		}, func() float64 { return float64(p.bufferedBytes.Load()) }),
	)
	return m
}

// VersionHeader is the header that says how a record is written, such as
// [record.FormatVersion].
func VersionHeader(version int) kgo.RecordHeader {
	return kgo.RecordHeader{Key: headerVersion, Value: []byte(strconv.Itoa(version))}
}

func codec(name string) kgo.CompressionCodec {
	switch name {
	case CompressionZstd:
		return kgo.ZstdCompression()
	case CompressionSnappy:
		return kgo.SnappyCompression()
	case CompressionLZ4:
		return kgo.Lz4Compression()
	}
	return kgo.NoCompression()
}

// Produce writes the writes in order and returns an acknowledgement for each: a
// receipt, or why there is none. It returns when all are decided, or when
// AckTimeout or ctx is over. An undecided write may be in the log or not, and its
// error wraps [event.ErrUnavailable]. A call that does not fit into the buffer is
// refused whole and at once, with the same error, and none of it is in the log.
// The error of a write that is too large is an [*event.Error].
//
// When Produce returns it has encoded the writes, and keeps none of their memory.
func (p *Producer) Produce(ctx context.Context, writes []event.Write) []event.Ack {
	c := p.newCall(len(writes))
	for i := range writes {
		c.expect(sizeHint(&writes[i]))
	}
	for i := range writes {
		w := &writes[i]
		b := c.room(sizeHint(w))
		start := len(b.buf)
		if w.Alias != "" {
			b.buf = append(b.buf, w.Alias...)
		} else {
			b.buf = w.ID.AppendText(b.buf)
		}
		mid := len(b.buf)
		b.buf = record.AppendWrite(b.buf, w)
		headers := p.headers
		if record.FormatVersionOf(w) == record.FormatVersionPatch {
			headers = p.patchHeaders
		}
		c.add(b, b.buf[start:mid:mid], b.buf[mid:len(b.buf):len(b.buf)], headers)
	}
	return c.run(ctx)
}

// Replay writes the records of dead letters to the events topic again, and
// returns what [Producer.Produce] would. A valid write loses its Fresh mark,
// because other writes of its id may be before it by now. Everything else is
// written unchanged. A header names the write that the record repeats.
//
// If partitions were added to the topic since, nothing is written, and the error
// wraps [ErrTopicMismatch]. Only the letters show that here.
func (p *Producer) Replay(ctx context.Context, letters []record.DeadLetter) []event.Ack {
	if err := p.checkPartitions(letters); err != nil {
		acks := make([]event.Ack, len(letters))
		for i := range acks {
			acks[i].Err = err
		}
		return acks
	}
	c := p.newCall(len(letters))
	for i := range letters {
		c.expect(len(letters[i].Record.Key) + len(letters[i].Record.Value))
	}
	for i := range letters {
		r := letters[i].Record
		r.AppendTime = time.Now() // as it will be
		value := r.Value
		headers := []kgo.RecordHeader{{Key: headerReplayOf, Value: []byte(original(&r).String())}}
		if r.Version != 0 {
			headers = append(headers, VersionHeader(r.Version))
		}
		// A record that can be decoded but is not a valid write stays as it is:
		// encoding it again could turn it into a valid one.
		if w, err := record.Read(&r); err == nil && w.Fresh {
			w.Fresh = false
			value = record.AppendWrite(nil, &w)
		}
		b := c.room(len(r.Key) + len(value))
		start := len(b.buf)
		b.buf = append(append(b.buf, r.Key...), value...)
		mid := start + len(r.Key)
		c.add(b, b.buf[start:mid:mid], b.buf[mid:len(b.buf):len(b.buf)], headers)
	}
	return c.run(ctx)
}

// checkPartitions returns an error if a write would go to another partition than
// the other writes of its event.
func (p *Producer) checkPartitions(letters []record.DeadLetter) error {
	partitions := kgo.StickyKeyPartitioner(nil).ForTopic(p.topic)
	for i := range letters {
		r := letters[i].Record
		r.AppendTime = time.Now()
		if r.Generation != p.cfg.Generation {
			continue
		}
		if _, err := record.Read(&r); err != nil {
			continue // has no place
		}
		if to := partitions.Partition(&kgo.Record{Key: r.Key}, p.cfg.Partitions); to != int(r.Partition) {
			return fmt.Errorf("%w: of the %d partitions of %s, the write at %s would go to %d now; has their number changed?",
				ErrTopicMismatch, p.cfg.Partitions, p.topic, r.Receipt(), to)
		}
	}
	return nil
}

func sizeHint(w *event.Write) int {
	return 128 + 2*len(w.Alias) + len(w.ConversationID) + len(w.EventName) + len(w.Metadata) + len(w.Error) +
		len(w.Input.Data) + len(w.Output.Data) + len(w.InputEmbeddings) + len(w.OutputEmbeddings)
}

// reserve takes a share of the buffer. It reports false if the share does not fit.
func (p *Producer) reserve(records, bytes int) bool {
	if p.bufferedRecords.Add(int64(records)) > int64(p.cfg.Producer.BufferRecordsMax) {
		p.bufferedRecords.Add(-int64(records))
		return false
	}
	if p.bufferedBytes.Add(int64(bytes)) > int64(p.cfg.Producer.BufferBytesMax) {
		p.bufferedBytes.Add(-int64(bytes))
		p.bufferedRecords.Add(-int64(records))
		return false
	}
	return true
}

// Ready returns nil if the events topic can be written to: the brokers answer,
// the topic has the configured id and number of partitions, and every partition
// has a leader. The error wraps [event.ErrWritesStopped] if the fence has stopped
// writes.
func (p *Producer) Ready(ctx context.Context) error {
	if f := p.cfg.Producer.Fence; f != nil {
		if err := f.Err(); err != nil {
			return err
		}
	}
	details, err := kadm.NewClient(p.cl).ListTopics(ctx, p.topic)
	if err != nil {
		return fmt.Errorf("read topic %s: %w", p.topic, err)
	}
	d := details[p.topic]
	if d.Err != nil {
		return fmt.Errorf("read topic %s: %w", p.topic, d.Err)
	}
	if id := d.ID.String(); p.cfg.TopicID != "" && id != p.cfg.TopicID {
		return fmt.Errorf("%w: %s has the id %s, expected %s: it was made anew", ErrTopicMismatch, p.topic, id, p.cfg.TopicID)
	}
	if len(d.Partitions) != p.cfg.Partitions {
		return fmt.Errorf("%w: %s has %d partitions, expected %d", ErrTopicMismatch, p.topic, len(d.Partitions), p.cfg.Partitions)
	}
	for _, part := range d.Partitions {
		if part.Err != nil || part.Leader < 0 {
			return fmt.Errorf("topic %s partition %d has no leader", p.topic, part.Partition)
		}
	}
	return nil
}

// Close waits until all buffered records are written or given up, or until ctx
// ends, and closes the producer.
func (p *Producer) Close(ctx context.Context) error {
	err := p.cl.Flush(ctx)
	p.cl.Close()
	if err != nil {
		return fmt.Errorf("flush producer: %w", err)
	}
	return nil
}
