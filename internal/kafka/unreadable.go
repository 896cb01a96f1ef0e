package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/record"
)

const (
	// examinePause is the shortest time between two looks at a batch, and the pause
	// after which Poll looks for partitions that make no progress.
	examinePause = 200 * time.Millisecond
	stallTimeout = 3 * time.Second
	// sameReadsMax is how often a batch that cannot be read must be fetched with the
	// same bytes before it is skipped. Bytes that are damaged on the way differ.
	sameReadsMax = 3
	// batchHeaderBytes is the length of the header of a record batch.
	batchHeaderBytes = 61
)

// suspicion is about a batch that the client could not read or get past.
type suspicion struct {
	looked time.Time
	hash   uint64
	same   int
}

// rawBatch is a record batch as the broker has it.
type rawBatch struct {
	first, last int64
	leaderEpoch int32
	control     bool
	data        []byte
	partition   kmsg.FetchResponseTopicPartition
}

// fetchRaw reads the batch at the offset from the partition's leader.
func (c *Consumer) fetchRaw(ctx context.Context, partition int32, offset int64) (rawBatch, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	topics, err := c.adm.ListTopics(ctx, c.topic)
	if err != nil {
		return rawBatch{}, err
	}
	detail := topics[c.topic]
	if detail.Err != nil {
		return rawBatch{}, detail.Err
	}
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, offset, 1 // the broker sends a whole batch
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID, t.Partitions = c.topic, detail.ID, append(t.Partitions, p)
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 100, 1, 1, -1
	req.Topics = append(req.Topics, t)
	answer, err := c.cl.Broker(int(detail.Partitions[partition].Leader)).RetriableRequest(ctx, req)
	if err != nil {
		return rawBatch{}, err
	}
	resp, ok := answer.(*kmsg.FetchResponse)
	if !ok {
		return rawBatch{}, fmt.Errorf("a fetch was answered with a %T", answer)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return rawBatch{}, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return rawBatch{}, errors.New("a fetch of one partition was answered with another number of them")
	}
	got := resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		return rawBatch{}, err
	}
	return parseRaw(got)
}

var errNoBatch = errors.New("the broker has no whole batch there")

// parseRaw reads the header of the first batch. The header must be valid even if the
// rest of the batch is not.
func parseRaw(p kmsg.FetchResponseTopicPartition) (rawBatch, error) {
	in := p.RecordBatches
	if len(in) < batchHeaderBytes {
		return rawBatch{}, errNoBatch
	}
	length := int64(int32(binary.BigEndian.Uint32(in[8:]))) + 12
	if length < batchHeaderBytes || length > int64(len(in)) {
		return rawBatch{}, errNoBatch
	}
	b := rawBatch{
		first: int64(binary.BigEndian.Uint64(in)), leaderEpoch: int32(binary.BigEndian.Uint32(in[12:])),
		control: in[22]&0x20 != 0, data: in[:length], partition: p,
	}
	b.last = b.first + int64(int32(binary.BigEndian.Uint32(in[23:])))
	b.partition.RecordBatches = b.data
	return b, nil
}

// examine looks at the next batch of a partition that makes no progress. If the
// batch cannot be read and has the same bytes each time, examine returns a chunk
// that skips it. No rebalance may take place meanwhile.
func (c *Consumer) examine(ctx context.Context, partition int32) (record.Chunk, bool) {
	c.mu.Lock()
	a := c.owned[partition]
	if a == nil || a.suspect == nil || a.next < 0 || c.fatal != nil || time.Since(a.suspect.looked) < examinePause {
		c.mu.Unlock()
		return record.Chunk{}, false
	}
	epoch, next := a.epoch, a.next
	a.suspect.looked = time.Now()
	c.mu.Unlock()

	batch, err := c.fetchRaw(ctx, partition, next)
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("could not fetch a batch that the client did not read, trying again",
				"topic", c.topic, "partition", partition, "offset", next, "error", err)
		}
		return record.Chunk{}, false
	}
	detail := c.readBatch(&batch, next)

	c.mu.Lock()
	defer c.mu.Unlock()
	if a = c.owned[partition]; a == nil || a.epoch != epoch || a.next != next || a.suspect == nil {
		return record.Chunk{}, false
	}
	switch {
	case batch.first > next:
		c.fail(c.lost(partition, "offsets %d to %d are missing", next, batch.first-1))
		return record.Chunk{}, false
	case detail == "":
		// It can be read, so that the client will, from here on.
		a.suspect = nil
		c.seek(partition, next, a.leaderOf(next-1))
		return record.Chunk{}, false
	}
	if hash := maphash.Bytes(c.seed, batch.data); a.suspect.same == 0 || a.suspect.hash != hash {
		a.suspect.hash, a.suspect.same = hash, 1
	} else {
		a.suspect.same++
	}
	if a.suspect.same < sameReadsMax {
		return record.Chunk{}, false
	}
	last := max(next, batch.last)
	c.log.Error("batch cannot be read; it goes to the dead letters, and the log goes on after it",
		"topic", c.topic, "partition", partition, "offset", next, "last_offset", last, "bytes", len(batch.data), "error", detail)
	a.suspect, a.next = nil, last+1
	a.leaders = append(a.leaders, leaderEpoch{next, batch.leaderEpoch})
	c.seek(partition, last+1, batch.leaderEpoch)
	return record.Chunk{Partition: partition, Epoch: epoch, Unreadable: &record.Unreadable{
		Generation: c.cfg.Generation, Partition: partition, First: next, Last: last,
		Detail: fmt.Sprintf("%s partition %d, offsets %d to %d: %s", c.topic, partition, next, last, detail),
		Data:   bytes.Clone(batch.data),
	}}, true
}

// readBatch reads the batch as the client does and returns what is wrong with it,
// or nil if all of its records from the offset on can be read.
func (c *Consumer) readBatch(batch *rawBatch, from int64) string {
	in, err := newInflater(c.cfg.Consumer.InflatedBytesMax)
	if err != nil {
		return ""
	}
	read, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: from, Topic: c.topic, Partition: batch.partition.Partition,
	}, &batch.partition, in, nil)
	switch {
	case errors.Is(read.Err, kgo.ErrMaxDecompress):
		return fmt.Sprintf("the batch takes more than %d bytes in memory", c.cfg.Consumer.InflatedBytesMax)
	case read.Err != nil:
		return read.Err.Error()
	}
	for i, r := range read.Records {
		if r.Offset != from+int64(i) {
			return fmt.Sprintf("the batch has no record of offset %d", from+int64(i))
		}
	}
	if next != batch.last+1 || from+int64(len(read.Records)) != next {
		return "the batch has not the records that its header says"
	}
	return ""
}

// seek makes the client continue at the offset. The caller holds c.mu.
func (c *Consumer) seek(partition int32, offset int64, epoch int32) {
	c.mu.Unlock()
	defer c.mu.Lock()
	c.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{c.topic: {partition: {Epoch: epoch, Offset: offset}}})
}

// examineSuspects looks at every partition that makes no progress.
func (c *Consumer) examineSuspects(ctx context.Context) []record.Chunk {
	c.mu.Lock()
	var suspects []int32
	for p, a := range c.owned {
		if a.suspect == nil && a.next >= 0 {
			// Batches are read, and none of their records arrives.
			switch n := c.inflater.batchesRead(p); {
			case a.next != a.seenNext:
				a.seenNext, a.seenRead, a.seenAt = a.next, n, time.Now()
			case n > a.seenRead && time.Since(a.seenAt) > stallTimeout:
				a.seenRead, a.seenAt = n, time.Now()
				a.suspect = &suspicion{}
			}
		}
		if a.suspect != nil {
			suspects = append(suspects, p)
		}
	}
	c.mu.Unlock()
	c.suspects = len(suspects) > 0
	var chunks []record.Chunk
	for _, p := range suspects {
		if chunk, ok := c.examine(ctx, p); ok {
			chunks = append(chunks, chunk)
		}
	}
	return chunks
}
