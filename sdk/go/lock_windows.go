package sluice

import (
	"errors"
	"syscall"
)

const errSharingViolation syscall.Errno = 32

// lockFile locks the file until unlock is called or the process ends in any way.
// It returns [ErrSpoolInUse] if another client has the lock.
func lockFile(path string) (unlock func() error, err error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	// With sharing mode 0, nobody else can open the file.
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharingViolation) {
		return nil, ErrSpoolInUse
	}
	if err != nil {
		return nil, err
	}
	return func() error { return syscall.CloseHandle(h) }, nil
}
