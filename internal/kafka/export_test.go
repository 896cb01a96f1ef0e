package kafka

import (
	"context"
	"log/slog"
	"os"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/event"
)

// Cluster is for faults that only the embedded broker can have.
func (b *Broker) Cluster() *kfake.Cluster { return b.cluster }

// NewBrokerFsync is NewBroker with fsync instead of (*os.File).Sync.
func NewBrokerFsync(cfg BrokerConfig, log *slog.Logger, fsync func(*os.File) error) (*Broker, error) {
	return newBroker(cfg, log, fsync)
}

// Retain is one round of retention.
func (b *Broker) Retain(ctx context.Context, adm *kadm.Client) error { return b.retain(ctx, adm) }

// NewLetterRecord and ParseLetter are the envelope of dead letters.
func NewLetterRecord(topic string, l *event.DeadLetter) *kgo.Record { return newLetterRecord(topic, l) }

// ParseLetter reads what NewLetterRecord made.
func ParseLetter(r *kgo.Record) (event.DeadLetter, error) { return parseLetter(r) }

// Waiting is how many calls wait now.
func (w *Watcher) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters)
}

const (
	// DetailBytesMax is the longest detail of a dead letter.
	DetailBytesMax = detailBytesMax
	// TopicBytesMax is the longest batch of the events topic.
	TopicBytesMax = topicBytesMax
)

// Expire has the last look hold no longer.
func (f *Fence) Expire() { f.until.Store(0) }
