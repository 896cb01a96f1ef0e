// Package testport finds ports for the servers that tests start.
package testport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Free finds n ports of 127.0.0.1 that nothing listens on now. They are
// below those that systems give to outgoing connections, one of which could else
// have the port of a server that is down for a moment.
func Free(n int) ([]int, error) {
	const first, end, triesMax = 10_000, 32_768, 1000
	var ports []int
	for range triesMax {
		if len(ports) == n {
			return ports, nil
		}
		port := first + rand.IntN(end-first)                                           //nolint:gosec // no secret
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))) //nolint:noctx // returns at once
		if err != nil {
			continue // it is taken
		}
		defer func() { _ = l.Close() }() // all at the end, so that they differ
		ports = append(ports, port)
	}
	return nil, fmt.Errorf("no %d free ports found in %d tries", n, triesMax)
}
