//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package sluice

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks the file until unlock is called or the process ends in any way.
// It returns [ErrSpoolInUse] if another client has the lock.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the caller names the directory
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrSpoolInUse
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
