package main

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// schedule has the quickest tests of a package run first, since the first that fails ends it all: most mutants are caught by one of
// hundreds that together take seconds, while a few wait for minutes. How long they take is measured once, without a mutant.
//
// Ownership: safe for concurrent use. mu is a leaf lock.
type schedule struct {
	mu    sync.Mutex
	tried map[string]int // mutants to try, by tier
	known map[string][][]string
}

// worthwhile is how many mutants there have to be for a tier's tests to be measured.
const worthwhile = 8

func newSchedule(o options, mutants []mutant) *schedule {
	s := &schedule{tried: make(map[string]int), known: make(map[string][][]string)}
	for i := range mutants {
		for _, name := range o.tiersOf(&mutants[i]) {
			s.tried[name]++
		}
	}
	return s
}

// everything is the only portion where nothing is known.
func everything() [][]string { return [][]string{nil} }

// prepare measures a tier's tests if that is worth its while and was not begun yet. measure runs all of them and returns what they
// print with -test.v.
func (s *schedule) prepare(name string, measure func() (output string, err error)) error {
	s.mu.Lock()
	_, begun := s.known[name]
	worth := !begun && tiers[name].whole && s.tried[name] >= worthwhile
	if worth {
		s.known[name] = everything()
	}
	s.mu.Unlock()
	if !worth {
		return nil
	}
	output, err := measure()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[name] = cut(timesOf(output))
	return nil
}

// portions are further arguments for a tier's test binary, of which each has other tests run.
func (s *schedule) portions(name string) [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[name]; known != nil {
		return known
	}
	return everything()
}

// timed is a test that takes so many seconds.
type timed struct {
	test    string
	seconds float64
}

var testEnded = regexp.MustCompile(`(?m)^--- PASS: (Test\w+) \(([0-9.]+)s\)$`)

// timesOf reads what a test binary has printed with -test.v.
func timesOf(output string) (all []timed) {
	for _, m := range testEnded.FindAllStringSubmatch(output, -1) {
		seconds, _ := strconv.ParseFloat(m[2], 64) // the expression lets numbers through only
		all = append(all, timed{m[1], seconds})
	}
	return all
}

// cut makes portions of tests: the quickest, that take a twentieth of the time, those that take a quarter with them, and the rest,
// with all that is not known.
func cut(all []timed) (portions [][]string) {
	slices.SortStableFunc(all, func(a, b timed) int {
		switch {
		case a.seconds < b.seconds:
			return -1
		case a.seconds > b.seconds:
			return 1
		}
		return 0
	})
	total := 0.0
	for _, t := range all {
		total += t.seconds
	}
	var before, names []string
	sum := 0.0
	for _, share := range []float64{.05, .25} {
		names = nil
		for len(all) > 0 && sum+all[0].seconds <= share*total {
			names = append(names, all[0].test)
			sum += all[0].seconds
			all = all[1:]
		}
		if len(names) > 0 {
			portions = append(portions, []string{"-test.run=" + oneOf(names)})
			before = append(before, names...)
		}
	}
	if len(before) == 0 {
		return everything()
	}
	return append(portions, []string{"-test.skip=" + oneOf(before)})
}

// oneOf is an expression for tests with these names.
func oneOf(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }
