package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tourOptions say how long the tour is.
type tourOptions struct {
	members int           // that start the group
	writers int           // that write all the time
	preload int           // keys that are there before the first change
	pace    time.Duration // how long to go on writing after each step
}

// parseTour reads the flags of kv tour.
func parseTour(args []string, stderr io.Writer) (o tourOptions, err error) {
	flags := flag.NewFlagSet("kv tour", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are printed once, by main
	flags.IntVar(&o.members, "members", 3, "how many replicas start the group, 1 or 3")
	flags.IntVar(&o.writers, "writers", 4, "how many clients write all the time")
	flags.IntVar(&o.preload, "preload", 100_000, "how many keys to store before the first change")
	flags.DurationVar(&o.pace, "pace", 3*time.Second, "how long to go on writing after each step")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stderr)
			fmt.Fprintln(stderr, "usage: kv tour [flags]")
			flags.PrintDefaults()
		}
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.members != 1 && o.members != 3:
		return o, fmt.Errorf("-members is %d, must be 1 or 3", o.members)
	case o.writers < 1 || o.writers > 100:
		return o, fmt.Errorf("-writers is %d, must be 1 to 100", o.writers)
	case o.preload < 0 || o.preload > 10_000_000:
		return o, fmt.Errorf("-preload is %d, must be 0 to 10000000", o.preload)
	case o.pace < 0:
		return o, fmt.Errorf("-pace is %v, must not be negative", o.pace)
	}
	return o, nil
}

// tour changes a group's membership while clients write to it.
type tour struct {
	ctx  context.Context
	o    tourOptions
	out  io.Writer
	g    *tourGroup
	w    *tourWriters
	done []tourResult
}

// tourResult is one line of the table at the end.
type tourResult struct {
	title string
	took  time.Duration
	writeStats
}

// runTour takes the tour with processes of the given program, which is this one, in a directory that it removes.
func runTour(ctx context.Context, o tourOptions, binary string, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "graft-tour-")
	if err != nil {
		return err
	}
	t := &tour{ctx: ctx, o: o, out: out, g: &tourGroup{binary: binary, dir: dir}}
	defer func() {
		if t.w != nil {
			t.w.close()
		}
		if err != nil && ctx.Err() == nil {
			t.showLogs()
		}
		t.g.close()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	t.printf("A group changes its members while %d clients write to it.\nEach replica is a process of its own, on this machine only, with its data below %s.\n", o.writers, dir)
	err = t.steps()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// steps is what the tour shows.
func (t *tour) steps() error {
	for _, step := range []struct {
		title string
		run   func() error
	}{
		{plural(t.o.members, "replica starts", "replicas start"), t.begin},
		{"replicas join, until there are five", t.grow},
		{"the leader's machine is replaced", t.replaceLeader},
		{"two replicas leave", t.shrink},
		{"the leader is killed in the middle of a change", t.killMidChange},
		{"leadership is handed over", t.transfer},
	} {
		t.printf("\n%d. %s\n", len(t.done)+1, strings.ToUpper(step.title[:1])+step.title[1:])
		start := time.Now()
		if err := step.run(); err != nil {
			return fmt.Errorf("step %d, %s: %w", len(t.done)+1, step.title, err)
		}
		took := time.Since(start)
		t.linger()
		r := tourResult{step.title, took, t.w.nextStep()}
		t.done = append(t.done, r)
		t.printf("   writes: %s\n", r.writeStats)
	}
	return t.end()
}

func (s writeStats) String() string {
	return fmt.Sprintf("%s acknowledged, %s unknown, longest pause %s", thousands(s.acknowledged), thousands(s.unknown), short(s.pause))
}

// linger lets the writers go on for a while.
func (t *tour) linger() {
	select {
	case <-t.ctx.Done():
	case <-time.After(t.o.pace):
	}
}

// end ends the writers, reads everything back, and says what there is to say.
func (t *tour) end() error {
	t.w.close()
	t.printf("\n%d. Everything is read back\n", len(t.done)+1)
	leader, members, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	lost := 0
	for _, r := range members {
		n, found, err := t.readBack(r)
		if err != nil {
			return err
		}
		lost += n
		t.printf("   from %s: %s of %s acknowledged writes are there, and %d of %d unknown ones\n",
			nameList([]*tourReplica{r}, leader), thousands(len(t.w.acked)-n), thousands(len(t.w.acked)), found, len(t.w.unknown))
	}
	same, err := t.sameDigests(members)
	if err != nil {
		return err
	}
	t.table()
	switch {
	case lost > 0:
		return fmt.Errorf("%d acknowledged writes are lost", lost)
	case !same:
		return errors.New("the members do not hold the same")
	}
	t.printf("\nNothing was lost, and all members hold the same.\n")
	return nil
}

// table sums up.
func (t *tour) table() {
	t.printf("\n   %-50s %8s %14s %8s %14s\n", "step", "took", "acknowledged", "unknown", "longest pause")
	for i, r := range t.done {
		t.printf("   %-50s %8s %14s %8s %14s\n", fmt.Sprintf("%d. %s", i+1, r.title), short(r.took), thousands(r.acknowledged), thousands(r.unknown), short(r.pause))
	}
}

// showLogs prints the end of what each replica said, for whoever looks for the cause.
func (t *tour) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(t.g.dir, "*.log"))
	for _, path := range logs {
		if b, err := os.ReadFile(path); err == nil {
			t.printf("\n%s:\n%s", filepath.Base(path), b[max(0, len(b)-1500):])
		}
	}
}

func (t *tour) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "one " + one
	}
	return []string{"no", "", "two", "three"}[n] + " " + many
}

// short rounds a duration to what is worth reading.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
