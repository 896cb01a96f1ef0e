package sluice

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A write is a create, update or delete on its way to the server.
type write struct {
	op   Op
	id   string
	item []byte // with its newline; never changed
	// seq numbers the writes in the order of their calls.
	seq    uint64
	queued time.Time
	// older and newer link all unanswered writes, follower the writes of one
	// id, and next those of the queue's ready.
	older, newer, follower, next *write
	// tried is when it was first sent.
	tried time.Time
	// minted says that this library made the id of this create.
	minted bool
	// unsure says that an earlier attempt may have put the write into the log:
	// it was sent, and no answer said what became of it.
	unsure bool
	// retry says to settle that the write is to be sent again.
	retry bool
	// segment and offset are its place in the spool, if there is one.
	segment *segment
	offset  int64
}

// A queue holds the writes until they are answered for good. It hands out at
// most one write of an id at a time, so that none overtakes another. Every
// operation takes constant time for each write it is about.
type queue struct {
	writesMax, bytesMax int
	failWhenFull        bool
	batchAgeMax         time.Duration
	// wake tells the sender that a batch may be due; it holds one such word.
	wake chan struct{}

	mu     sync.Mutex
	closed bool
	limits batchLimits
	// writes and bytes are the room taken, by writes that are in the queue or
	// about to be; waiting are the *waiter for more, first come, first served.
	writes, bytes int
	waiting       list.List
	// seq is that of the newest write.
	seq            uint64
	oldest, newest *write
	// latest is the newest unanswered write of each id.
	latest map[string]*write
	// ready are writes that were never sent and that no earlier write of their
	// id holds back, in order; again those to be sent before them: once more, or
	// freed by an answer.
	ready fifo
	again []*write
	// flushes wait, in order; all writes up to flushSeq are due.
	flushes  []*flush
	flushSeq uint64
}

// waiter is a call that waits for room.
type waiter struct {
	bytes int
	// done gets nil with the room, or ErrClosed.
	done chan error
}

// flush is a call that waits until all writes up to seq are answered.
type flush struct {
	seq  uint64
	done chan struct{}
}

// fifo links writes by next.
type fifo struct {
	head, tail    *write
	writes, bytes int
}

func (f *fifo) push(w *write) {
	if f.head == nil {
		f.head = w
	} else {
		f.tail.next = w
	}
	f.tail = w
	f.writes++
	f.bytes += len(w.item)
}

func (f *fifo) pop() *write {
	w := f.head
	f.head, w.next = w.next, nil
	f.writes--
	f.bytes -= len(w.item)
	return w
}

func newQueue(o *Options) *queue {
	return &queue{
		writesMax: o.QueueWritesMax, bytesMax: o.QueueBytesMax, failWhenFull: o.FailWhenFull,
		batchAgeMax: o.BatchAgeMax,
		limits:      newBatchLimits(o.BatchWritesMax, o.BatchBytesMax),
		wake:        make(chan struct{}, 1),
		latest:      make(map[string]*write),
	}
}

// reserve takes room for a write, and waits for it if it may. The room is
// given up by unreserve, or when the write that was pushed is answered.
func (q *queue) reserve(ctx context.Context, bytes int) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	if q.waiting.Len() == 0 && q.fits(bytes) {
		q.take(bytes)
		q.mu.Unlock()
		return nil
	}
	if q.failWhenFull || bytes > q.bytesMax {
		q.mu.Unlock()
		return ErrQueueFull
	}
	w := &waiter{bytes: bytes, done: make(chan error, 1)}
	place := q.waiting.PushBack(w)
	q.mu.Unlock()

	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case err := <-w.done: // at the same moment
		return err
	default:
	}
	q.waiting.Remove(place)
	q.admit() // it may have been the one in the way
	return fmt.Errorf("%w: %w", ErrQueueFull, ctx.Err())
}

func (q *queue) unreserve(bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free(bytes)
	q.admit()
}

func (q *queue) fits(bytes int) bool { return q.writes < q.writesMax && q.bytes+bytes <= q.bytesMax }
func (q *queue) take(bytes int)      { q.writes++; q.bytes += bytes }
func (q *queue) free(bytes int)      { q.writes--; q.bytes -= bytes }

// admit gives room to those who wait for it.
func (q *queue) admit() {
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		w := e.Value.(*waiter)
		if !q.fits(w.bytes) {
			return
		}
		q.take(w.bytes)
		q.waiting.Remove(e)
		w.done <- nil
	}
}

// push queues a write that has its room.
func (q *queue) push(w *write, now time.Time) error {
	q.mu.Lock()
	if q.closed { // since it got its room, which nobody needs any more
		q.mu.Unlock()
		return ErrClosed
	}
	q.link(w, now)
	sendable := len(q.again) + q.ready.writes
	due := sendable == 1 || sendable >= q.limits.writes || q.ready.bytes >= q.limits.bytes
	q.mu.Unlock()
	if due {
		q.poke()
	}
	return nil
}

// link puts the write behind all others, and behind the others of its id.
func (q *queue) link(w *write, now time.Time) {
	q.seq++
	w.seq, w.queued = q.seq, now
	if w.older = q.newest; w.older != nil {
		w.older.newer = w
	} else {
		q.oldest = w
	}
	q.newest = w
	if before := q.latest[w.id]; before != nil {
		before.follower = w
	} else {
		q.ready.push(w)
	}
	q.latest[w.id] = w
}

// restore queues what a spool held, without asking for room.
func (q *queue) restore(writes []*write, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range writes {
		q.take(len(w.item))
		q.link(w, now)
	}
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next returns the batch that is due; or none and how long until one is,
// negative where that is not known.
func (q *queue) next(now time.Time) (batch []*write, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first, writes, bytes := q.ready.head, len(q.again)+q.ready.writes, q.ready.bytes
	if first == nil && len(q.again) == 0 {
		return nil, -1
	}
	flushed := first != nil && first.seq <= q.flushSeq
	for _, w := range q.again {
		bytes += len(w.item)
		flushed = flushed || w.seq <= q.flushSeq
		if first == nil || w.seq < first.seq {
			first = w
		}
	}
	wait = q.batchAgeMax - now.Sub(first.queued)
	if !flushed && wait > 0 && writes < q.limits.writes && bytes < q.limits.bytes {
		return nil, wait
	}

	batch = make([]*write, 0, min(writes, q.limits.writes))
	size := 0
	fits := func(w *write) bool {
		size += len(w.item)
		return len(batch) == 0 || len(batch) < q.limits.writes && size <= q.limits.bytes
	}
	for _, w := range q.again {
		if !fits(w) {
			q.again = slices.Delete(q.again, 0, len(batch))
			return batch, 0
		}
		batch = append(batch, w)
	}
	q.again = slices.Delete(q.again, 0, len(q.again))
	for q.ready.head != nil && fits(q.ready.head) {
		batch = append(batch, q.ready.pop())
	}
	return batch, 0
}

// adjust changes the limits of the batches that next returns.
func (q *queue) adjust(change func(*batchLimits)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change(&q.limits)
}

// putBack takes back a batch of next's to be sent again before all else, with
// the limits as change leaves them.
func (q *queue) putBack(batch []*write, change func(*batchLimits)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.again = append(batch, q.again...)
	change(&q.limits)
}

// settle takes back a batch of next's: what has retry set is sent again, the
// rest is done with. It returns the oldest write that is still unanswered.
func (q *queue) settle(batch []*write) (oldest *write) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range batch {
		if w.retry {
			w.retry = false
			q.again = append(q.again, w)
			continue
		}
		q.unlink(w)
		q.free(len(w.item))
		if w.follower != nil {
			q.again = append(q.again, w.follower)
		} else {
			delete(q.latest, w.id)
		}
	}
	q.admit()
	for len(q.flushes) > 0 && q.answered(q.flushes[0].seq) {
		close(q.flushes[0].done)
		q.flushes = slices.Delete(q.flushes, 0, 1)
	}
	return q.oldest
}

func (q *queue) unlink(w *write) {
	if w.older != nil {
		w.older.newer = w.newer
	} else {
		q.oldest = w.newer
	}
	if w.newer != nil {
		w.newer.older = w.older
	} else {
		q.newest = w.older
	}
	w.older, w.newer = nil, nil
}

// answered reports whether all writes up to seq are.
func (q *queue) answered(seq uint64) bool { return q.oldest == nil || q.oldest.seq > seq }

// flush waits until all that is queued is answered, or ctx ends. It returns how
// many of these writes are left.
func (q *queue) flush(ctx context.Context) (left int) {
	q.mu.Lock()
	f := &flush{seq: q.seq, done: make(chan struct{})}
	if q.answered(f.seq) {
		q.mu.Unlock()
		return 0
	}
	q.flushSeq = f.seq
	q.flushes = append(q.flushes, f)
	q.mu.Unlock()
	q.poke()

	select {
	case <-f.done:
		return 0
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flushes = slices.DeleteFunc(q.flushes, func(other *flush) bool { return other == f })
	return q.left(f.seq)
}

// left counts the unanswered writes up to seq.
func (q *queue) left(seq uint64) (n int) {
	for w := q.oldest; w != nil && w.seq <= seq; w = w.newer {
		n++
	}
	return n
}

// close refuses all further writes, also those that wait for room.
func (q *queue) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	q.closed = true
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		q.waiting.Remove(e).(*waiter).done <- ErrClosed
	}
	return nil
}

// abandoned counts what is left once the queue is closed and no longer sent.
func (q *queue) abandoned() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.left(q.seq)
}

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}
