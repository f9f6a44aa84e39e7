//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package vfs

import (
	"os"
	"syscall"
)

// lockFile takes the flock of f without waiting. It belongs to the open file
// description, so another one of the same file is refused in this process too.
func lockFile(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var lock error
	err = raw.Control(func(fd uintptr) {
		for lock = syscall.EINTR; lock == syscall.EINTR; {
			lock = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB)
		}
	})
	if err != nil {
		return err
	}
	if lock == syscall.EWOULDBLOCK {
		return ErrLocked
	}
	return lock
}
