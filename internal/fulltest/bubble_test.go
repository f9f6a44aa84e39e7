package fulltest

import (
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// goroutines returns the stacks of the bubble's goroutines, but for the caller's own and those of the bubble itself.
func goroutines() (stacks []string) {
	b := make([]byte, 1<<20)
	for {
		n := runtime.Stack(b, true)
		if n < len(b) {
			b = b[:n]
			break
		}
		b = make([]byte, 2*len(b))
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n\n")
	bubble := bubbleOf(all[0]) // the caller's stack comes first
	for _, s := range all[1:] {
		if bubbleOf(s) == bubble && !strings.Contains(s, "testing/synctest.Test(") && !strings.Contains(s, "testing/synctest.testingSynctestTest(") {
			stacks = append(stacks, s)
		}
	}
	return stacks
}

// bubbleOf returns the number of the bubble that a stack's first line names, 0 if it is in none.
func bubbleOf(stack string) int {
	head, _, _ := strings.Cut(stack, "\n")
	_, number, ok := strings.Cut(head, "synctest bubble ")
	if !ok {
		return 0
	}
	number, _, _ = strings.Cut(number, "]")
	number, _, _ = strings.Cut(number, ",")
	n, err := strconv.Atoi(number)
	if err != nil {
		panic("unknown form of a goroutine's head: " + head)
	}
	return n
}

// noGoroutines fails the test if anything still runs or waits. The bubble would end in a panic, with less to read.
func noGoroutines(t *testing.T) {
	t.Helper()
	synctest.Wait()
	if left := goroutines(); len(left) > 0 {
		t.Fatalf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
	}
}

// in counts the stacks that a function is in.
func in(stacks []string, function string) (n int) {
	for _, s := range stacks {
		if strings.Contains(s, function) {
			n++
		}
	}
	return n
}

// until lets time pass in steps until cond holds, and fails the test after most.
func until(t *testing.T, step, most time.Duration, what string, cond func() bool) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(step) {
		synctest.Wait()
		if cond() {
			return
		}
		if time.Since(began) > most {
			t.Fatalf("not within %v: %s", most, what)
		}
	}
}
