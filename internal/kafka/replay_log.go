package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// logPartition is a partition of the events topic of a generation.
type logPartition struct {
	generation int
	partition  int32
}

// logScan reads the log from given places on, each time up to its current end.
type logScan struct {
	cfg Config
	cl  *kgo.Client
	adm *kadm.Client
	// topics are the names, by generation, of the topics that exist.
	topics map[int]string
	// starts has the first offset of each partition, and next the offset to read
	// next.
	starts, next map[logPartition]int64
	generations  map[string]int
}

// newLogScan returns a scan that begins at the offsets, and reads the topics of all
// later generations from their beginnings. The caller closes it.
func newLogScan(ctx context.Context, cfg Config, from map[logPartition]int64, log *slog.Logger) (*logScan, error) {
	s := &logScan{
		cfg: cfg, topics: make(map[int]string), generations: make(map[string]int),
		starts: make(map[logPartition]int64), next: make(map[logPartition]int64),
	}
	cl, err := newClient(&cfg, log,
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), // they have offsets too
		kgo.FetchMaxBytes(int32(cfg.Consumer.FetchBytesMax)),
		kgo.FetchMaxPartitionBytes(int32(cfg.Consumer.PartitionBytesMax)),
	)
	if err != nil {
		return nil, err
	}
	s.cl, s.adm = cl, kadm.NewClient(cl)
	if err := s.begin(ctx, from); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *logScan) begin(ctx context.Context, from map[logPartition]int64) error {
	oldest := s.cfg.Generation
	for p := range from {
		oldest = min(oldest, p.generation)
	}
	there, err := s.adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	for g := oldest; g <= s.cfg.Generation; g++ {
		cfg := s.cfg
		cfg.Generation = g
		if topic := cfg.EventsTopic(); there.Has(topic) && there[topic].Err == nil {
			s.topics[g], s.generations[topic] = topic, g
		}
	}
	if len(s.topics) == 0 {
		return nil
	}
	starts, err := s.adm.ListStartOffsets(ctx, slices.Collect(maps.Values(s.topics))...)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return fmt.Errorf("list start offsets: %w", err)
	}
	consume := make(map[string]map[int32]kgo.Offset)
	starts.Each(func(o kadm.ListedOffset) {
		p := logPartition{s.generations[o.Topic], o.Partition}
		s.starts[p] = o.Offset
		at, ok := from[p]
		switch {
		case p.generation > oldest:
			at = o.Offset
		case !ok:
			return
		}
		s.next[p] = max(at, o.Offset)
		if consume[o.Topic] == nil {
			consume[o.Topic] = make(map[int32]kgo.Offset)
		}
		consume[o.Topic][o.Partition] = kgo.NewOffset().At(s.next[p])
	})
	s.cl.AddConsumePartitions(consume)
	return nil
}

// complete reports whether the log still has everything that was written after the
// receipt, in its partition and in the later generations.
func (s *logScan) complete(at event.Receipt) bool {
	for g := at.Generation; g <= s.cfg.Generation; g++ {
		if s.topics[g] == "" {
			return false
		}
	}
	for p, start := range s.starts {
		switch {
		case p.generation == at.Generation && p.partition == at.Partition && start > at.Offset+1,
			p.generation > at.Generation && start > 0:
			return false
		}
	}
	return true
}

// advance calls fn with the records from where the last call stopped up to the
// current end of the log. Records of one partition come in order.
func (s *logScan) advance(ctx context.Context, fn func(*record.Record)) error {
	if len(s.next) == 0 {
		return nil
	}
	ends, err := s.adm.ListEndOffsets(ctx, slices.Collect(maps.Values(s.topics))...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets: %w", err)
	}
	behind := func() bool {
		for p, next := range s.next {
			if end, _ := ends.Lookup(s.topics[p.generation], p.partition); next < end.Offset {
				return true
			}
		}
		return false
	}
	for behind() {
		fetches := s.cl.PollRecords(ctx, 10_000)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			generation := s.generations[r.Topic]
			s.next[logPartition{generation, r.Partition}] = r.Offset + 1
			if !r.Attrs.IsControl() {
				rec := newRecord(generation, r)
				fn(&rec)
			}
		})
	}
	return nil
}

func (s *logScan) close() { s.cl.Close() }
