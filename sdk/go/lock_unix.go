//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package sluice

import (
	"errors"
	"os"
	"syscall"
)

// lockFile takes the file for this client, until unlock is called or the
// process ends, however it ends. It returns [ErrSpoolInUse] if another has it.
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
