package actor

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// busy posts one message to each of n new actors, whose steps all run at once.
func busy(g *Goroutines, n int) {
	var entered, left sync.WaitGroup
	entered.Add(n)
	left.Add(n)
	for range n {
		a := New(g, "busy", func(_ time.Time, batch []int) time.Time {
			if len(batch) > 0 {
				entered.Done()
				entered.Wait()
				left.Done()
			}
			return noDeadline
		})
		a.Post(1)
	}
	left.Wait()
}

func idleWorkers(g *Goroutines) int {
	g.workers.mu.Lock()
	defer g.workers.mu.Unlock()
	return len(g.workers.idle)
}

func TestIdleWorkersAreUsedAgainAndThenEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGoroutines()
		for range 3 {
			busy(g, 10)
			synctest.Wait()
			if got := idleWorkers(g); got != 10 {
				t.Fatalf("%d workers linger after 10 were busy, want 10", got)
			}
		}
		time.Sleep(lingerTime / 2)
		busy(g, 4)
		for range 4 { // four stay in use, six are not needed
			time.Sleep(lingerTime / 2)
			busy(g, 4)
		}
		synctest.Wait()
		if got := idleWorkers(g); got != 4 {
			t.Errorf("%d workers linger while 4 are in use, want 4", got)
		}
		time.Sleep(2 * lingerTime)
		synctest.Wait()
		if got := idleWorkers(g); got != 0 || g.workers.armed {
			t.Errorf("%d workers linger after a quiet time, timer running: %v", got, g.workers.armed)
		}
		busy(g, 2) // and it starts anew
		time.Sleep(3 * lingerTime)
	})
}

func TestClosedExecutorKeepsNoWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGoroutines()
		busy(g, 5)
		synctest.Wait()
		g.Close()
		g.Close()
		synctest.Wait()
		if got := idleWorkers(g); got != 0 {
			t.Errorf("%d workers linger after Close", got)
		}
		busy(g, 5) // actors still run
		synctest.Wait()
		if got := idleWorkers(g); got != 0 {
			t.Errorf("%d workers linger that became idle after Close", got)
		}
	})
}

func TestSweepRacesRun(t *testing.T) {
	g := NewGoroutines()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				busy(g, 3)
				g.workers.sweep()
			}
		})
	}
	wg.Wait()
	g.Close()
}
