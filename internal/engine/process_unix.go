//go:build unix && !linux

package engine

import "syscall"

// childAttr puts the child in a process group of its own, out of reach of a Ctrl-C meant for the
// parent. That the parent is gone it learns from its standard input.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true}
}
