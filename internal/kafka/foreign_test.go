package kafka_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/kafka/kafkatest"
	"github.com/sluicehq/sluice/internal/record"
)

// foreignRecord is a record as a batch has it, the n-th.
func foreignRecord(n int, value []byte) []byte {
	body := []byte{0} // attributes
	body = binary.AppendVarint(body, 0)
	body = binary.AppendVarint(body, int64(n))
	body = binary.AppendVarint(body, 0) // key
	body = binary.AppendVarint(body, int64(len(value)))
	body = append(body, value...)
	body = binary.AppendVarint(body, 0) // headers
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

// foreignBatch is a batch of n records, which are compressed with the codec.
func foreignBatch(records []byte, n int, codec int16) []byte {
	now := time.Now().UnixMilli()
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: codec, LastOffsetDelta: int32(n - 1), FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(n), Records: records,
	}
	b.Length = int32(len(b.AppendTo(nil)) - 12)
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// zstdBomb is a record whose value is of so many bytes of one letter.
func zstdBomb(t *testing.T, size int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	head := []byte{0}
	head = binary.AppendVarint(head, 0)
	head = binary.AppendVarint(head, 0)
	head = binary.AppendVarint(head, 0)
	head = binary.AppendVarint(head, int64(size))
	head = append(binary.AppendVarint(nil, int64(len(head)+size+1)), head...)
	if _, err := w.Write(head); err != nil {
		t.Fatal(err)
	}
	for left := size; left > 0; left -= min(left, 1<<20) {
		if _, err := w.Write(bytes.Repeat([]byte("a"), min(left, 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write([]byte{0}); err != nil { // no headers
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// produceRaw sends the batch to partition 0 as it is.
func produceRaw(t *testing.T, cfg kafka.Config, batch []byte) error {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	topics, err := kadm.NewClient(cl).ListTopics(t.Context(), cfg.EventsTopic())
	if err != nil {
		t.Fatal(err)
	}
	detail := topics[cfg.EventsTopic()]
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = batch
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.TopicID, topic.Partitions = cfg.EventsTopic(), detail.ID, append(topic.Partitions, p)
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = -1, 30_000, append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := cl.Broker(int(detail.Partitions[0].Leader)).RetriableRequest(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return kerr.ErrorForCode(answer.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode) //nolint:forcetypeassert // of that request
}

// pollAll polls until the offset comes next, and returns what there was before.
func pollAll(t *testing.T, c *kafka.Consumer, until int64) (values []string, unreadable []record.Unreadable) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for next := int64(0); next < until; {
		chunks, err := c.Poll(ctx, 1000)
		if err != nil {
			t.Fatalf("poll at offset %d: %v", next, err)
		}
		for _, chunk := range chunks {
			for _, r := range chunk.Records {
				values = append(values, fmt.Sprintf("%d:%d", r.Offset, len(r.Value)))
			}
			if u := chunk.Unreadable; u != nil {
				unreadable = append(unreadable, *u)
				next = u.Last + 1
			}
			next = max(next, chunk.Next)
		}
	}
	return values, unreadable
}

// testForeignBatches has batches in the log that no Sluice wrote: too large to
// inflate, just small enough, and broken ones where the broker takes them. Every
// one is passed, none stops the log, and a later consumer meets the same.
func testForeignBatches(t *testing.T, b *backend) {
	const limit = 16 << 20
	good := func(n int) []byte { return foreignBatch(foreignRecord(0, bytes.Repeat([]byte("g"), n)), 1, 0) }
	many := bytes.Repeat(foreignRecord(0, nil), 1)
	lying := foreignBatch(append(many, foreignRecord(1, nil)...), 5, 0)
	for _, tt := range []struct {
		name   string
		batch  func(t *testing.T) []byte
		count  int64
		detail string // empty: it is read
		either bool   // Apache Kafka refuses it
	}{
		{"inflates to 900 MiB", func(t *testing.T) []byte { return foreignBatch(zstdBomb(t, 900<<20), 1, 4) }, 1, "bytes in memory", false},
		{"inflates to just above the limit", func(t *testing.T) []byte { return foreignBatch(zstdBomb(t, limit), 1, 4) }, 1, "bytes in memory", false},
		{"inflates to just below the limit", func(t *testing.T) []byte { return foreignBatch(zstdBomb(t, limit-2048), 1, 4) }, 1, "", false},
		{"no zstd", func(*testing.T) []byte { return foreignBatch([]byte("no zstd at all"), 3, 4) }, 3, "decompress", true},
		{"fewer records than it says", func(*testing.T) []byte { return lying }, 5, "has not the records", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := b.topics(t)
			cfg.Group = "g" + strings.ReplaceAll(tt.name, " ", "-")
			if err := produceRaw(t, cfg, good(10)); err != nil {
				t.Fatal(err)
			}
			if err := produceRaw(t, cfg, tt.batch(t)); err != nil {
				if tt.either {
					t.Skipf("the broker refuses it: %v", err)
				}
				t.Fatal(err)
			}
			if err := produceRaw(t, cfg, good(20)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // again after a restart
				c := kafkatest.NewConsumer(t, cfg, nil)
				values, unreadable := pollAll(t, c, 2+tt.count)
				if last := values[len(values)-1]; last != fmt.Sprintf("%d:20", 1+tt.count) || values[0] != "0:10" {
					t.Errorf("records %v, want those around the batch", values)
				}
				if tt.detail == "" {
					if len(unreadable) > 0 || len(values) != 3 {
						t.Errorf("records %v, unreadable %d, want all read", values, len(unreadable))
					}
				} else if len(unreadable) != 1 || unreadable[0].Last != tt.count || !strings.Contains(unreadable[0].Detail, tt.detail) || len(unreadable[0].Data) == 0 {
					t.Errorf("unreadable: %d, want one that ends at %d and says %q: %.200v", len(unreadable), tt.count, tt.detail, unreadable)
				}
				if err := c.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// testTransactions has another producer write in transactions: their ends take
// offsets and are no records.
func testTransactions(t *testing.T, b *backend) {
	cfg := b.topics(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.TransactionalID("foreign-"+cfg.TopicPrefix),
		kgo.DefaultProduceTopic(cfg.EventsTopic()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range 3 {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Value: bytes.Repeat([]byte("t"), i+1)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	c := kafkatest.NewConsumer(t, cfg, nil)
	values, unreadable := pollAll(t, c, 6)
	if got := fmt.Sprint(values); got != "[0:1 2:2 4:3]" || len(unreadable) > 0 {
		t.Errorf("records %s, %d unreadable, want those of three transactions", got, len(unreadable))
	}
	if err := c.Commit(t.Context(), map[int32]int64{0: 6}); err != nil {
		t.Fatal(err)
	}
	if lag, err := c.Lag(t.Context()); err != nil || lag[0] != 0 {
		t.Errorf("lag %v, error %v, want none", lag, err)
	}
}

// The letter of a batch names its last offset, and that of a record none.
func TestDeadLetterOfABatch(t *testing.T) {
	for _, last := range []int64{0, 12} {
		letter := record.DeadLetter{
			Record: record.Record{Generation: 2, Partition: 1, Offset: 7, Value: []byte("raw")},
			Reason: event.CodeUnreadableBatch, Detail: "damaged", LastOffset: last,
		}
		got, err := kafka.ParseLetter(kafka.NewLetterRecord("sluice.events.dlq", &letter))
		if err != nil || got.LastOffset != last || got.Record.Offset != 7 {
			t.Errorf("last offset %d: got %+v, %v", last, got, err)
		}
	}
}

// What a client inflates and the consumer has not polled stays within the bound,
// however well the records compress, and all of them arrive.
func TestInflatedBytesAreBounded(t *testing.T) {
	t.Parallel()
	cfg := embeddedBackend(t).topics(t)
	const records, size = 120, 1 << 20
	for i := range records {
		if err := produceRaw(t, cfg, foreignBatch(s2Record(i, size), 1, 2)); err != nil {
			t.Fatal(err)
		}
	}
	c := kafkatest.NewConsumer(t, cfg, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for next := int64(0); next < records; {
		chunks, err := c.Poll(ctx, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for _, chunk := range chunks {
			for _, r := range chunk.Records {
				bytes += len(r.Value)
			}
			next = chunk.Next
		}
		if limit := 20 << 20; bytes > limit {
			t.Errorf("one answer has %d bytes, want at most %d", bytes, limit)
		}
	}
}

func s2Record(n, size int) []byte {
	return s2.EncodeSnappy(nil, foreignRecord(0, append(bytes.Repeat([]byte("a"), size), byte(n))))
}
