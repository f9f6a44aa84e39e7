package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// lab builds and runs tests, of the project as it is and with one mutant at a time. Files of the project are not touched: go
// is told to take others in their place.
type lab struct {
	o     options
	plan  *schedule
	dir   string            // temporary
	clean map[string]string // test binaries without a mutant, by package
	known map[string]error  // what tests have said without a mutant
}

// result is what became of a mutant.
type result struct {
	m    *mutant
	tier string
	finding
	seeds uint64 // that the simulator took
	took  time.Duration
	err   error // why it is not caught
}

func (r result) caught() bool { return r.err == nil }

// String is a row of the table.
func (r result) String() string {
	if r.err != nil {
		return fmt.Sprintf("%-48s NOT CAUGHT  %7.1fs  %v", r.m.name, r.took.Seconds(), r.err)
	}
	seeds, test := "-", r.test
	if r.seeds > 0 {
		seeds = strconv.FormatUint(r.seeds, 10)
	}
	if test == "" {
		test = "(the process ended)"
	}
	return fmt.Sprintf("%-48s %-8s  %6.1fs  %5s seeds  %s: %s", r.m.name, r.tier, r.took.Seconds(), seeds, test, short(r.message))
}

// short keeps a message on one line.
func short(s string) string {
	const most = 160
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}

func newLab(o options, plan *schedule) (*lab, error) {
	root, err := filepath.Abs(o.root)
	if err != nil {
		return nil, err
	}
	o.root = root
	dir, err := os.MkdirTemp("", "mutants-")
	return &lab{o: o, plan: plan, dir: dir, clean: make(map[string]string), known: make(map[string]error)}, err
}

func (l *lab) close() error { return os.RemoveAll(l.dir) }

var errSurvived = errors.New("it survives")

// try runs the tests that are to catch a mutant, until they do.
func (l *lab) try(ctx context.Context, m *mutant) (r result) {
	r = result{m: m}
	for _, name := range l.o.tiersOf(m) {
		t, known := tiers[name]
		if !known {
			r.err = fmt.Errorf("there are no tests %q", name)
			return r
		}
		if r.err = l.plan.prepare(name, func() (string, error) { return l.measure(ctx, t) }); r.err != nil {
			return r
		}
	}
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	overlay, err := l.overlay(m)
	if err != nil {
		r.err = err
		return r
	}
	r.err = errSurvived
	for _, name := range l.o.tiersOf(m) {
		left := l.o.limit - time.Since(start)
		if left <= 0 {
			break
		}
		f, found, err := l.attempt(ctx, name, overlay, left)
		if err == nil && found {
			err = l.passesWithout(ctx, name, f)
		}
		if err != nil {
			r.err = fmt.Errorf("%s: %w", name, err)
			return r
		}
		if found {
			r.tier, r.finding, r.err = name, f, nil
			if f.seed > 0 {
				r.seeds = f.seed - l.o.from + 1
			}
			return r
		}
	}
	return r
}

// overlay writes the mutant's files, and what go's -overlay reads.
func (l *lab) overlay(m *mutant) (name string, err error) {
	changed, err := m.mutated(l.o.root)
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for path, text := range changed {
		to := filepath.Join(l.dir, m.name, strings.ReplaceAll(path, "/", "_"))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(l.o.root, filepath.FromSlash(path))] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name = filepath.Join(l.dir, m.name, "overlay.json")
	return name, os.WriteFile(name, b, 0o644)
}

// attempt builds a tier's tests with an overlay and runs them, one portion after the other, until some fail.
func (l *lab) attempt(ctx context.Context, name, overlay string, limit time.Duration) (f finding, found bool, err error) {
	t, binary := tiers[name], filepath.Join(l.dir, "mutant.test")
	if err := l.build(ctx, t.pkg, binary, "-overlay="+overlay); err != nil {
		return f, false, err
	}
	by := time.Now().Add(limit)
	for _, portion := range l.plan.portions(name) {
		output, failed, err := l.run(ctx, t.pkg, binary, time.Until(by), append(l.args(t), portion...)...)
		if err != nil {
			return f, false, err
		}
		if failed {
			return read(output), true, nil
		}
	}
	return f, false, nil
}

// measure runs a tier's tests without a mutant, and returns what they print with -test.v.
func (l *lab) measure(ctx context.Context, t tier) (output string, err error) {
	binary, err := l.cleanOf(ctx, t.pkg)
	if err != nil {
		return "", err
	}
	output, _, err = l.run(ctx, t.pkg, binary, l.o.limit, "-test.v") // those that fail are not counted, and run last
	return output, err
}

// hang is how long the tests of a package may take, which need a fraction of that even on a busy machine. Tests that hang fail, as they
// do in go test; the simulator's seeds, of which there are as many as there is time for, may take longer.
const hang = 6 * time.Minute

// args is what a tier's test binary is called with.
func (l *lab) args(t tier) []string {
	if !t.seeded {
		return append(t.args[:len(t.args):len(t.args)], fmt.Sprint("-test.timeout=", hang))
	}
	return append(t.args[:len(t.args):len(t.args)], fmt.Sprint("-sim.from=", l.o.from), fmt.Sprint("-sim.seeds=", l.o.seeds))
}

// passesWithout demands that what has failed passes in the project as it is: else it says nothing about the mutant.
func (l *lab) passesWithout(ctx context.Context, name string, f finding) error {
	t := tiers[name]
	args := l.args(t)
	switch {
	case f.seed > 0:
		args = []string{"-test.run=^TestSimulation$", fmt.Sprint("-sim.seed=", f.seed)}
	case f.test != "" && !t.seeded:
		args = []string{"-test.run=^" + f.test + "$"}
	}
	key := t.pkg + " " + strings.Join(args, " ")
	if err, known := l.known[key]; known {
		return err
	}
	binary, err := l.cleanOf(ctx, t.pkg)
	if err != nil {
		return err
	}
	output, failed, err := l.run(ctx, t.pkg, binary, l.o.limit, args...)
	if err == nil && failed {
		err = fmt.Errorf("fails without the mutant too: %s: %s", f.test, short(read(output).message))
	}
	l.known[key] = err
	return err
}

// cleanOf is the test binary of a package without a mutant.
func (l *lab) cleanOf(ctx context.Context, pkg string) (binary string, err error) {
	if binary = l.clean[pkg]; binary != "" {
		return binary, nil
	}
	binary = filepath.Join(l.dir, fmt.Sprintf("clean%d.test", len(l.clean)))
	if err := l.build(ctx, pkg, binary); err != nil {
		return "", fmt.Errorf("without a mutant: %w", err)
	}
	l.clean[pkg] = binary
	return binary, nil
}

// build builds a package's tests.
func (l *lab) build(ctx context.Context, pkg, binary string, flags ...string) error {
	args := append([]string{"test", "-c", "-o", binary, "-ldflags=-s -w", fmt.Sprint("-p=", l.o.jobs)}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = l.o.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("does not compile: %s", short(string(out)))
	}
	return nil
}

// run runs tests, and reports whether they fail. Tests that are not through by the limit have found nothing.
func (l *lab) run(ctx context.Context, pkg, binary string, limit time.Duration, args ...string) (output string, failed bool, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(limited, binary, append([]string{"-test.timeout=0"}, args...)...)
	cmd.Dir = filepath.Join(l.o.root, filepath.FromSlash(pkg)) // where go test runs them
	cmd.Env = append(os.Environ(), fmt.Sprint("GOMAXPROCS=", l.o.jobs))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", false, ctx.Err()
	case limited.Err() != nil:
		return "", false, nil
	case errors.As(err, &exit):
		return out.String(), true, nil
	}
	return "", false, err
}
