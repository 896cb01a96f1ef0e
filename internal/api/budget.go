package api

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// use is what a request holds memory for.
type use uint8

const (
	// forBodies is for bodies that are being read or wait for the log, and for
	// what is made of them.
	forBodies use = iota
	// forEvents is for events on their way to a reader.
	forEvents
	// forRows is for the rows of analytics on their way to a reader.
	forRows
	uses
)

// budget bounds the bytes that all requests hold at once. Each use has a share
// of its own, so that readers never starve writers, nor writers readers.
type budget [uses]share

// newBudget divides bytesMax. Answers get answersMax of it: one half for events,
// the other for rows.
func newBudget(bytesMax, answersMax int64) *budget {
	b := new(budget)
	b[forBodies].max = bytesMax - answersMax
	b[forEvents].max = answersMax / 2
	b[forRows].max = answersMax / 2
	return b
}

// share is the memory of one use.
type share struct {
	max int64

	mu   sync.Mutex
	used int64
	// waiting are the waiters that have found no room, in the order in which they
	// came.
	waiting list.List
}

type waiter struct {
	bytes int64
	ready chan struct{}
}

// take reserves n bytes, or reports false.
func (s *share) take(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.Len() > 0 || s.used+n > s.max {
		return false
	}
	s.used += n
	return true
}

// wait reserves n bytes. It waits for them at most so long, behind those that
// came before it, and reports false where there was no room in time or ctx has
// ended.
func (s *share) wait(ctx context.Context, n int64, timeout time.Duration) bool {
	if s.take(n) {
		return true
	}
	w := &waiter{bytes: n, ready: make(chan struct{})}
	s.mu.Lock()
	place := s.waiting.PushBack(w)
	s.admit() // there may be room since
	s.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-w.ready:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.ready: // in the last moment
		return true
	default:
	}
	s.waiting.Remove(place)
	s.admit() // those behind it may need less
	return false
}

// give returns n bytes.
func (s *share) give(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	s.admit()
}

// admit reserves for those that wait, the first ones first. s.mu is held.
func (s *share) admit() {
	for first := s.waiting.Front(); first != nil; first = s.waiting.Front() {
		w := first.Value.(*waiter) //nolint:forcetypeassert // the list holds nothing else
		if s.used+w.bytes > s.max {
			return
		}
		s.used += w.bytes
		close(w.ready)
		s.waiting.Remove(first)
	}
}

// plenty reports whether most of the share is free.
func (s *share) plenty() bool { return s.held() < s.max/4 }

// held is how much is reserved.
func (s *share) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}
