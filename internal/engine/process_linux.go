package engine

import "syscall"

// childAttr puts the child in a process group of its own, out of reach of a Ctrl-C meant for the
// parent, and has the kernel kill it when the parent is gone: a closed standard input says the
// same, but a busy server takes its time to notice.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}
