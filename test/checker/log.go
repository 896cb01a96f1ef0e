package checker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/kafka"
	"github.com/sluicehq/sluice/internal/record"
)

// Log is the events topic from its beginning to its end, with the letters of
// the dead-letter topic.
type Log struct {
	// Records are in offset order within each partition.
	Records []record.Record
	Letters []record.DeadLetter
	// Rejected are the receipts of the records that the database refused for
	// their data. Their letters are not among Letters.
	Rejected map[event.Receipt]struct{}
}

// ReadLog reads both topics of a generation from the brokers. It reads them
// with a client of its own, which knows of no group and skips nothing.
func ReadLog(ctx context.Context, cfg kafka.Config) (*Log, error) {
	cfg = cfg.WithDefaults()
	l := &Log{}
	if err := l.readRecords(ctx, cfg); err != nil {
		return nil, err
	}
	letters, err := kafka.NewDeadLetters(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer letters.Close()
	err = letters.Read(ctx, 0, func(s kafka.StoredLetter) error {
		l.Letters = append(l.Letters, s.Letter)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return l, nil
}

func (l *Log) readRecords(ctx context.Context, cfg kafka.Config) error {
	topic := cfg.EventsTopic()
	cl, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics(topic),
		kgo.ConsumeStartOffset(kgo.NewOffset().At(0)), kgo.ConsumeResetOffset(kgo.NoResetOffset()))
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets of %s: %w", topic, err)
	}
	missing := int64(0)
	next := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) { missing += o.Offset })
	for missing > 0 {
		fetches := cl.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return fmt.Errorf("read %s, %d records missing: %w", topic, missing, err)
		}
		var gap error
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset != next[r.Partition] {
				gap = fmt.Errorf("%s: partition %d goes from offset %d to %d", topic, r.Partition, next[r.Partition]-1, r.Offset)
			}
			next[r.Partition] = r.Offset + 1
			missing--
			l.Records = append(l.Records, record.Record{
				Generation: cfg.Generation, Partition: r.Partition, Offset: r.Offset,
				Key: r.Key, Value: r.Value, Version: versionOf(r), AppendTime: r.Timestamp,
			})
		})
		if gap != nil {
			return gap
		}
	}
	return nil
}

func versionOf(r *kgo.Record) int {
	for _, h := range r.Headers {
		if h.Key == kafka.VersionHeader(0).Key {
			n, err := strconv.Atoi(string(h.Value))
			if err == nil {
				return n
			}
		}
	}
	return 0
}
