package sluice

import "iter"

const SegmentBytesMax = segmentBytesMax

// GrowAfterBatches is the number of accepted batches after which a lowered limit is doubled.
const GrowAfterBatches = growAfterBatches

var MayFollow = mayFollow

// ServerTime and ClockOffset detect a wrong clock.
var (
	ServerTime  = serverTime
	ClockOffset = clockOffset
)

// SpooledWrite is a write that a segment contains.
type SpooledWrite struct {
	Op     Op
	ID     string
	Item   []byte
	Offset int64
}

// ReadSegment parses a segment's data, beginning at an offset.
func ReadSegment(data []byte, from int64) (iter.Seq[SpooledWrite], []error) {
	writes, corrupt := new(segment).read(data, from)
	return func(yield func(SpooledWrite) bool) {
		for _, w := range writes {
			if !yield(SpooledWrite{w.op, w.id, w.item, w.offset}) {
				return
			}
		}
	}, corrupt
}

// ParseDone parses the file done.
func ParseDone(text []byte) (segment, offset int64) {
	done := parseDone(text)
	return done.segment, done.offset
}
