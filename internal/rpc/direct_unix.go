//go:build unix

package rpc

import "syscall"

const canWriteDirect = true

// write writes what the socket takes without waiting, and returns how much that was. An error
// will meet the writer again, which gets the rest.
func (d *direct) write(b []byte) (n int) {
	err := d.raw.Control(func(fd uintptr) {
		for {
			var err error
			n, err = syscall.Write(int(fd), b)
			if err != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return 0
	}
	return max(n, 0)
}
