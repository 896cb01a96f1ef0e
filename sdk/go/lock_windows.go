package sluice

import (
	"errors"
	"syscall"
)

const errSharingViolation syscall.Errno = 32

// lockFile takes the file for this client, until unlock is called or the
// process ends, however it ends. It returns [ErrSpoolInUse] if another has it.
func lockFile(path string) (unlock func() error, err error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	// Sharing mode 0: nobody else may open it.
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
