package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// The headers of a dead letter, beside the version header of its record. The
// names and values are a format: other tools read them.
const (
	headerReason     = "sluice-reason"
	headerDetail     = "sluice-detail"
	headerTopic      = "sluice-topic"
	headerGeneration = "sluice-generation"
	headerPartition  = "sluice-partition"
	headerOffset     = "sluice-offset"
	// headerLastOffset is set on a letter that stands for several records.
	headerLastOffset = "sluice-last-offset"

	detailBytesMax = 1 << 10
)

// StoredLetter is a dead letter in its topic.
type StoredLetter struct {
	// Seq is its place in the dead-letter topic, which has one partition.
	Seq int64
	// At is when it was refused.
	At     time.Time
	Letter record.DeadLetter
}

// DeadLetters writes and reads the dead-letter topic. Its methods are safe for
// concurrent use; close it with [DeadLetters.Close].
type DeadLetters struct {
	cfg   Config
	log   *slog.Logger
	topic string
	cl    *kgo.Client
}

// NewDeadLetters returns the dead letters. It does not connect.
func NewDeadLetters(cfg Config, log *slog.Logger) (*DeadLetters, error) {
	cfg = cfg.WithDefaults()
	topic := cfg.DeadLetterTopic()
	cl, err := newClient(&cfg, log,
		clientMetrics(&cfg, "dead_letters"),
		kgo.DefaultProduceTopic(topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(deadLetterBytesMax),
		kgo.ProducerBatchCompression(codec(cfg.Producer.Compression)),
		kgo.ProduceRequestTimeout(cfg.Producer.AckTimeout),
		kgo.RecordDeliveryTimeout(cfg.Producer.AckTimeout),
		kgo.ProducerLinger(0),
		// A flush may be nothing but poison, and more than the client's own limit;
		// the flush has its own.
		kgo.MaxBufferedRecords(math.MaxInt32),
	)
	if err != nil {
		return nil, err
	}
	return &DeadLetters{cfg: cfg, log: log, topic: topic, cl: cl}, nil
}

// Send writes the letters and returns when the brokers have all of them. It
// returns an error when one is not acknowledged within AckTimeout or before ctx
// ends. Some of the letters may be written then; sending them again only adds
// copies.
func (d *DeadLetters) Send(ctx context.Context, letters []record.DeadLetter) error {
	records := make([]*kgo.Record, len(letters))
	for i := range letters {
		records[i] = newLetterRecord(d.topic, &letters[i])
	}
	return d.send(ctx, records)
}

// send writes records to the dead-letter topic, as [DeadLetters.Send] does.
func (d *DeadLetters) send(ctx context.Context, records []*kgo.Record) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.Producer.AckTimeout,
		fmt.Errorf("%w: not acknowledged within %s", event.ErrUnavailable, d.cfg.Producer.AckTimeout))
	defer cancel()
	results := make(chan error, len(records))
	for _, r := range records {
		d.cl.TryProduce(context.WithoutCancel(ctx), r, func(_ *kgo.Record, err error) { results <- err })
	}
	for range records {
		select {
		case err := <-results:
			if err != nil {
				return fmt.Errorf("send %d records to %s: %w", len(records), d.topic, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("send %d records to %s: %w", len(records), d.topic, context.Cause(ctx))
		}
	}
	return nil
}

func newLetterRecord(topic string, l *record.DeadLetter) *kgo.Record {
	r := &l.Record
	key, value, left := fitting(r)
	number := func(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
	headers := []kgo.RecordHeader{
		{Key: headerReason, Value: []byte(l.Reason)},
		{Key: headerDetail, Value: []byte(clip(l.Detail, detailBytesMax-len(left)) + left)},
		{Key: headerTopic, Value: []byte(topic[:len(topic)-len(DeadLetterSuffix)] + ".g" + strconv.Itoa(r.Generation))},
		{Key: headerGeneration, Value: number(int64(r.Generation))},
		{Key: headerPartition, Value: number(int64(r.Partition))},
		{Key: headerOffset, Value: number(r.Offset)},
	}
	if l.LastOffset > r.Offset {
		headers = append(headers, kgo.RecordHeader{Key: headerLastOffset, Value: number(l.LastOffset)})
	}
	if r.Version != 0 {
		headers = append(headers, VersionHeader(r.Version))
	}
	if r.ReplayOf != (event.Receipt{}) {
		headers = append(headers, kgo.RecordHeader{Key: headerReplayOf, Value: []byte(r.ReplayOf.String())})
	}
	return &kgo.Record{Topic: topic, Key: key, Value: value, Headers: headers}
}

// fitting returns as much of the record's key and value as fits into a letter,
// and a note about the rest. A record that Sluice did not write may be longer
// than any letter, because brokers measure the compressed batch. Such a record
// must not stop the consumer.
func fitting(r *record.Record) (key, value []byte, left string) {
	switch {
	case len(r.Key)+len(r.Value) <= topicBytesMax:
		return r.Key, r.Value, ""
	case len(r.Key) <= envelopeBytes:
		return r.Key, nil, fmt.Sprintf("; its value, %d bytes, is left out", len(r.Value))
	}
	return nil, nil, fmt.Sprintf("; its key and value, %d and %d bytes, are left out", len(r.Key), len(r.Value))
}

// clip cuts s to at most n bytes, between characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

var errNoLetter = errors.New("record has not the headers of a dead letter")

// parseLetter reads a record of the dead-letter topic.
func parseLetter(r *kgo.Record) (record.DeadLetter, error) {
	l := record.DeadLetter{Record: record.Record{
		Key: r.Key, Value: r.Value, Version: recordVersion(r.Headers), ReplayOf: replayOf(r.Headers),
	}}
	seen := 0
	for _, h := range r.Headers {
		var err error
		var n int64
		switch h.Key {
		case headerReason:
			l.Reason = event.Code(h.Value)
		case headerDetail:
			l.Detail = string(h.Value)
		case headerGeneration:
			n, err = strconv.ParseInt(string(h.Value), 10, 32)
			l.Record.Generation = int(n)
		case headerPartition:
			n, err = strconv.ParseInt(string(h.Value), 10, 32)
			l.Record.Partition = int32(n)
		case headerOffset:
			n, err = strconv.ParseInt(string(h.Value), 10, 64)
			l.Record.Offset = n
		case headerLastOffset:
			n, err = strconv.ParseInt(string(h.Value), 10, 64)
			l.LastOffset = n
			seen-- // the others are required
		default:
			continue
		}
		if err != nil || n < 0 {
			return record.DeadLetter{}, fmt.Errorf("header %s: %w", h.Key, errNoLetter)
		}
		seen++
	}
	if seen != 5 {
		return record.DeadLetter{}, errNoLetter
	}
	return l, nil
}

// List returns at most limit letters, oldest first, from the place on.
func (d *DeadLetters) List(ctx context.Context, from int64, limit int) ([]StoredLetter, error) {
	var letters []StoredLetter
	err := d.Read(ctx, from, func(l StoredLetter) error {
		letters = append(letters, l)
		if len(letters) >= limit {
			return errStop
		}
		return nil
	})
	return letters, err
}

var errStop = errors.New("stop")

// Read calls fn with every letter from the place on, oldest first, up to the end
// that the topic has when Read is called. It stops at the first error of fn and
// returns it. A record that is not a dead letter is skipped and logged.
func (d *DeadLetters) Read(ctx context.Context, from int64, fn func(StoredLetter) error) error {
	_, err := d.read(ctx, from, func(r *kgo.Record) error {
		if isReplayed(r) {
			return nil
		}
		l, err := parseLetter(r)
		if err != nil {
			d.log.Warn("skipped a record of the dead-letter topic that is not a dead letter", "topic", d.topic, "offset", r.Offset, "error", err)
			return nil
		}
		return fn(StoredLetter{Seq: r.Offset, At: r.Timestamp, Letter: l})
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// read calls fn with every record of the topic from the offset on, up to the end
// that the topic has when read is called, which it returns. It stops at fn's
// first error.
func (d *DeadLetters) read(ctx context.Context, from int64, fn func(*kgo.Record) error) (end int64, _ error) {
	start, err := listOffset(ctx, d.cl, d.topic, offsetFirst)
	if err != nil {
		return 0, err
	}
	end, err = listOffset(ctx, d.cl, d.topic, offsetEnd)
	if err != nil {
		return 0, err
	}
	next := max(from, start)
	if next >= end {
		return end, nil
	}
	cfg := d.cfg
	cl, err := newClient(&cfg, d.log,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{d.topic: {0: kgo.NewOffset().At(next)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxBytes(int32(cfg.Consumer.FetchBytesMax)),
		kgo.FetchMaxPartitionBytes(int32(cfg.Consumer.PartitionBytesMax)),
	)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for next < end {
		fetches := cl.PollRecords(ctx, 1000)
		if err := fetches.Err(); err != nil {
			return 0, fmt.Errorf("read %s at offset %d: %w", d.topic, next, err)
		}
		for iter := fetches.RecordIter(); !iter.Done() && next < end; {
			r := iter.Next()
			next = r.Offset + 1
			if r.Offset >= end {
				break
			}
			if err := fn(r); err != nil {
				return 0, err
			}
		}
	}
	return end, nil
}

// Close closes the dead letters. Call it when no Send is under way.
func (d *DeadLetters) Close() { d.cl.Close() }
