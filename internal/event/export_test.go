package event

// NewMinter returns a function that mints as [NewID] does in a process whose
// first id has the count first.
func NewMinter(first uint64) func(micros int64, conversationID string) ID {
	return newMinter(first).mint
}

// RandomCount is randomCount.
func RandomCount() uint64 { return randomCount() }
