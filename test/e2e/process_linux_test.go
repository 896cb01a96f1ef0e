package e2e_test

import "syscall"

// processAttr puts a process in a group of its own and ties it to this one.
func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
