package sluice

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A write is a queued create, update, patch or delete of one event.
type write struct {
	op   Op
	id   string
	item []byte // the line of NDJSON with its newline; never changed
	// seq is the write's place in the order of the calls, from 1.
	seq    uint64
	queued time.Time
	// older and newer link all unanswered writes. follower is the next write of
	// the same id. next links the writes of queue.ready.
	older, newer, follower, next *write
	// tried is when the write was first sent.
	tried time.Time
	// minted is whether this library minted the id of this create.
	minted bool
	// unsure is whether an earlier attempt may have reached the log: the write was
	// sent, and no answer told its result.
	unsure bool
	// retry tells queue.settle that the write is to be sent again.
	retry bool
	// segment and offset are the write's place in the spool, if there is one.
	segment *segment
	offset  int64
}

// A queue is the bounded queue of all writes that have no final answer. It hands
// out at most one write of an id at a time, so that no write overtakes another
// write of its id. Each operation takes constant time per write.
type queue struct {
	writesMax, bytesMax int
	failWhenFull        bool
	batchAgeMax         time.Duration
	// wake signals the sender that a batch may be due. Its capacity is 1.
	wake chan struct{}

	mu     sync.Mutex
	closed bool
	limits batchLimits
	// writes and bytes are the room taken, by queued writes and by reservations.
	writes, bytes int
	// waiting has the *waiter of each call that waits for room, in order.
	waiting list.List
	// seq is the sequence number of the newest write.
	seq            uint64
	oldest, newest *write
	// latest is the newest unanswered write of each id.
	latest map[string]*write
	// ready has the writes that were never sent and wait for no earlier write of
	// their id, in order.
	ready fifo
	// again has the writes to be sent before ready: retries, and writes whose
	// earlier write of the same id was answered.
	again []*write
	// flushes has the waiting flushes in order. All writes up to flushSeq are due.
	flushes  []*flush
	flushSeq uint64
}

// waiter is a call that waits for room.
type waiter struct {
	bytes int
	// done gets nil when the call has its room, or ErrClosed.
	done chan error
}

// flush is a call that waits until all writes up to seq are answered.
type flush struct {
	seq  uint64
	done chan struct{}
}

// fifo is a list of writes, linked by next.
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

// reserve reserves room for a write of the given size. If there is none, it waits,
// or returns [ErrQueueFull] with failWhenFull. The room is freed by unreserve, or
// when the pushed write is answered.
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
	case err := <-w.done: // the room came in the same moment
		return err
	default:
	}
	q.waiting.Remove(place)
	q.admit() // smaller writes behind this one may fit
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

// admit gives room to waiting calls, in order, as far as there is room.
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

// push queues a write that has reserved its room.
func (q *queue) push(w *write, now time.Time) error {
	q.mu.Lock()
	if q.closed { // after the reservation, whose room nobody needs any more
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

// link appends the write to the list of all writes. If its id has an unanswered
// write, it becomes the follower of that write; otherwise it is ready.
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

// restore queues the writes of a spool. It takes their room even if that exceeds
// the bounds.
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

// next returns the batch that is due. If none is due, it returns nil and the time
// until one is; the time is negative if the queue has nothing to send.
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

// putBack takes back a batch of next, to be sent again before all other writes,
// and changes the limits.
func (q *queue) putBack(batch []*write, change func(*batchLimits)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.again = append(batch, q.again...)
	change(&q.limits)
}

// settle ends a batch of next. Writes with retry set are sent again. The other
// writes are answered: they leave the queue, their room is freed, and their
// followers become ready. It returns the oldest unanswered write, or nil.
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

// answered reports whether all writes up to seq are answered.
func (q *queue) answered(seq uint64) bool { return q.oldest == nil || q.oldest.seq > seq }

// flush waits until all writes that are queued now are answered, or ctx ends. It
// returns how many of them are left.
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

// close refuses all further writes, including writes that wait for room.
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

// abandoned counts the unanswered writes after the queue is closed and the sender
// has stopped.
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
