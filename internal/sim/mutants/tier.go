package main

import (
	"regexp"
	"strconv"
	"strings"
)

// tier is a set of tests that may catch a mutant.
type tier struct {
	pkg    string
	seeded bool     // one seed after the other, as many as it takes
	whole  bool     // all tests of the package
	args   []string // for the test binary
}

// tiers are named in the headers of patches. Of the simulator, sim is what one seed after the other finds, scenes are the
// stories that were written down.
var tiers = map[string]tier{
	"sim":      {"./internal/sim", true, false, []string{"-test.run=^TestSimulation$", "-sim.first"}},
	"scenes":   {"./internal/sim", false, false, []string{"-test.skip=^(TestSimulation|TestDeterminism)$", "-test.failfast"}},
	"cuts":     {"./internal/sim", false, false, []string{"-test.run=^TestPowerCutAtEachPoint$", "-test.failfast", "-sim.cuts=150"}},
	"root":     {".", false, true, []string{"-test.failfast"}},
	"full":     {"./internal/fulltest", false, true, []string{"-test.failfast"}},
	"wal":      {"./internal/wal", false, true, []string{"-test.failfast"}},
	"snapdir":  {"./internal/snapdir", false, true, []string{"-test.failfast"}},
	"rpc":      {"./internal/rpc", false, true, []string{"-test.failfast"}},
	"progress": {"./internal/progress", false, true, []string{"-test.failfast"}},
	"election": {"./internal/election", false, true, []string{"-test.failfast"}},
	"entry":    {"./internal/entry", false, true, []string{"-test.failfast"}},
	"actor":    {"./internal/actor", false, true, []string{"-test.failfast"}},
}

// finding is what tests have found.
type finding struct {
	test    string // which failed; empty if that cannot be told: the process ended
	seed    uint64 // of the simulator; 0: none
	message string
}

var (
	failedTest = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
	failedSeed = regexp.MustCompile(`-sim\.seed=(\d+)`)
	complaint  = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)$`)
	cause      = regexp.MustCompile(`^\s+Error:\s+(.*)$`) // of testify, below a complaint without text
	ended      = regexp.MustCompile(`(?m)^(panic: .*|fatal error: .*|goleak: .*|WARNING: DATA RACE)$`)
	inTest     = regexp.MustCompile(`(?m)^\S+\.(Test\w+)\(`) // in the trace of a panic
)

// read makes a finding of what failed tests have printed.
func read(output string) (f finding) {
	if m := failedSeed.FindStringSubmatch(output); m != nil {
		f.seed, _ = strconv.ParseUint(m[1], 10, 64) // the expression lets digits through only
	}
	rest := output
	if m := failedTest.FindStringSubmatchIndex(output); m != nil {
		f.test, rest = output[m[2]:m[3]], output[m[1]:]
	}
	if m := ended.FindString(output); m != "" {
		f.message = m
		if t := inTest.FindStringSubmatch(output); t != nil && f.test == "" {
			f.test = t[1]
		}
		return f
	}
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		if f.seed != 0 && failedSeed.MatchString(line) {
			break // what went wrong stands directly above
		}
		if m := complaint.FindStringSubmatch(line); m != nil && (f.message == "" || f.seed != 0) {
			f.message = strings.TrimSpace(m[1])
		} else if m := cause.FindStringSubmatch(line); m != nil && f.message == "" {
			f.message = strings.TrimSpace(m[1])
		}
	}
	return f
}
