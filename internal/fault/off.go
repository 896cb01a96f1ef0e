//go:build !faults

package fault

import "time"

// Point is a place at which a test build can be killed.
func Point(string) {}

// Planted reports whether a test build has the bug.
func Planted(Bug) bool { return false }

// Now is [time.Now], but for a test build whose clock jumps.
func Now() time.Time { return time.Now() }
