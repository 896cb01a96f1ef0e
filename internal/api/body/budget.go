package body

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// Use is what a request holds memory for.
type Use uint8

// The uses.
const (
	// ForBodies is for bodies that are being read or wait for the log, and for
	// what is made of them.
	ForBodies Use = iota
	// ForEvents is for events on their way to a reader.
	ForEvents
	// ForRows is for the rows of analytics on their way to a reader.
	ForRows
	// Uses is the number of uses.
	Uses = iota
)

// Budget bounds the bytes that all requests hold at once. Each use has a share of
// its own, so that readers never starve writers, nor writers readers.
type Budget [Uses]Share

// NewBudget divides bytesMax among the uses. Answers get answersMax of it: one half
// for events, the other for rows.
func NewBudget(bytesMax, answersMax int64) *Budget {
	b := new(Budget)
	b[ForBodies].max = bytesMax - answersMax
	b[ForEvents].max = answersMax / 2
	b[ForRows].max = answersMax / 2
	return b
}

// Share is the memory of one use. Its methods may be called concurrently.
type Share struct {
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

// Take reserves n bytes, or reports false.
func (s *Share) Take(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.Len() > 0 || s.used+n > s.max {
		return false
	}
	s.used += n
	return true
}

// Wait reserves n bytes. It waits for them up to the timeout, behind those that
// came before it, and reports false where there was no room in time or ctx has
// ended.
func (s *Share) Wait(ctx context.Context, n int64, timeout time.Duration) bool {
	if s.Take(n) {
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

// Give returns n bytes.
func (s *Share) Give(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	s.admit()
}

// admit reserves for those that wait, the first ones first. s.mu is held.
func (s *Share) admit() {
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

// Plenty reports whether most of the share is free.
func (s *Share) Plenty() bool { return s.Held() < s.max/4 }

// Held is how many bytes are reserved.
func (s *Share) Held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Max is how many bytes there are.
func (s *Share) Max() int64 { return s.max }
