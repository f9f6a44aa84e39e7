package rpc

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unacknowledged returns how many bytes the socket holds that the peer has not acknowledged, 0 if it does not say.
func unacknowledged(raw syscall.RawConn) (n int) {
	if raw == nil {
		return 0
	}
	err := raw.Control(func(fd uintptr) {
		var err error
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			n = 0
		}
	})
	if err != nil {
		return 0
	}
	return n
}
