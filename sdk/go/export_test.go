package sluice

import "iter"

const SegmentBytesMax = segmentBytesMax

// GrowAfterBatches is after how many batches a learned limit is tried anew.
const GrowAfterBatches = growAfterBatches

var MayFollow = mayFollow

// ServerTime and ClockOffset are what tells that a clock is wrong.
var (
	ServerTime  = serverTime
	ClockOffset = clockOffset
)

// SpooledWrite is what a segment has of a write.
type SpooledWrite struct {
	Op     Op
	ID     string
	Item   []byte
	Offset int64
}

// ReadSegment reads a segment's data from an offset on.
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

// ParseDone reads the file done.
func ParseDone(text []byte) (segment, offset int64) {
	done := parseDone(text)
	return done.segment, done.offset
}
