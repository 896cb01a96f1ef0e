package engine

import "syscall"

// childAttr puts the child into a session of its own, so that a Ctrl-C for the parent does not
// reach it. The kernel kills the child when the parent ends. The end of its standard input
// would stop the child too, but a busy server notices that late.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}
