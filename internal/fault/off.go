//go:build !faults

package fault

import "time"

// Point is a place at which a test build can be killed.
func Point(string) {}

// Now is [time.Now], but for a test build whose clock jumps.
func Now() time.Time { return time.Now() }
