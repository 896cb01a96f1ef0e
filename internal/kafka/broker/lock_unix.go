//go:build linux || darwin || freebsd || netbsd || openbsd

package broker

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks the file for this process until unlock is called or the process
// ends, in whatever way. The error wraps [ErrLocked] if another process has it.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator names the directory
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
