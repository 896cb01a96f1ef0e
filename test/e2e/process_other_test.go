//go:build !linux

package e2e_test

import "syscall"

// processAttr puts a process in a group of its own.
func processAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
