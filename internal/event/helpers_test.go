package event_test

import (
	"time"
)

// now is when the tests' requests are received.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
