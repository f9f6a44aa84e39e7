//go:build unix

package sim

import (
	"syscall"
	"time"
)

// cpuTime is how long this process has used a processor. Wall-clock time says little on a machine that is shared.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
