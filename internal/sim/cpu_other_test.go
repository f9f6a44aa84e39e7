//go:build !unix

package sim

import "time"

var began = time.Now()

// cpuTime is the time that has passed: here nobody tells how much of it was used.
func cpuTime() time.Duration { return time.Since(began) }
