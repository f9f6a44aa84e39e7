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
	"slices"
	"strings"
	"sync"
	"time"
)

type options struct {
	root string
	run  *regexp.Regexp
	tier string
	jobs int
	// beside is how many mutants are tried at a time.
	beside int
	limit  time.Duration
	seeds  uint64
	from   uint64
	list   bool
}

// tiersOf names the tests that are to catch a mutant.
func (o options) tiersOf(m *mutant) []string {
	if o.tier != "" {
		return strings.Split(o.tier, ",")
	}
	return m.tiers
}

func main() {
	var o options
	run := flag.String("run", "", "only mutants whose names match this regular expression")
	flag.StringVar(&o.root, "C", ".", "the project's root")
	flag.StringVar(&o.tier, "tier", "", "run these tests (sim, scenes, root, …) in place of those that the patches name; several with commas")
	flag.IntVar(&o.jobs, "jobs", 1, "how many processors a mutant's tests may use")
	flag.IntVar(&o.beside, "beside", 1, "how many mutants are tried at the same time")
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
func hunt(ctx context.Context, o options) error {
	all, err := load(o.root + "/internal/sim/mutants/patches")
	if err != nil {
		return err
	}
	mutants := slices.DeleteFunc(all, func(m mutant) bool { return !o.run.MatchString(m.name) })
	if len(mutants) == 0 {
		return fmt.Errorf("no mutant's name matches %q", o.run)
	}
	if o.list {
		for _, m := range mutants {
			fmt.Printf("%-48s %-28s %s\n", m.name, m.group, m.bug)
		}
		return nil
	}
	var bad []string
	start := time.Now()
	for r := range try(ctx, o, mutants, &err) {
		fmt.Println(r)
		if !r.caught() {
			bad = append(bad, r.m.name)
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	fmt.Printf("%d of %d mutants caught in %v\n", len(mutants)-len(bad), len(mutants), time.Since(start).Round(time.Second))
	if len(bad) > 0 {
		return fmt.Errorf("not caught, or not to be tried: %s", strings.Join(bad, ", "))
	}
	return nil
}

// try tries the mutants, several at a time: many tests wait more than they work. What goes wrong, other than with a mutant, is in err
// when all results have come.
func try(ctx context.Context, o options, mutants []mutant, err *error) <-chan result {
	todo, results, plan := make(chan *mutant), make(chan result), newSchedule(o, mutants)
	failed := make([]error, max(o.beside, 1))
	var wg sync.WaitGroup
	for i := range failed {
		wg.Go(func() { failed[i] = work(ctx, o, plan, todo, results) })
	}
	go func() {
		for i := range mutants {
			todo <- &mutants[i]
		}
		close(todo)
		wg.Wait()
		*err = errors.Join(failed...)
		close(results)
	}()
	return results
}

// work tries one mutant after the other, in a lab of its own. It takes all that come even if it can do nothing with them any more.
func work(ctx context.Context, o options, plan *schedule, todo <-chan *mutant, results chan<- result) error {
	l, err := newLab(o, plan)
	for m := range todo {
		if err != nil || ctx.Err() != nil {
			continue
		}
		if r := l.try(ctx, m); ctx.Err() == nil {
			results <- r
		}
	}
	if l != nil {
		err = errors.Join(err, l.close())
	}
	return err
}
