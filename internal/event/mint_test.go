package event_test

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicehq/sluice/internal/event"
)

func compareIDs(a, b event.ID) int { return bytes.Compare(a[:], b[:]) }

// TestNewIDConcurrent has goroutines mint for one conversation and time: the
// ids of each ascend, and no two of all are alike.
func TestNewIDConcurrent(t *testing.T) {
	const goroutines, each = 8, 5_000
	minted := make([][]event.ID, goroutines)
	var wg sync.WaitGroup
	for g := range minted {
		wg.Go(func() {
			for range each {
				minted[g] = append(minted[g], event.NewID(now.UnixMicro(), "c1"))
			}
		})
	}
	wg.Wait()
	for g, ids := range minted {
		if !slices.IsSortedFunc(ids, compareIDs) {
			t.Errorf("the ids of goroutine %d do not ascend", g)
		}
	}
	all := slices.Concat(minted...)
	slices.SortFunc(all, compareIDs)
	if n := len(slices.Compact(all)); n != goroutines*each {
		t.Errorf("%d ids of %d are distinct", n, goroutines*each)
	}
}

// TestNewIDOneHash mints for two conversations with one hash, which is all of a
// conversation that an id has.
func TestNewIDOneHash(t *testing.T) {
	byHash := make(map[uint32]string)
	var pair [2]string
	for i := 0; pair[0] == ""; i++ {
		name := fmt.Sprint("c", i)
		hash := event.ConversationHash(name)
		if other, ok := byHash[hash]; ok {
			pair = [2]string{other, name}
		}
		byHash[hash] = name
	}
	var last event.ID
	for i := range 10_000 {
		id := event.NewID(now.UnixMicro(), pair[i%2])
		if compareIDs(last, id) >= 0 {
			t.Fatalf("id %d: %s after %s", i, id, last)
		}
		last = id
	}
}

// TestRandomCount draws where 64 processes begin. By chance alone it fails once
// in 10^7 runs.
func TestRandomCount(t *testing.T) {
	var counts []uint64
	var ones uint64
	for range 64 {
		count := event.RandomCount()
		if count >= 1<<37 {
			t.Errorf("%d is not below 2^37", count)
		}
		counts = append(counts, count)
		ones |= count
	}
	slices.Sort(counts)
	if len(slices.Compact(counts)) != 64 {
		t.Error("two processes begin with the same number")
	}
	if ones != 1<<37-1 {
		t.Errorf("bits %b are set in none of 64 draws", ones^(1<<37-1))
	}
}

// TestClockConcurrent has goroutines read a clock that stands still: no time
// is given out twice.
func TestClockConcurrent(t *testing.T) {
	const goroutines, each = 8, 20_000
	var clock event.Clock
	times := make([][]int64, goroutines)
	var wg sync.WaitGroup
	for g := range times {
		wg.Go(func() {
			for range each {
				times[g] = append(times[g], clock.Next(now).UnixMicro())
			}
		})
	}
	wg.Wait()
	for g := range times {
		if !slices.IsSortedFunc(times[g], cmp.Compare) {
			t.Errorf("the times of goroutine %d do not ascend", g)
		}
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	if all[0] != now.UnixMicro() || all[len(all)-1] != now.UnixMicro()+goroutines*each-1 || len(slices.Compact(all)) != goroutines*each {
		t.Errorf("from %d to %d, of %d", all[0], all[len(all)-1], now.UnixMicro())
	}
}

// TestClockAhead has a process receive more than the microseconds that pass: its
// times stop five seconds ahead, and go on once the clock has caught up.
func TestClockAhead(t *testing.T) {
	var clock event.Clock
	clock.Next(now.Add(event.ClockAheadMax - 100*time.Millisecond))
	for range 200_000 {
		clock.Next(now)
	}
	if ahead := clock.Next(now).Sub(now.Truncate(time.Microsecond)); ahead != event.ClockAheadMax {
		t.Errorf("%v ahead, want %v", ahead, event.ClockAheadMax)
	}
	later := now.Add(event.ClockAheadMax + time.Minute)
	if got := clock.Next(later); !got.Equal(later.Truncate(time.Microsecond)) {
		t.Errorf("got %v, want %v", got, later)
	}
}
