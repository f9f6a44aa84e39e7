// Package fulltest runs the whole library, as a program has it: hosts with real goroutines and the real
// transport, over connections and disks in memory, in bubbles with a fake clock (testing/synctest). The
// simulator in internal/sim finds what is wrong with the protocol; this finds what only goroutines can get wrong:
// callbacks that never come, or twice, shutdowns that hang, deadlocks, leaks, timers that never rest.
//
// Each scenario is played with many seeds. A seed decides the moment at which something is shut down and
// whom it hits; the order in which goroutines run is the scheduler's, so that a seed narrows a failure down
// and does not replay it.
//
//	go test ./internal/fulltest -fulltest.rounds=50 -timeout 0
//	go test ./internal/fulltest -run 'TestShutdown/joint' -fulltest.seed=17 -v
package fulltest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
)

var (
	rounds  = flag.Int("fulltest.rounds", 1, "how many times as many seeds as usual")
	oneSeed = flag.Uint64("fulltest.seed", 0, "play this seed only, and log what the hosts say")
	from    = flag.Uint64("fulltest.from", 1, "the first seed")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seeds plays a scenario in bubbles of its own, at other moments each time. In a short run, and under the race
// detector, there are fewer.
func seeds(t *testing.T, usual int, play func(t *testing.T, seed uint64)) {
	first, count := *from, usual**rounds
	if *oneSeed != 0 {
		first, count = *oneSeed, 1
	} else if raceEnabled || testing.Short() {
		count = max(count/4, 1)
	}
	for i := range count {
		seed := first + uint64(i)
		ok := t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { play(t, seed) })
		})
		if !ok {
			t.Logf("again: go test ./internal/fulltest -run '^%s$' -fulltest.seed=%d -v", strings.ReplaceAll(t.Name(), "/", "$/^"), seed)
			return
		}
	}
}

// dice returns a seed's generator for one purpose.
func dice(seed, purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, purpose)) }

// logger is nil unless somebody looks at one seed.
func logger(t *testing.T) *zap.Logger {
	if *oneSeed == 0 {
		return nil
	}
	return zaptest.NewLogger(t)
}
