//go:build faults

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// What the process is to do, said once by its environment.
var ( //nolint:gochecknoglobals // of a test build alone
	point  = pointOf(os.Getenv(PointVariable))
	passed atomic.Int64
	bug    = Bug(os.Getenv(BugVariable))

	start      = time.Now()
	jump, from = clockOf(os.Getenv(ClockVariable))
)

type at struct {
	name   string
	passes int64
	signal syscall.Signal
}

func pointOf(value string) at {
	name, rest, _ := strings.Cut(value, ":")
	number, action, _ := strings.Cut(rest, ":")
	a := at{name, 1, syscall.SIGKILL}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		a.passes = n
	}
	if action == "stop" {
		a.signal = syscall.SIGSTOP
	}
	return a
}

func clockOf(value string) (jump, from time.Duration) {
	by, after, _ := strings.Cut(value, "@")
	jump, _ = time.ParseDuration(by) // none where it is not set
	from, _ = time.ParseDuration(after)
	return jump, from
}

// Point kills or stops the process at the pass of the point that
// [PointVariable] says.
func Point(name string) {
	if name == point.name && passed.Add(1) == point.passes {
		_ = syscall.Kill(os.Getpid(), point.signal)
		if point.signal == syscall.SIGKILL {
			select {} // until it has come
		}
	}
}

// Planted reports whether [BugVariable] says that the process has the bug.
func Planted(b Bug) bool { return b == bug }

// Now is the time of a clock that jumps when [ClockVariable] says.
func Now() time.Time {
	now := time.Now()
	if now.Sub(start) < from {
		return now
	}
	return now.Add(jump)
}
