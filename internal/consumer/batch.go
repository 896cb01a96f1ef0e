package consumer

import (
	"time"

	"github.com/sluicehq/sluice/internal/event"
	"github.com/sluicehq/sluice/internal/record"
)

// recordBytes is what a record costs in a batch beside its key and value.
const recordBytes = 700

// batch is the records between two flushes.
type batch struct {
	items []item
	// poison are the records that are no valid write.
	poison []record.DeadLetter
	// next is the offset to go on from once the batch is applied, by partition.
	next  map[int32]int64
	bytes int
	// oldest and latest are when its first and its last record came.
	oldest, latest time.Time
}

func newBatch() *batch { return &batch{next: make(map[int32]int64)} }

func (b *batch) empty() bool { return len(b.next) == 0 }

func (b *batch) len() int { return len(b.items) + len(b.poison) }

// reset empties the batch and keeps its memory, but not what it points to.
func (b *batch) reset() {
	clear(b.items)
	clear(b.poison)
	clear(b.next)
	b.items, b.poison = b.items[:0], b.poison[:0]
	b.bytes = 0
}

// add decodes the record into the batch, which keeps it.
func (b *batch) add(rec *record.Record, now time.Time) {
	if b.empty() {
		b.oldest = now
	}
	b.latest = now
	b.next[rec.Partition] = rec.Offset + 1
	// The write is large: it is decoded in its place.
	b.items = append(b.items, item{record: rec})
	it := &b.items[len(b.items)-1]
	var err error
	it.write, err = record.Read(rec)
	b.bytes += recordCost(rec)
	if err != nil {
		*it = item{}
		b.items = b.items[:len(b.items)-1]
		b.poison = append(b.poison, deadLetter(rec, err))
	}
}

// pass has the batch go on from the offset, up to which there are no other records.
func (b *batch) pass(partition int32, next int64, now time.Time) {
	if b.empty() {
		b.oldest = now
	}
	b.latest = now
	b.next[partition] = max(b.next[partition], next)
}

// addUnreadable takes a batch of the log in that cannot be read.
func (b *batch) addUnreadable(u *record.Unreadable, now time.Time) {
	b.pass(u.Partition, u.Last+1, now)
	letter := record.DeadLetter{
		Record: record.Record{Generation: u.Generation, Partition: u.Partition, Offset: u.First, Value: u.Data, AppendTime: now},
		Reason: event.CodeUnreadableBatch, Detail: u.Detail, LastOffset: u.Last,
	}
	b.bytes += recordCost(&letter.Record)
	b.poison = append(b.poison, letter)
}

// recordCost is what a record and its write cost. Contents and embeddings are
// in the value.
func recordCost(rec *record.Record) int {
	return recordBytes + len(rec.Key) + len(rec.Value)
}

// drop takes out all that the batch has of the partition.
func (b *batch) drop(partition int32) {
	if _, ok := b.next[partition]; !ok {
		return
	}
	delete(b.next, partition)
	kept := b.items[:0]
	for _, it := range b.items {
		if it.record.Partition != partition {
			kept = append(kept, it)
		} else {
			b.bytes -= recordCost(it.record)
		}
	}
	clear(b.items[len(kept):])
	b.items = kept
	letters := b.poison[:0]
	for _, l := range b.poison {
		if l.Record.Partition != partition {
			letters = append(letters, l)
		} else {
			b.bytes -= recordCost(&l.Record)
		}
	}
	clear(b.poison[len(letters):])
	b.poison = letters
}
