package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// diskFaults are what strace does to the system calls of one replica, N being when: strace counts for each thread by itself.
var diskFaults = []struct {
	name   string
	inject string
}{
	{"a sync fails", "fdatasync,fsync:error=EIO:when=%d"},
	{"syncs fail from then on", "fdatasync,fsync:error=EIO:when=%d+"},
	{"a sync finds no space", "fdatasync,fsync:error=ENOSPC:when=%d"},
	{"killed at a sync", "fdatasync,fsync:signal=KILL:when=%d"},
	{"killed at a write", "pwrite64,pwritev:signal=KILL:when=%d"},
	{"a write fails", "pwrite64,pwritev:error=EIO:when=%d"},
	{"no space to write", "pwrite64,pwritev:error=ENOSPC:when=%d+"},
	{"no space to make room", "fallocate:error=ENOSPC:when=1+"},
	{"syncs are slow", "fdatasync,fsync:delay_exit=100000:when=%d+"},
}

// tracer is strace with an injection. With -D it is no parent of what it traces, so the process is this one's child and can be
// killed as always.
func tracer(inject, log string) []string {
	calls, what, _ := strings.Cut(inject, ":")
	line := []string{"strace", "-D", "-f", "-q", "-s", "0", "-o", log, "-e", "signal=!urg"}
	line = append(line, "-e", "trace="+calls, "-e", "inject="+inject)
	if !strings.HasPrefix(what, "signal=") { // with it other calls cost nothing, but no signal comes
		line = slices.Insert(line, 1, "--seccomp-bpf")
	}
	return line
}

// requireStrace skips the test unless strace is there and may do what it is for.
func requireStrace(t *testing.T) {
	t.Helper()
	line := append(tracer("fsync:error=EIO:when=1", filepath.Join(t.TempDir(), "log")), "true")
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		t.Skipf("this takes strace, with -D and --seccomp-bpf, and the right to trace: %v: %s", err, out)
	}
}

// diskFault is one of diskFaults, for a nemesis.
func (n *nemesis) diskFault(i int) fault {
	f := diskFaults[i]
	return fault{f.name, func(n *nemesis, rng *rand.Rand) (string, func()) {
		v, when := n.victim(rng), 1+rng.IntN([]int{4, 40, 200}[rng.IntN(3)])
		p, inject := n.procs[v], f.inject
		if strings.Contains(inject, "%d") {
			inject = fmt.Sprintf(inject, when)
		}
		if p.tracer == nil {
			n.kill(p)
		}
		p.kill()
		log := filepath.Join(filepath.Dir(p.dir), fmt.Sprintf("strace-%d-%d", n.rounds, i))
		p.tracer = tracer(inject, log)
		p.start()
		struck := happened(log, 2*time.Second)
		if struck {
			n.hits++
		}
		return fmt.Sprintf("%d %s struck %v", v, inject, struck), func() {
			if p.tracer != nil {
				n.t.Logf("%s with %s: %q", p.raft, inject, p.info()["raft_error"])
				p.kill() // it may have ended, as it likes
				p.tracer = nil
				p.start()
			}
		}
	}}
}

// happened waits until strace has done what it was to do.
func happened(log string, within time.Duration) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		b, _ := os.ReadFile(log) // it may be yet to come
		for _, sign := range []string{"(INJECTED)", "(DELAYED)", "killed by SIGKILL"} {
			if bytes.Contains(b, []byte(sign)) {
				return true
			}
		}
	}
	return false
}

// Disks fail under one replica after another: a write or a sync fails, once or from some time on, there is no space left, the
// process is killed at exactly that moment, when it starts or later. The others go on; the replica says that it has
// failed or goes on too; started again on a good disk it joins in, and nothing that was acknowledged is lost.
func TestNemesisOfDisks(t *testing.T) {
	requireStrace(t)
	seed, d := nemesisSeed(t, 6)
	n := &nemesis{t: t, seed: seed, procs: newProcesses(t, nemesisTimeout), diskFull: true}
	n.lacks = func() bool { return n.hits == 0 }
	for i := range diskFaults {
		n.menu = append(n.menu, n.diskFault(i))
	}
	n.begin()
	n.run(d)
	n.finish()
	assert.NotZero(t, n.hits, "faults that happened")
}
