//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package sluice

import "errors"

func lockFile(string) (unlock func() error, err error) {
	return nil, errors.New("a spool needs a file lock, which this operating system does not offer")
}
