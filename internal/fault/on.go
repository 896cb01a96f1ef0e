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

// plan is what the process is to do, said once by its environment.
//
//nolint:gochecknoglobals // of a test build alone
var plan = planOf(os.Getenv)

type planned struct {
	point  at
	passed atomic.Int64
	// start is that of the process, from how long after it the clock is wrong
	// by jump.
	start      time.Time
	jump, from time.Duration
}

func planOf(variable func(string) string) *planned {
	p := &planned{point: pointOf(variable(PointVariable)), start: time.Now()}
	p.jump, p.from = clockOf(variable(ClockVariable))
	return p
}

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
	if name == plan.point.name && plan.passed.Add(1) == plan.point.passes {
		_ = syscall.Kill(os.Getpid(), plan.point.signal)
		if plan.point.signal == syscall.SIGKILL {
			select {} // until it has come
		}
	}
}

// Now is the time of a clock that jumps when [ClockVariable] says.
func Now() time.Time {
	now := time.Now()
	if now.Sub(plan.start) < plan.from {
		return now
	}
	return now.Add(plan.jump)
}
