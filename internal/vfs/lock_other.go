//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package vfs

import (
	"errors"
	"os"
)

// lockFile has no implementation here: two processes on one directory would
// destroy it, so starting is refused rather than risked.
func lockFile(*os.File) error { return errors.ErrUnsupported }
