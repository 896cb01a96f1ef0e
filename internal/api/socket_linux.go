package api

import (
	"os"
	"syscall"
)

// unsentBytesMax is how much of an answer the kernel keeps for a reader before
// the network takes it. It bounds the kernel's memory for readers that are slow,
// where it would keep up to 4 MiB for each, and does not slow others: what is on
// its way does not count.
const unsentBytesMax = 128 << 10

// tcpNotsentLowat is TCP_NOTSENT_LOWAT, which package syscall lacks.
const tcpNotsentLowat = 25

// limitUnsent is for [net.ListenConfig]: connections inherit the option.
func limitUnsent(_, _ string, c syscall.RawConn) error {
	var err error
	if controlErr := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, unsentBytesMax))
	}); controlErr != nil {
		return controlErr
	}
	return err
}
