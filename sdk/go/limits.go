package sluice

// growAfterBatches is after how many accepted batches in a row a limit that was
// learned from a refusal is doubled, to find out whether it still holds.
const growAfterBatches = 100

// batchLimits are the limits of one batch: those of the options, and smaller
// ones for as long as something between here and the log refuses larger bodies.
// The queue's lock guards them.
type batchLimits struct {
	writesMax, bytesMax int // of the options
	writes, bytes       int // those that hold now, 1 or more
	accepted            int // batches in a row since bytes last changed
}

func newBatchLimits(writesMax, bytesMax int) batchLimits {
	return batchLimits{writesMax: writesMax, bytesMax: bytesMax, writes: writesMax, bytes: bytesMax}
}

// tooLarge learns that a batch of so many bytes is too large. The next batch is
// at most half of it, or one write.
func (l *batchLimits) tooLarge(bytes int) {
	l.bytes = max(1, min(l.bytes, bytes/2))
	l.accepted = 0
}

// halve has the next batches have at most half as many writes, until one of
// them is accepted.
func (l *batchLimits) halve(writes int) { l.writes = max(1, writes/2) }

// ok notes that a batch was answered write by write.
func (l *batchLimits) ok() {
	l.writes = l.writesMax
	if l.bytes == l.bytesMax {
		return
	}
	if l.accepted++; l.accepted >= growAfterBatches {
		l.bytes, l.accepted = min(2*l.bytes, l.bytesMax), 0
	}
}
