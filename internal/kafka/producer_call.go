package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/fault"
)

// block holds encoded records. It goes back to the pool when the brokers have
// acknowledged all of them. After an error it is left to the garbage collector,
// because a request that is still being written may read it.
type block struct {
	buf    []byte
	refs   int
	failed bool
}

// call is one call of Produce. The client may decide records after the call has
// returned. It writes to acks under mu, and the caller gets a copy.
type call struct {
	p       *Producer
	start   time.Time
	records []kgo.Record
	blocks  []*block // the block of each record
	last    *block   // the one that is being filled
	// expected is the estimate of all records' bytes, bytes what they take.
	expected, bytes int
	done            chan struct{}

	mu      sync.Mutex
	acks    []event.Ack
	pending int
}

func (p *Producer) newCall(n int) *call {
	return &call{
		p: p, start: time.Now(), pending: n, done: make(chan struct{}),
		records: make([]kgo.Record, 0, n), blocks: make([]*block, 0, n), acks: make([]event.Ack, n),
	}
}

func (c *call) expect(size int) { c.expected += size }

// room returns a block that has room for size bytes. A small call gets a block of
// its own size: a pooled block in each waiting call would take many times the
// memory that the limit of the buffer counts.
func (c *call) room(size int) *block {
	if c.last != nil && cap(c.last.buf)-len(c.last.buf) >= size {
		return c.last
	}
	switch {
	case size > blockBytes:
		c.last = &block{buf: make([]byte, 0, size)}
	case c.last == nil && c.expected < blockBytes:
		c.last = &block{buf: make([]byte, 0, c.expected)}
	default:
		c.last = c.p.blocks.Get().(*block) //nolint:forcetypeassert // the pool holds nothing else
	}
	return c.last
}

func (c *call) add(b *block, key, value []byte, headers []kgo.RecordHeader) {
	b.refs++
	c.bytes += len(key) + len(value) + recordOverheadBytes
	c.blocks = append(c.blocks, b)
	c.records = append(c.records, kgo.Record{Key: key, Value: value, Headers: headers})
}

func (c *call) run(ctx context.Context) []event.Ack {
	c.last = nil
	if len(c.records) == 0 {
		return nil
	}
	fence := c.p.cfg.Producer.Fence
	if fence == nil {
		return c.produce(ctx)
	}
	if err := fence.Err(); err != nil {
		return c.refuse(err)
	}
	acks := c.produce(ctx)
	if !slices.ContainsFunc(acks, func(a event.Ack) bool { return a.Err == nil }) {
		return acks
	}
	ctx, cancel := context.WithDeadline(ctx, c.start.Add(c.p.cfg.Producer.AckTimeout))
	defer cancel()
	if err := fence.Allow(ctx); err != nil {
		if !errors.Is(err, event.ErrWritesStopped) {
			err = fmt.Errorf("%w: %w", event.ErrUnavailable, err)
		}
		for i := range acks {
			if acks[i].Err == nil {
				acks[i] = event.Ack{Err: err}
			}
		}
	}
	return acks
}

// refuse fails all writes of a call of which nothing was sent.
func (c *call) refuse(err error) []event.Ack {
	c.p.metrics.refused.Add(float64(len(c.records)))
	for i := range c.acks {
		c.acks[i].Err = err
		c.release(i, true)
	}
	return c.acks
}

// produce sends the records, and waits for the brokers.
func (c *call) produce(ctx context.Context) []event.Ack {
	p := c.p
	if !p.reserve(len(c.records), c.bytes) {
		return c.refuse(fmt.Errorf("%w: the producer's buffer is full", event.ErrUnavailable))
	}
	// The deadline is kept here: the client's own was measured to come 20 s late
	// when a broker dies.
	timer := time.NewTimer(p.cfg.Producer.AckTimeout)
	defer timer.Stop()
	// A caller that goes away must not take records out of the middle of a
	// partition's sequence.
	background := context.WithoutCancel(ctx)
	fault.Point(fault.ProduceBegun)
	for i := range c.records {
		r := &c.records[i]
		if len(r.Value) > RecordBytesMax {
			c.decide(i, r, kerr.MessageTooLarge)
			continue
		}
		p.cl.TryProduce(background, r, func(r *kgo.Record, err error) { c.decide(i, r, err) })
	}
	fault.Point(fault.ProduceSent)
	var cause error
	select {
	case <-c.done:
		fault.Point(fault.ProduceAcked)
	case <-timer.C:
		cause = fmt.Errorf("%w: not acknowledged within %s", event.ErrUnavailable, p.cfg.Producer.AckTimeout)
	case <-ctx.Done():
		cause = fmt.Errorf("%w: %w", event.ErrUnavailable, ctx.Err())
	}
	p.metrics.latency.Observe(time.Since(c.start).Seconds())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == 0 {
		return c.acks
	}
	acks := make([]event.Ack, len(c.acks))
	for i, a := range c.acks {
		if a.Err == nil && a.Receipt.Generation == 0 { // generations are from 1
			a.Err = cause
		}
		acks[i] = a
	}
	return acks
}

// decide is called once for each record, by the client's goroutine.
func (c *call) decide(i int, r *kgo.Record, err error) {
	p := c.p
	size := len(r.Key) + len(r.Value)
	p.bufferedRecords.Add(-1)
	p.bufferedBytes.Add(-int64(size) - recordOverheadBytes)
	var a event.Ack
	switch {
	case err == nil:
		a.Receipt = event.Receipt{Generation: p.cfg.Generation, Partition: r.Partition, Offset: r.Offset}
		p.metrics.records.Inc()
		p.metrics.bytes.Add(float64(size))
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		a.Err = event.Errorf(event.CodeTooLarge, "", "is longer than %d bytes as a record", RecordBytesMax)
		p.metrics.failed.Inc()
	default:
		a.Err = fmt.Errorf("%w: %w", event.ErrUnavailable, err)
		p.metrics.failed.Inc()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks[i] = a
	c.release(i, err != nil)
	if c.pending--; c.pending == 0 {
		close(c.done)
	}
}

// release ends a record's use of its block.
func (c *call) release(i int, failed bool) {
	b := c.blocks[i]
	c.blocks[i] = nil
	b.failed = b.failed || failed
	if b.refs--; b.refs == 0 && !b.failed && cap(b.buf) == blockBytes {
		b.buf = b.buf[:0]
		c.p.blocks.Put(b)
	}
}
