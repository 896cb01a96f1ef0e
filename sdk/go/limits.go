package sluice

// growAfterBatches is the number of accepted batches in a row after which a
// lowered byte limit is doubled, to find out whether larger batches pass again.
const growAfterBatches = 100

// batchLimits are the current limits of a batch. They begin as the options say.
// They are lowered when a batch is refused as a whole, and raised again after
// batches were accepted. The queue's lock guards them.
type batchLimits struct {
	writesMax, bytesMax int // from the options
	writes, bytes       int // the current limits, 1 or more
	accepted            int // accepted batches in a row since bytes last changed
}

func newBatchLimits(writesMax, bytesMax int) batchLimits {
	return batchLimits{writesMax: writesMax, bytesMax: bytesMax, writes: writesMax, bytes: bytesMax}
}

// tooLarge lowers the byte limit after a batch of the given size was too large.
// The next batch has at most half of it, or one write.
func (l *batchLimits) tooLarge(bytes int) {
	l.bytes = max(1, min(l.bytes, bytes/2))
	l.accepted = 0
}

// halve halves the number of writes of the next batches, until one of them is
// accepted.
func (l *batchLimits) halve(writes int) { l.writes = max(1, writes/2) }

// ok raises the limits after a batch was answered write by write.
func (l *batchLimits) ok() {
	l.writes = l.writesMax
	if l.bytes == l.bytesMax {
		return
	}
	if l.accepted++; l.accepted >= growAfterBatches {
		l.bytes, l.accepted = min(2*l.bytes, l.bytesMax), 0
	}
}
