// Command kv is a replicated key-value store that speaks the Redis protocol, built on graft.
//
//	kv                 three replicas in this process, on a temporary directory, to try it out
//	kv serve -raft …   one replica
//	kv tour            a group changes its members while clients write to it
//
// A write is an entry of the Raft log; it is answered once a majority has it on disk. Reads are linearizable. As in a
// Redis cluster, a replica that does not lead sends clients to the one that does (MOVED); after READONLY it serves
// linearizable reads itself.
//
// How a command travels: session reads it from its connection (frame), finds it in the table (commands), and turns it into
// an operation (op) or a query. An operation is proposed; when it is committed the state machine (machine) applies it to
// the keyspace on every replica, and where it was proposed the session answers (outbox). A query runs on the keyspace
// once Raft has confirmed that this replica knows everything that was acknowledged before; the sequencer keeps a
// connection's own reads and writes in order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "kv: "+oneLine(err))
		os.Exit(1)
	}
}

// run is the program, until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 0:
		return demo(ctx, stdout)
	case args[0] == "serve":
		cfg, err := parseServe(args[1:], stderr)
		if errors.Is(err, flag.ErrHelp) {
			return nil
		} else if err != nil {
			return err
		}
		return serve(ctx, cfg)
	case args[0] == "tour":
		o, err := parseTour(args[1:], stderr)
		if errors.Is(err, flag.ErrHelp) {
			return nil
		} else if err != nil {
			return err
		}
		binary, err := os.Executable()
		if err != nil {
			return err
		}
		return runTour(ctx, o, binary, stdout)
	case args[0] == "help", args[0] == "-h", args[0] == "-help", args[0] == "--help":
		fmt.Fprintln(stderr, "usage: kv                 three replicas in one process, to try it out")
		fmt.Fprintln(stderr, "       kv serve [flags]   one replica; see kv serve -h")
		fmt.Fprintln(stderr, "       kv tour [flags]    a group changes its members while clients write to it; see kv tour -h")
		return nil
	}
	return fmt.Errorf("unknown command %q: say kv, kv serve -h or kv tour -h", args[0])
}

// oneLine is an error on one line, however many were joined.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(c rune) bool { return c == '\n' || c == '\r' }), "; ")
}
