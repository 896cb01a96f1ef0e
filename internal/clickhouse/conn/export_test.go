package conn

import "net"

// NewConn returns what the client of a pool reads from and writes to.
func NewConn(c net.Conn) net.Conn { return &abortableConn{Conn: c} }
