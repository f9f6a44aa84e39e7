// Command mutants shows that the tests are strong enough: it puts one seeded bug after the other into a copy of the library
// and runs the tests that are to catch it. README.md says what a patch must look like.
//
//	go run ./internal/sim/mutants
//	go run ./internal/sim/mutants -run vote
//	go run ./internal/sim/mutants -run 'joint|quorum' -tier sim -seeds 500 -limit 5m
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"
)

type options struct {
	root  string
	run   *regexp.Regexp
	tier  string
	jobs  int
	limit time.Duration
	seeds uint64
	from  uint64
	list  bool
}

func main() {
	var o options
	run := flag.String("run", "", "only mutants whose names match this regular expression")
	flag.StringVar(&o.root, "C", ".", "the project's root")
	flag.StringVar(&o.tier, "tier", "", "run these tests (sim, scenes, root, …) in place of those that the patches name; several with commas")
	flag.IntVar(&o.jobs, "jobs", 1, "how many processors a mutant's tests may use")
	flag.DurationVar(&o.limit, "limit", 10*time.Minute, "how long the tests may take to catch a mutant")
	flag.Uint64Var(&o.seeds, "seeds", 2000, "how many seeds the simulator may take to catch a mutant")
	flag.Uint64Var(&o.from, "from", 1, "the simulator's first seed")
	flag.BoolVar(&o.list, "list", false, "list the mutants and run nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := func() (err error) {
		if o.run, err = regexp.Compile(*run); err != nil {
			return err
		}
		return hunt(ctx, o)
	}()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// hunt runs the mutants, and fails unless all are caught.
func hunt(ctx context.Context, o options) (err error) {
	mutants, err := load(o.root + "/internal/sim/mutants/patches")
	if err != nil {
		return err
	}
	l, err := newLab(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	var bad []string
	caught, start := 0, time.Now()
	for _, m := range mutants {
		switch {
		case !o.run.MatchString(m.name):
			continue
		case o.list:
			fmt.Printf("%-48s %-28s %s\n", m.name, m.group, m.bug)
			continue
		}
		r := l.try(ctx, &m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fmt.Println(r)
		if r.caught() {
			caught++
		} else {
			bad = append(bad, m.name)
		}
	}
	if o.list {
		return nil
	}
	fmt.Printf("%d of %d mutants caught in %v\n", caught, caught+len(bad), time.Since(start).Round(time.Second))
	if len(bad) > 0 {
		return fmt.Errorf("not caught, or not to be tried: %s", strings.Join(bad, ", "))
	}
	if caught == 0 {
		return fmt.Errorf("no mutant's name matches %q", o.run)
	}
	return nil
}
