//go:build unix && !linux

package engine

import "syscall"

// childAttr puts the child into a session of its own, so that a Ctrl-C for the parent does not
// reach it. The child stops when the parent ends, because its standard input ends then.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true}
}
