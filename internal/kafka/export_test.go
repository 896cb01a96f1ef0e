package kafka

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/sluicehq/sluice/internal/record"
)

// NewLetterRecord and ParseLetter are the envelope of dead letters.
func NewLetterRecord(topic string, l *record.DeadLetter) *kgo.Record {
	return newLetterRecord(topic, l)
}

// ParseLetter reads what NewLetterRecord made.
func ParseLetter(r *kgo.Record) (record.DeadLetter, error) { return parseLetter(r) }

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
