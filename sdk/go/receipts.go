package sluice

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// receipts has the last receipt of each partition that has writes of this client.
type receipts struct {
	mu   sync.Mutex
	last map[int]receipt
}

// A receipt is a place in the log. Its text is generation.partition.offset.
type receipt struct{ generation, partition, offset int }

func (r *receipts) add(text string) {
	var (
		next receipt
		errs [3]error
	)
	generation, rest, _ := strings.Cut(text, ".")
	partition, offset, _ := strings.Cut(rest, ".")
	next.generation, errs[0] = strconv.Atoi(generation)
	next.partition, errs[1] = strconv.Atoi(partition)
	next.offset, errs[2] = strconv.Atoi(offset)
	if errors.Join(errs[:]...) != nil {
		return // the format of a later server, which cannot be compared
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[int]receipt)
	}
	last, ok := r.last[next.partition]
	if !ok || next.generation > last.generation || next.generation == last.generation && next.offset > last.offset {
		r.last[next.partition] = next
	}
}

func (r *receipts) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	texts := make([]string, 0, len(r.last))
	for _, last := range r.last {
		texts = append(texts, fmt.Sprintf("%d.%d.%d", last.generation, last.partition, last.offset))
	}
	slices.Sort(texts)
	return texts
}
