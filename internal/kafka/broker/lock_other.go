//go:build !(linux || darwin || freebsd || netbsd || openbsd)

package broker

import "errors"

func lockFile(string) (unlock func() error, err error) {
	return nil, errors.New("the embedded broker does not run on this operating system")
}
